"""Choose the layout: screen the whole space as arrays, then simulate the best of it exactly.

Screening cuts a layout by its lower bound alone where that exceeds `WIDE` times the best closed
form so far (a first pass over few layouts finds a good one), refuses what does not fit memory, and
ranks the rest by the closed form. The nearest are simulated, in that order, while their bound is
below the time of the worst layout shown, at most `MOST_SIMULATED` of them. Where that many were not
needed, the result is that of simulating everything (tested against brute force); else the plan
states the least bound of what was left, which no layout of the space can beat.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from planner.axes import AXES, check_options, pinned_stages
from planner.config import ParallelConfig
from planner.cost import cost_model
from planner.estimate import estimate
from planner.layouts import NAMES, Layouts
from planner.plan import Candidate, Plan, SearchCounts, SearchOptions, plan_id
from planner.prepared import Costs, Floats, Prepared
from planner.simulate import simulate
from planner.space import MEMORY_RULE, RULES, SENTENCES, enumerate_layouts
from profiler.codec import replace
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile

WIDE = 1.5
"""Layouts slower than this many times the best are neither ranked nor reported."""
POOL = 512
"""Layouts kept for simulation."""
MOST_SIMULATED = 200
_GIB = 2**30
_SEED_PINS = {"mbs": ("1", "2"), "schedule": ("1f1b",), "cp_method": ("ring",), "zero": ("0", "1")}
_SPOKEN_AXES = tuple(a for a in AXES if a not in ("split", "dp_replicate"))


def make_plan(model: ModelSpec, job: JobSpec, profile: Profile, options: SearchOptions) -> Plan:
    """The fastest layout of `model` on the profile's cluster. Pure: equal inputs, equal plan.

    Raises `UserError`: kind `infeasible` where nothing fits, `invalid` for options that make no
    sense, `stale` for a profile of something else.
    """
    check_options(options, model)
    check_profile(model, job, profile)
    costs = cost_model(model, job, profile)
    found = _screen_all(costs, options)
    best, simulated, least = _simulate(costs, found, options)
    if not best:
        raise _nothing_fits(costs, found, options)
    chosen = best[0]
    plan = Plan(
        id="",
        model=model,
        job=job,
        cluster=profile.cluster,
        profile=profile,
        options=options,
        chosen=chosen,
        alternatives=tuple(best[1 : options.top + 1]),
        counts=SearchCounts(
            enumerated=found.screened + sum(found.broken.values()),
            rejected=dict(sorted((found.broken + found.unfit).items())),
            pruned=found.screened - found.unfit[MEMORY_RULE] - simulated,
            simulated=simulated,
        ),
        frontier=_frontier(costs, found, chosen, options),
        by_axis=_by_axis(costs, found, chosen, options),
        bound_s=min(least, chosen.cost.step_s),
    )
    return replace(plan, id=plan_id(plan))


def check_profile(model: ModelSpec, job: JobSpec, profile: Profile) -> None:
    """Raise `UserError` where the profile does not speak of this job."""
    differs = profile.fits(model, job)
    if differs:
        raise UserError(
            f"the profile does not speak of this job: {differs}",
            hint="profile again for this model and job, or leave `--profile` out",
            kind="stale",
        )
    device = profile.cluster.uniform.device
    if job.precision not in device.flops_per_s:
        raise UserError(
            f"device `{device.name}` does not compute in {job.precision}",
            hint=f"it has {', '.join(sorted(device.flops_per_s))}: choose with `--precision`",
        )


@dataclass(slots=True)
class _Found:
    """What screening keeps."""

    screened: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    unfit: Counter[str] = field(default_factory=Counter)
    best_s: float = float("inf")
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


def _chunks(costs: Costs, options: SearchOptions, broken: Counter[str]) -> Iterator[Layouts]:
    return enumerate_layouts(
        costs.profile.cluster.num_devices,
        costs.job,
        costs.model,
        options,
        costs.coverage,
        devices_per_node=costs.node.devices_per_node,
        rejected=broken,
        rules=(*RULES, *costs.rules),
    )


def _screen_all(costs: Costs, options: SearchOptions) -> _Found:
    """All layouts of the space, by closed form."""
    found = _Found()
    best = float("inf")
    if costs.profile.is_analytic:
        seeds = replace(options, pin={**_SEED_PINS, **options.pin})
        for chunk in _chunks(costs, seeds, Counter()):
            screened = costs.screen(chunk, best * WIDE)
            if len(screened.step_s):
                best = min(best, float(screened.step_s.min()))
    found.best_s = best
    for chunk in _chunks(costs, options, found.broken):
        _take(found, costs, chunk)
    return found


def _take(found: _Found, costs: Costs, chunk: Layouts) -> None:
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


def _note_axes(found: _Found, layouts: Layouts, step: Floats) -> None:
    order = np.argsort(step, kind="stable")[::-1]
    for axis in _SPOKEN_AXES:
        values = _axis(layouts, axis)
        first = np.full(int(values.max()) + 1, -1, dtype=np.int64)
        first[values[order]] = order  # the last to write is the fastest
        known = found.axes.setdefault(axis, {})
        for value in np.flatnonzero(first >= 0):
            position = int(first[value])
            seconds = float(step[position])
            if int(value) not in known or seconds < known[int(value)][0]:
                known[int(value)] = (seconds, layouts.config(position))


def _by_axis(
    costs: Costs, found: _Found, chosen: Candidate, options: SearchOptions
) -> dict[str, dict[str, float]]:
    """Per axis and value, the best layout's simulated step, where it is near the chosen one's."""
    stages = pinned_stages(options)
    cache: dict[ParallelConfig, float] = {chosen.config: chosen.cost.step_s}

    def seconds(config: ParallelConfig) -> float:
        if config not in cache:
            prepared = costs.prepare(config, stages)
            fits = prepared is not None and prepared.peak_bytes <= costs.capacity_bytes
            cache[config] = (
                simulate(prepared.program, prepared.sharing).step_s
                if prepared is not None and fits
                else float("inf")
            )
        return max(cache[config], chosen.cost.step_s)

    table: dict[str, dict[str, float]] = {}
    for axis, values in found.axes.items():
        names, own = NAMES.get(axis), _value(chosen.config, axis)
        near = {v: c for v, (s, c) in sorted(values.items()) if s <= WIDE * chosen.cost.step_s}
        if len(near) < 2:
            continue
        row = {
            (names[v] if names else str(v)): chosen.cost.step_s if v == own else seconds(c)
            for v, c in near.items()
        }
        table[axis] = {name: s for name, s in row.items() if s < float("inf")}
    return table


def _value(config: ParallelConfig, axis: str) -> int:
    return int(_axis(Layouts.from_configs([config]), axis)[0])


def _axis(layouts: Layouts, axis: str) -> np.ndarray:
    name = {"dp": "num_replicas", "mbs": "micro_batch"}.get(axis, axis)
    return np.asarray(getattr(layouts, name))


def _keep_front(found: _Found, layouts: Layouts, step: Floats, peak: Floats) -> None:
    """Layouts that no other beats in both time and memory."""
    layouts = Layouts.concat([found.front, layouts])
    step = np.concatenate([found.front_s, step])
    peak = np.concatenate([found.front_bytes, peak])
    order = np.lexsort((peak, step))
    before = np.concatenate([[np.inf], np.minimum.accumulate(peak[order])[:-1]])
    # A little less memory for much the same time is no choice worth showing.
    front = order[peak[order] < before * 0.99]
    found.front, found.front_s, found.front_bytes = layouts.take(front), step[front], peak[front]


def _order(config: ParallelConfig) -> tuple[object, ...]:
    """Among equals the simpler layout: fewer stages, less tensor parallel, no recomputation."""
    return (
        config.pp,
        config.tp,
        config.recompute != "none",
        config.schedule != "1f1b",
        config.cp,
        config.ep,
        config.zero,
        config.vpp,
        config.micro_batch,
    )


def _simulate(
    costs: Costs, found: _Found, options: SearchOptions
) -> tuple[list[Candidate], int, float]:
    """The fastest, fastest first; how many were simulated; the least bound of the others."""
    best: list[_Timed] = []
    num, simulated, left = options.top + 1, 0, found.least_left_s
    stages = pinned_stages(options)
    for position in range(len(found.pool)):
        bound = float(found.bound_s[position])
        # A bound and a simulated time that are equal in theory may differ in their last bits.
        slower = len(best) == num and bound > best[-1].step_s * (1 + 1e-9)
        if slower or simulated == MOST_SIMULATED:
            left = min(left, bound)
            continue
        prepared = costs.prepare(found.pool.config(position), stages)
        if prepared is None or prepared.peak_bytes > costs.capacity_bytes:
            found.unfit[MEMORY_RULE] += 1
            continue
        if len(best) == num and prepared.bound_s > best[-1].step_s * (1 + 1e-9):
            left = min(left, prepared.bound_s)
            continue
        simulated += 1
        seconds = simulate(prepared.program, prepared.sharing).step_s
        best = _with(best, _Timed(seconds, prepared))[:num]
    return [estimate(costs, each.prepared) for each in best], simulated, left


@dataclass(frozen=True, slots=True)
class _Timed:
    step_s: float
    prepared: Prepared


def _with(best: list[_Timed], candidate: _Timed) -> list[_Timed]:
    """Candidates with one more, fastest first; of those that differ in sharding alone the best."""
    best = sorted([*best, candidate], key=lambda c: (c.step_s, _order(c.prepared.config)))
    kin: dict[object, _Timed] = {}
    for each in best:
        plain = replace(each.prepared.config, dp_replicate=1, dp_shard=1, zero=0)
        kin.setdefault(plain, each)
    return list(kin.values())


def _frontier(
    costs: Costs, found: _Found, chosen: Candidate, options: SearchOptions
) -> tuple[Candidate, ...]:
    """The chosen layout, and those that need less memory for more time, at most eight."""
    stages = pinned_stages(options)
    picked = np.unique(np.linspace(0, len(found.front) - 1, 12).astype(int))
    timed: list[_Timed] = []
    for position in picked[: len(found.front)]:
        prepared = costs.prepare(found.front.config(int(position)), stages)
        if prepared is not None and prepared.peak_bytes <= costs.capacity_bytes:
            timed.append(_Timed(simulate(prepared.program, prepared.sharing).step_s, prepared))
    front = [chosen]
    for each in sorted(timed, key=lambda t: (t.step_s, t.prepared.peak_bytes)):
        if each.step_s >= chosen.cost.step_s and each.prepared.peak_bytes < (
            front[-1].cost.peak_bytes
        ):
            front.append(estimate(costs, each.prepared))
    return tuple(front[:8])


def _nothing_fits(costs: Costs, found: _Found, options: SearchOptions) -> UserError:
    """Names the closest miss in memory, or the rules that left nothing."""
    name, cluster = costs.model.name, costs.profile.cluster
    where = f"{cluster.num_devices} x {costs.node.device.name}"
    if not found.unfit[MEMORY_RULE]:
        rules = [f"{n} x {SENTENCES[rule]} ({rule})" for rule, n in found.broken.most_common()]
        return UserError(
            f"no layout of `{name}` on {where} is possible",
            details=tuple(rules) or ("the global batch does not divide over any replicas",),
            hint="change `--global-batch` or `--seq-len`, or pin less",
            kind="infeasible",
        )
    closest, needed = _closest(costs, options)
    details = (
        f"closest: {closest.label} {closest.schedule} needs {needed / _GIB:.1f} GiB on its fullest "
        f"device (limit {costs.capacity_bytes / _GIB:.1f} GiB, "
        f"{costs.job.memory_reserve:.0%} of the device kept free)",
    )
    return UserError(
        f"no layout of `{name}` fits on {where}",
        details=details,
        hint="take more devices or ones with more memory; a smaller `--seq-len` saves activations",
        kind="infeasible",
    )


def _closest(costs: Costs, options: SearchOptions) -> tuple[ParallelConfig, int]:
    """The layout that needs least memory, though it does not fit."""
    pins: dict[str, tuple[str, ...]] = {"mbs": ("1",), "recompute": ("full",)}
    best: tuple[int, ParallelConfig] | None = None
    narrowed = replace(options, pin={**pins, **options.pin})
    for chunk in _chunks(costs, narrowed, Counter()):
        step = max(1, len(chunk) // 400)
        for position in range(0, len(chunk), step):
            config = chunk.config(position)
            needed = costs.least_peak(config)
            if best is None or needed < best[0]:
                best = (needed, config)
    if best is None:  # pins leave neither one sequence nor full recomputation
        for chunk in _chunks(costs, options, Counter()):
            config = chunk.config(0)
            return config, costs.least_peak(config)
        raise ValueError("a layout was rejected for memory, yet none is valid")
    return best[1], best[0]
