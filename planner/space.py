"""Which layouts there are, and which of them cannot be.

The space is tp x pp x dp x micro-batch x recompute x schedule with tp * pp * dp = devices,
micro-batch a divisor of the replica's share of the global batch; an expert is split as its layer's
attention is (etp = tp) and stands on every replica. A rule is an id and a sentence; a
layout is rejected by the first rule it breaks, and the search counts rejections by id.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

from planner.blocks import BlockTable
from planner.config import ParallelConfig, Recompute, ScheduleName
from planner.layout import CONFIG_RULES, ConfigRule
from planner.plan import SearchOptions
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec

AXES = ("tp", "pp", "dp", "mbs", "recompute", "schedule", "split")
"""What `--pin` and `--forbid` speak of; `split` (layers per stage) can be pinned only."""


RECOMPUTES: tuple[Recompute, ...] = ("none", "full")
SCHEDULES: tuple[ScheduleName, ...] = ("gpipe", "1f1b")
"""What the cost model covers of what the runtime can do."""


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
    sentence: str
    broken: Callable[[ParallelConfig, Facts], bool]


def _value(config: ParallelConfig, axis: str) -> str:
    field = {"dp": "dp_replicate", "mbs": "micro_batch"}.get(axis, axis)
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


def _of_layout(rule: ConfigRule) -> Rule:
    return Rule(rule.id, rule.sentence, lambda c, f: rule.broken(c, f.model, f.job))


RULES = (
    Rule("pin", "a pinned axis has another value", _pinned_away),
    Rule("forbid", "an axis has a forbidden value", _forbidden),
    Rule("split-length", "the pinned split has another number of stages", _split_length),
    *(_of_layout(rule) for rule in CONFIG_RULES),
    Rule("layers-pp", "every stage needs a layer", lambda c, f: c.pp > f.model.num_layers),
    Rule(
        "gpipe-pp1",
        "on one stage 1f1b does the same in less memory",
        lambda c, f: c.pp == 1 and c.schedule == "gpipe",
    ),
    Rule("oom-profiled", "a block alone ran out of memory in the profile", _ran_out),
    Rule("not-profiled", "the profile has no entry near this tp and micro-batch", _not_profiled),
)
"""Checked in this order. `memory` is the search's own last rule."""

MEMORY_RULE = "memory"
SENTENCES = {rule.id: rule.sentence for rule in RULES} | {
    MEMORY_RULE: "no split of the layers fits the devices' memory"
}


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def enumerate_layouts(num_devices: int, job: JobSpec, model: ModelSpec) -> Iterator[ParallelConfig]:
    """Every layout whose degrees give the devices and whose batch divides, in a fixed order."""
    for tp in divisors(num_devices):
        for pp in divisors(num_devices // tp):
            dp = num_devices // (tp * pp)
            if job.global_batch % dp:
                continue
            for mbs, recompute, schedule in product(
                divisors(job.global_batch // dp), RECOMPUTES, SCHEDULES
            ):
                yield ParallelConfig(
                    pp=pp,
                    dp_replicate=dp,
                    tp=tp,
                    micro_batch=mbs,
                    recompute=recompute,
                    schedule=schedule,
                    etp=tp if model.num_moe_layers else 1,
                )


def first_broken(config: ParallelConfig, facts: Facts) -> Rule | None:
    """The first rule that the layout breaks, or None."""
    return next((rule for rule in RULES if rule.broken(config, facts)), None)


def check_options(options: SearchOptions, model: ModelSpec) -> None:
    """Raise `UserError` for an axis that does not exist, or a split that does not add up."""
    for flag, chosen in (("--pin", options.pin), ("--forbid", options.forbid)):
        for axis in chosen:
            if axis not in AXES:
                raise UserError(
                    f"`{flag}` does not know axis `{axis}`", hint=f"axes: {', '.join(AXES)}"
                )
    if "split" in options.forbid:
        raise UserError(
            "`--forbid` cannot take `split`", hint="pin another one with `--pin split=...`"
        )
    split = options.pin.get("split")
    if split is not None:
        _check_split(split, model)


def _check_split(split: tuple[str, ...], model: ModelSpec) -> None:
    if not all(x.isdigit() and len(x) < 6 and int(x) > 0 for x in split):
        given = ",".join(split)
        raise UserError(f"`split={given}` is not a list of layer counts", hint="like `split=3,2,3`")
    total = sum(int(x) for x in split)
    if total != model.num_layers:
        raise UserError(
            f"`split={','.join(split)}` has {total} layers, the model {model.num_layers}"
        )


def pinned_stages(options: SearchOptions) -> tuple[tuple[int, int], ...] | None:
    """Stages of a pinned split: embedding with the first layers, head with the last."""
    split = options.pin.get("split")
    if split is None:
        return None
    ends = [1]
    for count in split:
        ends.append(ends[-1] + int(count))
    ends[0], ends[-1] = 0, ends[-1] + 1
    return tuple(pairwise(ends))
