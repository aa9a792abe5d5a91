"""Choose the layout: screen the whole space as arrays, then simulate the best of it exactly.

Screening (`planner.screening`) keeps the `POOL` with the best closed form. They are simulated, in
that order, while their bound is below the worst layout shown, at most `MOST_SIMULATED` of them.
Where that many were not needed and none was dropped from the pool, the result is that of simulating
everything (tested against brute force). The plan states the least bound of what was left, which no
layout of the space can beat.

Layouts on several numbers of devices are compared by their score (`planner.objective`); of
objective `devices`, the fewest are taken on which any fits. Clusters of several kinds of node are
laid out by `planner.mixed`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.axes import check_options, pinned_stages
from planner.config import ParallelConfig
from planner.cost import cost_model, in_order_s
from planner.estimate import estimate
from planner.layouts import NAMES
from planner.misses import nothing_fits
from planner.objective import check_devices, numbers_of_devices, order_of
from planner.plan import Candidate, Plan, SearchCounts, SearchOptions, plan_id
from planner.prepared import Costs, Prepared
from planner.screening import WIDE, Found, code_of, screen_all
from planner.simulate import simulate
from planner.space import MEMORY_RULE
from profiler.codec import replace
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile

MOST_SIMULATED = 200


def make_plan(model: ModelSpec, job: JobSpec, profile: Profile, options: SearchOptions) -> Plan:
    """The best layout of `model` on the profile's cluster. Pure: equal inputs, equal plan.

    Raises `UserError`: kind `infeasible` where nothing fits, `invalid` for options that make no
    sense, `stale` for a profile of something else.
    """
    check_options(options, model)
    check_devices(options, profile.cluster)
    check_profile(model, job, profile)
    if len(profile.cluster.groups) > 1:
        from planner.mixed import make_mixed_plan  # which searches each group as one here

        return make_mixed_plan(model, job, profile, options)
    costs = cost_model(model, job, profile)
    founds, best, simulated, least = find(costs, options)
    if not best:
        raise nothing_fits(costs, founds, options)
    chosen = best[0]
    own = next(f for f in founds if f.num_devices == chosen.config.num_devices)
    plan = Plan(
        id="",
        model=model,
        job=job,
        cluster=profile.cluster,
        profile=profile,
        options=options,
        chosen=chosen,
        alternatives=tuple(best[1 : options.top + 1]),
        counts=counts_of(founds, simulated),
        frontier=_frontier(costs, own, chosen, options),
        by_axis=_by_axis(costs, founds, own, chosen, options),
        bound_s=min(least / own.weight, chosen.cost.step_s),
        default_order_s=in_order_s(costs, chosen.config),
    )
    return replace(plan, id=plan_id(plan))


def find(
    costs: Costs, options: SearchOptions, at_most: float = float("inf")
) -> tuple[list[Found], list[Candidate], int, float]:
    """What was screened; the best, the best first; how many were simulated; the least score of the
    others' bounds. Layouts whose score exceeds `at_most` may be left out."""
    founds = screen_all(costs, options, numbers_of_devices(options, costs.node), at_most)
    return (founds, *_choose(costs, founds, options, at_most))


def counts_of(founds: Sequence[Found], simulated: int) -> SearchCounts:
    """Of all numbers of devices together."""
    broken, unfit = _sum([f.broken for f in founds]), _sum([f.unfit for f in founds])
    screened = sum(f.screened for f in founds)
    return SearchCounts(
        enumerated=screened + sum(broken.values()),
        rejected=dict(sorted((broken + unfit).items())),
        pruned=screened - unfit[MEMORY_RULE] - simulated,
        simulated=simulated,
    )


def _sum(counters: list[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counters:
        total.update(each)
    return total


def check_profile(model: ModelSpec, job: JobSpec, profile: Profile) -> None:
    """Raise `UserError` where the profile does not speak of this job."""
    differs = profile.fits(model, job)
    if differs:
        raise UserError(
            f"the profile does not speak of this job: {differs}",
            hint="profile again for this model and job, or leave `--profile` out",
            kind="stale",
        )
    for device in (group.device for group in profile.cluster.groups):
        if job.precision not in device.flops_per_s:
            raise UserError(
                f"device `{device.name}` does not compute in {job.precision}",
                hint=f"it has {', '.join(sorted(device.flops_per_s))}: choose with `--precision`",
            )


def _by_axis(
    costs: Costs,
    founds: Sequence[Found],
    own: Found,
    chosen: Candidate,
    options: SearchOptions,
) -> dict[str, dict[str, float]]:
    """Per axis and value, the best layout's simulated step, where it is near the chosen one's.

    Steps on another number of devices count by their score: those that would score as much on the
    chosen number. Of objective `devices`, only the axis `devices` speaks of other numbers.
    """
    stages, step_s = pinned_stages(options), chosen.cost.step_s
    apart = options.objective == "devices"
    cache: dict[ParallelConfig, float] = {chosen.config: step_s}

    def seconds(config: ParallelConfig, weight: float) -> float:
        if config not in cache:
            prepared = costs.prepare(config, stages)
            fits = prepared is not None and prepared.peak_bytes <= costs.capacity_bytes
            cache[config] = (
                simulate(prepared.program, prepared.sharing).step_s * weight
                if prepared is not None and fits
                else float("inf")
            )
        return cache[config]

    table: dict[str, dict[str, float]] = {}
    for axis, values in _best_of_axes([own] if apart else founds, own.weight).items():
        names, mine = NAMES.get(axis), code_of(chosen.config, axis)
        near = {v: c for v, (s, _, c) in sorted(values.items()) if s <= WIDE * step_s}
        if len(near) < 2:
            continue
        row = {
            (names[v] if names else str(v)): step_s
            if v == mine
            else max(seconds(c, values[v][1]), step_s)
            for v, c in near.items()
        }
        table[axis] = {name: s for name, s in row.items() if s < float("inf")}
    sizes = {
        f.num_devices: seconds(f.pool.config(0), f.weight / own.weight)
        for f in founds
        if len(f.pool) and f is not own
    }
    if len(founds) > 1:
        sizes = {n: s if apart else max(s, step_s) for n, s in sizes.items() if s < float("inf")}
        sizes[own.num_devices] = step_s
        table["devices"] = {str(n): s for n, s in sorted(sizes.items())}
    return table


def _best_of_axes(
    founds: Sequence[Found], weight: float
) -> dict[str, dict[int, tuple[float, float, ParallelConfig]]]:
    """Axis -> value -> (closed form as a step of that weight, factor of its step, layout)."""
    best: dict[str, dict[int, tuple[float, float, ParallelConfig]]] = {}
    for found in founds:
        factor = found.weight / weight
        for axis, values in found.axes.items():
            known = best.setdefault(axis, {})
            for value, (seconds, config) in values.items():
                if value not in known or seconds * factor < known[value][0]:
                    known[value] = (seconds * factor, factor, config)
    return best


def _choose(
    costs: Costs, founds: Sequence[Found], options: SearchOptions, at_most: float
) -> tuple[list[Candidate], int, float]:
    """The best, the best first; how many were simulated; the least score of the others' bounds."""
    if options.objective != "devices":
        return _simulate(costs, founds, options, at_most)
    total = 0
    for found in founds:
        best, simulated, least = _simulate(costs, [found], options, at_most)
        total += simulated
        if best:
            return best, total, least
    return [], total, float("inf")


def _simulate(
    costs: Costs, founds: Sequence[Found], options: SearchOptions, at_most: float
) -> tuple[list[Candidate], int, float]:
    """See `_choose`, where all numbers of devices are compared."""
    best: list[_Timed] = []
    num, simulated = options.top + 1, 0
    left = min(f.least_left_s * f.weight for f in founds)
    stages = pinned_stages(options)
    for found, position in _by_score(founds):
        bound = float(found.bound_s[position]) * found.weight
        # A bound and a simulated time that are equal in theory may differ in their last bits.
        worst = min(at_most, best[-1].score) if len(best) == num else at_most
        slower = bound > worst * (1 + 1e-9)
        if slower or simulated == MOST_SIMULATED:
            left = min(left, bound)
            continue
        prepared = costs.prepare(found.pool.config(position), stages)
        if prepared is None or prepared.peak_bytes > costs.capacity_bytes:
            found.unfit[MEMORY_RULE] += 1
            continue
        bound = prepared.bound_s * found.weight
        if bound > worst * (1 + 1e-9):
            left = min(left, bound)
            continue
        simulated += 1
        seconds = simulate(prepared.program, prepared.sharing).step_s
        best = _with(best, _Timed(seconds * found.weight, prepared))[:num]
    return [estimate(costs, each.prepared) for each in best], simulated, left


def _by_score(founds: Sequence[Found]) -> list[tuple[Found, int]]:
    """Positions in the pools, the least score first."""
    scores = np.concatenate([f.step_s * f.weight for f in founds])
    places = [(f, position) for f in founds for position in range(len(f.pool))]
    return [places[k] for k in np.argsort(scores, kind="stable")]


@dataclass(frozen=True, slots=True)
class _Timed:
    score: float
    prepared: Prepared


def _with(best: list[_Timed], candidate: _Timed) -> list[_Timed]:
    """Candidates with one more, the best first; of those that differ in sharding alone the best."""
    best = sorted([*best, candidate], key=lambda c: (c.score, order_of(c.prepared.config)))
    kin: dict[object, _Timed] = {}
    for each in best:
        config = each.prepared.config
        plain = replace(config, dp_replicate=1, dp_shard=1, zero=0)
        kin.setdefault((plain, config.num_devices), each)
    return list(kin.values())


def _frontier(
    costs: Costs, found: Found, chosen: Candidate, options: SearchOptions
) -> tuple[Candidate, ...]:
    """The chosen layout, and those on as many devices that need less memory for more time, at most
    eight."""
    stages = pinned_stages(options)
    picked = np.unique(np.linspace(0, len(found.front) - 1, 12).astype(int))
    timed: list[_Timed] = []
    for position in picked[: len(found.front)]:
        prepared = costs.prepare(found.front.config(int(position)), stages)
        if prepared is not None and prepared.peak_bytes <= costs.capacity_bytes:
            timed.append(_Timed(simulate(prepared.program, prepared.sharing).step_s, prepared))
    front = [chosen]
    for each in sorted(timed, key=lambda t: (t.score, t.prepared.peak_bytes)):
        if each.score >= chosen.cost.step_s and each.prepared.peak_bytes < (
            front[-1].cost.peak_bytes
        ):
            front.append(estimate(costs, each.prepared))
    return tuple(front[:8])
