"""The error where no layout is left: the closest miss in memory, or the rules that left nothing.

What would make it fit is tried by `planner.remedies`, which takes longer and is asked for apart.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from planner.config import ParallelConfig
from planner.impossible import impossible_pins
from planner.plan import SearchOptions, StageMemory
from planner.prepared import Costs
from planner.screening import Found, chunks_of
from planner.space import MEMORY_RULE, SENTENCES
from planner.wording import gib
from profiler.codec import replace
from profiler.errors import UserError

FRUGAL: dict[str, tuple[str, ...]] = {"mbs": ("1",), "recompute": ("full",)}
"""Values of these axes that need least memory: each is possible in every layout."""
_NO_VALUES = (
    "no layout has the values asked for: degrees multiply to the number of devices, replicas and "
    "micro-batch divide the global batch"
)


def frugal(options: SearchOptions) -> SearchOptions:
    """With the values that need least memory, where the user pins no others."""
    return replace(options, pin={**FRUGAL, **options.pin})


def nothing_fits(costs: Costs, founds: Sequence[Found], options: SearchOptions) -> UserError:
    """Names the closest miss in memory, or the rules that left nothing."""
    name, most = costs.model.name, founds[-1].num_devices
    where = f"{most} x {costs.node.device.name}"
    if not any(f.unfit[MEMORY_RULE] for f in founds):
        broken: Counter[str] = sum((f.broken for f in founds), Counter())
        rules = [f"{n:,} layouts: {SENTENCES[rule]} ({rule})" for rule, n in broken.most_common()]
        sizes = [f.num_devices for f in founds]
        pinned = impossible_pins(costs.model, costs.job, options, sizes) or _unpriced(
            costs, options
        )
        return UserError(
            f"no layout of `{name}` on {where} is possible",
            details=tuple(rules) or pinned or (_NO_VALUES,),
            hint="change `--global-batch` or `--seq-len`, or pin less",
            kind="infeasible",
        )
    unfit = max(f.num_devices for f in founds if f.unfit[MEMORY_RULE])
    closest = _closest(costs, options, unfit)
    return UserError(
        f"no layout of `{name}` fits on {where}",
        details=_miss(costs, closest),
        hint="take more devices or ones with more memory, or pin less",
        kind="infeasible",
    )


def _unpriced(costs: Costs, options: SearchOptions) -> tuple[str, ...]:
    """Sentences about pins whose values neither the profile nor the software has."""
    software = costs.profile.software
    what = "a measured profile" if software is None else f"`{software.name}`"
    priced = costs.coverage.values
    found = []
    for axis, values in options.pin.items():
        if axis == "zero" and 1 in priced.get("dp_shard", ()) and len(priced["dp_shard"]) == 1:
            known: tuple[str, ...] = ("0",)
        else:
            known = tuple(sorted(map(str, priced.get(axis, values))))
        if not set(values) & set(known):
            found.append(
                f"{axis} {' or '.join(values)}: {what} has {axis} {', '.join(known)} alone"
            )
    return tuple(found)


def _miss(costs: Costs, closest: ParallelConfig) -> tuple[str, ...]:
    """What the closest layout needs, by how much that is too much, and what it is made of."""
    memory = costs.least_memory(closest)
    needed, limit = memory.total_bytes, costs.capacity_bytes
    return (
        f"closest: {closest.label} {closest.schedule} needs {gib(needed)} on its fullest device, "
        f"{gib(needed - limit)} more than its {gib(limit)} ({costs.job.memory_reserve:.0%} of the "
        f"device kept free): {_parts(memory)}",
    )


def _parts(memory: StageMemory) -> str:
    """`weights and gradients 3.0 GiB, optimizer 12.0 GiB, ...`; the largest first."""
    parts = {
        "weights and gradients": memory.weight_bytes + memory.grad_bytes,
        "optimizer": memory.optimizer_bytes,
        "activations": memory.activation_bytes,
        "workspace and buffers": memory.workspace_bytes + memory.buffer_bytes,
    }
    held = sorted(((n, name) for name, n in parts.items() if n), reverse=True)
    return ", ".join(f"{name} {gib(n)}" for n, name in held)


def _closest(costs: Costs, options: SearchOptions, num_devices: int) -> ParallelConfig:
    """The layout of so many devices that needs least memory, though it does not fit."""
    # Pins may leave neither one sequence nor full recomputation, or no layout that has both.
    for narrowed in (frugal(options), options):
        best, least = None, float("inf")
        for chunk in chunks_of(costs, narrowed, num_devices, Counter()):
            peaks = costs.least_peaks(chunk)
            position = int(np.argmin(peaks))
            if peaks[position] < least:
                best, least = chunk.config(position), float(peaks[position])
        if best is not None:
            return best
    raise ValueError("a layout was rejected for memory, yet none is valid")
