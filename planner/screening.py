"""The whole space by closed form: what of it is worth simulating.

Per number of devices that may be used, layouts whose lower bound exceeds `WIDE` times the best
closed form so far are cut (a first pass over few layouts finds a good one), what does not fit
memory is refused, and the `POOL` best of the rest are kept, besides the best with each value of an
axis, and those that no other beats in both time and memory.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.axes import AXES
from planner.config import ParallelConfig
from planner.layouts import Layouts
from planner.objective import weight_of
from planner.plan import SearchOptions
from planner.prepared import Costs, Floats
from planner.space import MEMORY_RULE, RULES, enumerate_layouts
from profiler.codec import replace

WIDE = 1.5
"""Layouts with a score of more than this many times the best are neither ranked nor reported."""
POOL = 512
"""Layouts kept for simulation."""
_SEED_PINS = {"mbs": ("1", "2"), "schedule": ("1f1b",), "cp_method": ("ring",), "zero": ("0", "1")}
_SPOKEN_AXES = tuple(a for a in AXES if a not in ("split", "dp_replicate"))


@dataclass(slots=True)
class Found:
    """What screening keeps of the layouts on one number of devices."""

    num_devices: int
    weight: float = 1.0
    """Factor of a step in its score, see `planner.objective`."""
    screened: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    unfit: Counter[str] = field(default_factory=Counter)
    best_s: float = float("inf")
    """Step of the best score so far, were it on this number of devices."""
    least_left_s: float = float("inf")
    """Least bound of what was cut or dropped."""
    pool: Layouts = field(default_factory=lambda: Layouts.concat([]))
    step_s: Floats = field(default_factory=lambda: np.empty(0))
    bound_s: Floats = field(default_factory=lambda: np.empty(0))
    front: Layouts = field(default_factory=lambda: Layouts.concat([]))
    front_s: Floats = field(default_factory=lambda: np.empty(0))
    front_bytes: Floats = field(default_factory=lambda: np.empty(0))
    axes: dict[str, dict[int, tuple[float, ParallelConfig]]] = field(default_factory=dict)
    """Per axis and value, the best closed form and its layout."""


def chunks_of(
    costs: Costs, options: SearchOptions, num_devices: int, broken: Counter[str]
) -> Iterator[Layouts]:
    """All layouts of so many devices that break no rule; the others are counted."""
    return enumerate_layouts(
        num_devices,
        costs.job,
        costs.model,
        options,
        costs.coverage,
        devices_per_node=costs.node.devices_per_node,
        rejected=broken,
        rules=(*RULES, *costs.rules),
    )


def screen_all(
    costs: Costs, options: SearchOptions, sizes: Sequence[int], at_most: float = float("inf")
) -> list[Found]:
    """All layouts of the space, by closed form, per number of devices; a score is known that is
    `at_most`."""
    founds = [Found(num_devices=n, weight=weight_of(options, n)) for n in sizes]
    for found in founds:
        found.best_s = at_most / found.weight
    if costs.profile.is_analytic:
        seeds = replace(options, pin={**_SEED_PINS, **options.pin})
        for found in founds:
            for chunk in chunks_of(costs, seeds, found.num_devices, Counter()):
                screened = costs.screen(chunk, found.best_s * WIDE)
                if len(screened.step_s):
                    found.best_s = min(found.best_s, float(screened.step_s.min()))
            _share(founds, options)
    for found in founds:
        for chunk in chunks_of(costs, options, found.num_devices, found.broken):
            _take(found, costs, chunk)
        _share(founds, options)
    return founds


def _share(founds: list[Found], options: SearchOptions) -> None:
    """Let the best score so far count on every number of devices, where scores are compared."""
    if options.objective != "devices":
        best = min(found.best_s * found.weight for found in founds)
        for found in founds:
            found.best_s = best / found.weight


def _take(found: Found, costs: Costs, chunk: Layouts) -> None:
    """Screen a chunk and keep what is near."""
    screened = costs.screen(chunk, found.best_s * WIDE)
    found.screened += len(chunk)
    found.unfit[MEMORY_RULE] += screened.num_unfit
    found.least_left_s = min(found.least_left_s, screened.least_cut_s)
    if not len(screened.index):
        return
    layouts = chunk.take(screened.index)
    found.best_s = min(found.best_s, float(screened.step_s.min()))
    _note_axes(found, layouts, screened.step_s)
    _keep_front(found, layouts, screened.step_s, screened.peak_bytes)
    order = np.argsort(screened.step_s, kind="stable")[: POOL + 1]
    rest = np.ones(len(layouts), dtype=np.bool_)
    rest[order] = False
    if rest.any():
        found.least_left_s = min(found.least_left_s, float(screened.bound_s[rest].min()))
    pool = Layouts.concat([found.pool, layouts.take(order)])
    step = np.concatenate([found.step_s, screened.step_s[order]])
    bound = np.concatenate([found.bound_s, screened.bound_s[order]])
    near = np.argsort(step, kind="stable")
    kept, dropped = near[:POOL], near[POOL:]
    if len(dropped):
        found.least_left_s = min(found.least_left_s, float(bound[dropped].min()))
    found.pool, found.step_s, found.bound_s = pool.take(kept), step[kept], bound[kept]


def _note_axes(found: Found, layouts: Layouts, step: Floats) -> None:
    order = np.argsort(step, kind="stable")[::-1]
    for axis in _SPOKEN_AXES:
        values = values_of(layouts, axis)
        first = np.full(int(values.max()) + 1, -1, dtype=np.int64)
        first[values[order]] = order  # the last to write is the fastest
        known = found.axes.setdefault(axis, {})
        for value in np.flatnonzero(first >= 0):
            position = int(first[value])
            seconds = float(step[position])
            if int(value) not in known or seconds < known[int(value)][0]:
                known[int(value)] = (seconds, layouts.config(position))


def code_of(config: ParallelConfig, axis: str) -> int:
    """A layout's value of an axis; of one with names, its code."""
    return int(values_of(Layouts.from_configs([config]), axis)[0])


def values_of(layouts: Layouts, axis: str) -> np.ndarray:
    """The layouts' values of an axis."""
    name = {"dp": "num_replicas", "mbs": "micro_batch"}.get(axis, axis)
    return np.asarray(getattr(layouts, name))


def _keep_front(found: Found, layouts: Layouts, step: Floats, peak: Floats) -> None:
    """Layouts that no other beats in both time and memory."""
    layouts = Layouts.concat([found.front, layouts])
    step = np.concatenate([found.front_s, step])
    peak = np.concatenate([found.front_bytes, peak])
    order = np.lexsort((peak, step))
    before = np.concatenate([[np.inf], np.minimum.accumulate(peak[order])[:-1]])
    # A little less memory for much the same time is no choice worth showing.
    front = order[peak[order] < before * 0.99]
    found.front, found.front_s, found.front_bytes = layouts.take(front), step[front], peak[front]
