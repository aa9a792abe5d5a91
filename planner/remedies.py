"""What would make a job fit that fits nowhere: changes are tried, the cheapest first.

    1  one narrowing less: a pin, a forbidden value, `--devices`       costs nothing but the wish
    2  offload of the optimizer state, then of the activations         transfers each step or layer
    3  a shorter sequence: a half, a quarter, ... of it                other training
    4  more devices of the same kind: wider nodes up to eight, then more nodes

A change is named only where a layout with it was found, its layers split, and its memory is within
the limit. Sought are layouts with the least memory (`planner.misses.FRUGAL`): where one of them
fits, the search finds the fastest. Of several kinds of node one is taken for all. A measured
profile speaks of its own sequence length and devices: there narrowings alone are tried.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.axes import AXES, pinned_stages
from planner.config import ParallelConfig
from planner.cost import cost_model
from planner.misses import frugal
from planner.plan import SearchOptions
from planner.screening import chunks_of
from profiler.cluster import NodeGroup
from profiler.codec import replace
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile

LEAST_SEQ_LEN = 512
"""Shorter ones are not proposed."""
MOST_TIMES = 64
"""More nodes than this many times those that there are are not tried."""
_WIDE_NODE = 8
_TRIED = 64
"""Layouts of a chunk, the fastest first, whose layers are split to see whether they fit."""
_FIELDS = {"dp": "num_replicas", "mbs": "micro_batch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """A job on one kind of node."""

    model: ModelSpec
    job: JobSpec
    profile: Profile
    options: SearchOptions

    @property
    def group(self) -> NodeGroup:
        """The only kind of node."""
        return self.profile.cluster.uniform


def with_remedy(
    error: UserError, model: ModelSpec, job: JobSpec, profile: Profile, options: SearchOptions
) -> UserError:
    """The error of a search in which nothing fits, with a hint that was tried; any other error and
    one for which nothing helps as it was."""
    if error.kind != "infeasible":
        return error
    ask = _Ask(model=model, job=job, profile=_largest(profile), options=options)
    first = next(_changes(ask), None)
    more = _more_devices(ask) if profile.is_analytic and "fits on" in error.message else None
    hints = [text for text in (first, more) if text]
    if not hints:
        return error
    return UserError(
        error.message, hint="; or ".join(hints), place=error.place, kind=error.kind,
        details=error.details,
    )  # fmt: skip


def _largest(profile: Profile) -> Profile:
    """Of the kind of node that has most memory together; of all nodes as if each were of the kind
    with least memory, where that is more (`planner.mixed` searches both)."""
    groups = profile.cluster.groups
    if len(groups) == 1:
        return profile
    sizes = [g.num_nodes * g.devices_per_node * g.device.memory_bytes for g in groups]
    least = min(range(len(groups)), key=lambda k: groups[k].device.memory_bytes)
    alike = len({g.devices_per_node for g in groups}) == 1
    if alike and groups[least].device.memory_bytes * profile.cluster.num_devices > max(sizes):
        return profile.of_group(least, sum(g.num_nodes for g in groups))
    return profile.of_group(int(np.argmax(sizes)))


def _changes(ask: _Ask) -> Iterator[str]:
    """Of the job on these devices, the cheapest first."""
    yield from _less_narrow(ask)
    if not ask.profile.is_analytic:
        return
    for what in ("optimizer", "activations"):
        pinned = replace(ask.options, pin={**ask.options.pin, "offload": (what,)})
        if "offload" not in ask.options.pin and _fitting(replace(ask, options=pinned)):
            where = "the optimizer state" if what == "optimizer" else "activations"
            yield (
                f"with `--pin offload={what}` it fits: the host keeps {where}, which `launch` "
                "does not run"
            )
    seq_len = ask.job.seq_len // 2
    while seq_len >= LEAST_SEQ_LEN:
        if _fitting(replace(ask, job=replace(ask.job, seq_len=seq_len))):
            yield f"with `--seq-len {seq_len}` it fits"
            return
        seq_len //= 2


def _less_narrow(ask: _Ask) -> Iterator[str]:
    """With one of the user's narrowings left out."""
    options = ask.options
    for flag, chosen in (("pin", options.pin), ("forbid", options.forbid)):
        for axis in (axis for axis in AXES if axis in chosen):
            rest = {name: values for name, values in chosen.items() if name != axis}
            found = _fitting(replace(ask, options=replace(options, **{flag: rest})))
            if found is not None:
                given = f"--{flag} {axis}={','.join(chosen[axis])}"
                yield f"without `{given}` it fits{_value(found, axis)}"
    if options.devices and _fitting(replace(ask, options=replace(options, devices=()))):
        given = f"--devices {','.join(map(str, options.devices))}"
        yield f"without `{given}` it fits, on {_words(ask.group)}"


def _value(found: ParallelConfig, axis: str) -> str:
    """`, with zero 3`; of a split, nothing."""
    return "" if axis == "split" else f", with {axis} {getattr(found, _FIELDS.get(axis, axis))}"


def _more_devices(ask: _Ask) -> str | None:
    """The fewest that were tried and are enough."""
    options = replace(ask.options, devices=())
    for group in _larger(ask.group):
        cluster = replace(ask.profile.cluster, groups=(group,))
        larger = replace(ask, profile=replace(ask.profile, cluster=cluster), options=options)
        if _fitting(larger):
            number = group.num_nodes * group.devices_per_node
            return f"{number:,} devices are enough ({_words(group)})"
    return None


def _larger(group: NodeGroup) -> Iterator[NodeGroup]:
    """Wider nodes where there is one that is narrow, else more nodes: 2, 3, 4, 6, 8, ... times."""
    if group.num_nodes == 1:
        width = 2 * group.devices_per_node
        while width <= _WIDE_NODE:
            yield replace(group, devices_per_node=width, domain_devices=0)
            group = replace(group, devices_per_node=width, domain_devices=0)
            width *= 2
    times = 2
    while times <= MOST_TIMES:
        yield replace(group, num_nodes=times * group.num_nodes)
        if times * 3 // 2 <= MOST_TIMES:
            yield replace(group, num_nodes=times * 3 // 2 * group.num_nodes)
        times *= 2


def _words(group: NodeGroup) -> str:
    return f"{group.num_nodes} x {group.devices_per_node} {group.device.name}"


def _fitting(ask: _Ask) -> ParallelConfig | None:
    """A layout of all the devices, or of the most that may be used, that fits."""
    costs = cost_model(ask.model, ask.job, ask.profile)
    number = max(ask.options.devices, default=ask.profile.cluster.num_devices)
    stages = pinned_stages(ask.options)
    for chunk in chunks_of(costs, frugal(ask.options), number, Counter()):
        screened = costs.screen(chunk, float("inf"))
        for position in np.argsort(screened.step_s, kind="stable")[:_TRIED]:
            prepared = costs.prepare(chunk.config(int(screened.index[position])), stages)
            if prepared is not None and prepared.peak_bytes <= costs.capacity_bytes:
                return prepared.config
    return None
