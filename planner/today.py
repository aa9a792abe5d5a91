"""The part of the space that today's cost model covers, layout by layout.

tp x pp x dp_replicate x micro-batch x recompute none or full x gpipe or 1f1b; an expert is split
as its layer's attention is (etp = tp) and stands on every replica. To be removed once the cost
model works on `planner.layouts`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from planner.axes import Coverage, divisors
from planner.blocks import BlockTable
from planner.config import ParallelConfig
from planner.plan import SearchOptions
from planner.rules import CONFIG_RULES, ConfigRule
from planner.space import RULES as SPACE_RULES
from planner.space import enumerate_layouts as enumerate_space
from profiler.job import JobSpec
from profiler.model import ModelSpec

RECOMPUTES = ("none", "full")
SCHEDULES = ("gpipe", "1f1b")
COVERAGE = Coverage(
    {
        "dp_shard": frozenset({1}),
        "cp": frozenset({1}),
        "ep": frozenset({1}),
        "recompute": frozenset(RECOMPUTES),
        "schedule": frozenset(SCHEDULES),
    }
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at besides the layout."""

    model: ModelSpec
    job: JobSpec
    table: BlockTable
    options: SearchOptions


@dataclass(frozen=True, slots=True)
class Rule:
    """`broken(layout, facts)` is true where the layout cannot be."""

    id: str
    broken: Callable[[ParallelConfig, Facts], bool]


def _value(config: ParallelConfig, axis: str) -> str:
    field = {"dp": "num_replicas", "mbs": "micro_batch"}.get(axis, axis)
    return str(getattr(config, field))


def _pinned_away(c: ParallelConfig, f: Facts) -> bool:
    return any(_value(c, a) not in values for a, values in f.options.pin.items() if a != "split")


def _forbidden(c: ParallelConfig, f: Facts) -> bool:
    return any(_value(c, axis) in values for axis, values in f.options.forbid.items())


def _split_length(c: ParallelConfig, f: Facts) -> bool:
    split = f.options.pin.get("split")
    return split is not None and len(split) != c.pp


def _not_profiled(c: ParallelConfig, f: Facts) -> bool:
    kinds = set(f.model.blocks)
    return any(f.table.cost(k, c.tp, c.micro_batch) is None for k in kinds)


def _ran_out(c: ParallelConfig, f: Facts) -> bool:
    return any(f.table.ran_out(k, c.tp, c.micro_batch) for k in set(f.model.blocks))


def _of_space(rule: ConfigRule) -> Rule:
    return Rule(rule.id, lambda c, f: bool(rule.broken(c, f.model, f.job)))


_OWN = [rule for rule in SPACE_RULES if rule.id in ("layers-pp", "gpipe-pp1")]
RULES = (
    Rule("pin", _pinned_away),
    Rule("forbid", _forbidden),
    Rule("split-length", _split_length),
    *(_of_space(rule) for rule in (*CONFIG_RULES, *_OWN)),
    Rule("oom-profiled", _ran_out),
    Rule("not-profiled", _not_profiled),
)
"""Checked in this order. `memory` is the search's own last rule."""


def first_broken(config: ParallelConfig, facts: Facts) -> Rule | None:
    """The first rule that the layout breaks, or None."""
    return next((rule for rule in RULES if rule.broken(config, facts)), None)


def enumerate_layouts(num_devices: int, job: JobSpec, model: ModelSpec) -> Iterator[ParallelConfig]:
    """Every layout whose degrees give the devices and whose batch divides, in a fixed order."""
    any_size = tuple(str(size) for size in divisors(job.global_batch))
    options = SearchOptions(pin={"schedule": SCHEDULES, "mbs": any_size}, forbid={})
    for chunk in enumerate_space(
        num_devices, job, model, options, COVERAGE, devices_per_node=num_devices, rules=()
    ):
        split = chunk.etp == (chunk.tp if model.num_moe_layers else 1)
        yield from chunk.take(split).configs()
