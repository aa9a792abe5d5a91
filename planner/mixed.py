"""Choose the layout on a cluster of several kinds of node.

Three families are searched and compared:

    alone     every kind of layout on one node group, the others idle (`planner.search`)
    evenly    every kind of layout over all devices as if all were of the slowest kind, where the
              nodes have equally many; what it takes is what the slowest of the kinds takes for it
    mixed     pipelines with ranks on several groups and unlike numbers of layers per rank; devices
              may be idle (`planner.mixed_space`)

so that the answer is never worse than the best group alone or the slowest kind everywhere. Of the
pipelines the `MOST_PRICED` best by closed form are split and simulated, while their bound is below
the worst layout shown; where that many were not needed, the result is that of simulating all.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from planner.analytic import AnalyticCosts
from planner.axes import pinned_stages
from planner.config import ParallelConfig, Placement
from planner.estimate import estimate
from planner.layouts import Layouts
from planner.mixed_costs import Kinds, MixedCosts
from planner.mixed_screen import screen
from planner.objective import order_of, price_of
from planner.plan import Candidate, Plan, SearchCounts, SearchOptions, plan_id
from planner.prepared import Prepared
from planner.screening import Found
from planner.search import counts_of, find, nothing_fits
from planner.simulate import simulate
from planner.space import MEMORY_RULE
from planner.where import starts_of, used_of_groups
from profiler.cluster import ClusterSpec
from profiler.codec import replace
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile

MOST_PRICED = 200
_NOTHING = SearchCounts(enumerated=0, rejected={}, pruned=0, simulated=0)


@dataclass(slots=True)
class _Best:
    """The best layouts so far, the best first."""

    options: SearchOptions
    cluster: ClusterSpec
    candidates: list[Candidate] = field(default_factory=list)
    counts: list[SearchCounts] = field(default_factory=list)
    least: float = math.inf
    """Least score of the bounds of what was not simulated."""

    @property
    def worst(self) -> float:
        """Score that a layout must stay below to be shown; inf where numbers of devices go first."""
        full = len(self.candidates) > self.options.top and self.options.objective != "devices"
        return self.score(self.candidates[-1]) if full else math.inf

    @property
    def best(self) -> float:
        """Least score; inf where there is none, or where numbers of devices go first."""
        if not self.candidates or self.options.objective == "devices":
            return math.inf
        return self.score(self.candidates[0])

    def weight(self, candidate: Candidate) -> float:
        """Factor of its step in its score."""
        used = used_of_groups(self.cluster, candidate.config, candidate.placement)
        return weight_of_groups(self.options, self.cluster, used)

    def score(self, candidate: Candidate) -> float:
        """What is to be least."""
        return candidate.cost.step_s * self.weight(candidate)

    def add(self, candidates: list[Candidate]) -> None:
        """Take those that are among the best."""
        by_devices = self.options.objective == "devices"

        def key(c: Candidate) -> tuple[object, ...]:
            return (c.config.num_devices if by_devices else 0, self.score(c), order_of(c.config))

        ordered = sorted([*self.candidates, *candidates], key=key)
        kin: dict[object, Candidate] = {}
        for each in ordered:
            used = used_of_groups(self.cluster, each.config, each.placement)
            kin.setdefault((replace(each.config, dp_replicate=1, dp_shard=1, zero=0), used), each)
        self.candidates = list(kin.values())[: self.options.top + 1]


def weight_of_groups(options: SearchOptions, cluster: ClusterSpec, used: tuple[int, ...]) -> float:
    """Factor of a step in its score where so many devices of each group work."""
    if options.objective != "cost":
        return 1.0
    if any(g.price_per_hour is None for g in cluster.groups):
        return float(sum(used))
    return sum(price_of(g, n) for g, n in zip(cluster.groups, used, strict=True))


def make_mixed_plan(
    model: ModelSpec, job: JobSpec, profile: Profile, options: SearchOptions
) -> Plan:
    """The best layout on a cluster of several node groups. Pure: equal inputs, equal plan.

    Raises `UserError` (infeasible) where nothing fits, and for a measured profile.
    """
    if not profile.is_analytic:
        raise UserError(
            f"the profile was measured on {len(profile.cluster.groups)} kinds of node, which the "
            "planner lays out from the catalogue alone",
            hint="leave `--profile` out, or profile one kind of node",
        )
    best = _Best(options=options, cluster=profile.cluster)
    founds = [_alone(best, model, job, profile, g) for g in range(len(profile.cluster.groups))]
    _evenly(best, model, job, profile)
    _mixed(best, MixedCosts(model, job, profile))
    if not best.candidates:
        raise _nothing_fits(model, profile, founds)
    return _plan(best, model, job, profile)


def _plan(best: _Best, model: ModelSpec, job: JobSpec, profile: Profile) -> Plan:
    chosen, *others = best.candidates
    front = [chosen]
    for each in others:
        if each.cost.peak_bytes < front[-1].cost.peak_bytes:
            front.append(each)
    bound = min(best.least / best.weight(chosen), chosen.cost.step_s)
    rejected: Counter[str] = Counter()
    for counts in best.counts:
        rejected.update(counts.rejected)
    plan = Plan(
        id="",
        model=model,
        job=job,
        cluster=profile.cluster,
        profile=profile,
        options=best.options,
        chosen=chosen,
        alternatives=tuple(others),
        counts=SearchCounts(
            enumerated=sum(c.enumerated for c in best.counts),
            rejected=dict(sorted(rejected.items())),
            pruned=sum(c.pruned for c in best.counts),
            simulated=sum(c.simulated for c in best.counts),
        ),
        frontier=tuple(front[:8]),
        bound_s=0.0 if best.options.objective == "devices" else bound,
    )
    return replace(plan, id=plan_id(plan))


def _alone(
    best: _Best, model: ModelSpec, job: JobSpec, profile: Profile, g: int
) -> tuple[AnalyticCosts, list[Found], SearchOptions]:
    """Layouts on one group; the objective `step` has all its devices, or as many of its nodes as
    are a power of two."""
    group, start = profile.cluster.groups[g], starts_of(profile.cluster)[g]
    total = group.num_nodes * group.devices_per_node
    options = best.options
    per_node = group.devices_per_node
    if options.devices:
        whole = (n for n in options.devices if n % per_node == 0 or n < per_node)
        options = replace(options, devices=tuple(n for n in whole if n <= total))
        if not options.devices:
            return AnalyticCosts(model, job, profile.of_group(g)), [], options
    elif options.objective == "step":
        power = per_node << (group.num_nodes.bit_length() - 1)
        options = replace(options, devices=tuple(sorted({power, total})))
    costs = AnalyticCosts(model, job, profile.of_group(g))
    price = weight_of_groups(options, profile.cluster, _only(profile.cluster, g, 1))
    limit = best.best / price
    founds, found, simulated, least = find(costs, options, limit)
    best.counts.append(counts_of(founds, simulated))
    best.least = min(best.least, least * price)
    best.add([_placed(c, profile.cluster, start) for c in found])
    return costs, founds, options


def _only(cluster: ClusterSpec, g: int, number: int) -> tuple[int, ...]:
    return tuple(number if k == g else 0 for k in range(len(cluster.groups)))


def _placed(candidate: Candidate, cluster: ClusterSpec, start: int) -> Candidate:
    """On the devices from `start` on."""
    num = candidate.config.num_devices
    placement = replace(candidate.placement, devices=tuple(range(start, start + num)))
    cost = candidate.cost
    if any(g.price_per_hour is None for g in cluster.groups):
        cost = replace(cost, price_per_hour=0.0)
    return replace(candidate, placement=placement, estimate=cost)


def _evenly(best: _Best, model: ModelSpec, job: JobSpec, profile: Profile) -> None:
    """Layouts over all devices, found for the slowest kind, or for that with least memory."""
    cluster, options = profile.cluster, best.options
    total = cluster.num_devices
    unlike = len({g.devices_per_node for g in cluster.groups}) > 1
    fewer = options.objective == "devices" and best.candidates
    if unlike or fewer or (options.devices and total not in options.devices):
        return
    nodes = sum(g.num_nodes for g in cluster.groups)
    kinds = [
        AnalyticCosts(model, job, profile.of_group(g, nodes)) for g in range(len(cluster.groups))
    ]
    used = tuple(g.num_nodes * g.devices_per_node for g in cluster.groups)
    price = weight_of_groups(options, cluster, used)
    slow = min(kinds, key=lambda k: _speed(k, job))
    small = min(kinds, key=lambda k: k.capacity_bytes)
    narrowed = replace(options, devices=(total,))
    for costs in (slow, small) if small is not slow else (slow,):
        limit = best.best / price * (total if options.objective == "cost" else 1.0)
        founds, found, simulated, least = find(costs, narrowed, limit)
        best.counts.append(counts_of(founds, simulated))
        best.least = min(best.least, least / founds[0].weight * price)
        pairs = [slowest(kinds, c.config, c.placement) for c in found]
        fitting = [pair for pair in pairs if pair is not None]
        best.add([_priced(estimate(*pair), pair[0], cluster, used) for pair in fitting])
        if fitting:
            return


def _speed(costs: AnalyticCosts, job: JobSpec) -> float:
    """FLOP/s that large products reach."""
    rate = costs.node.device.flops_per_s[job.precision]
    return rate * costs.profile.constants["matrix_efficiency"]


def slowest(
    kinds: list[AnalyticCosts], config: ParallelConfig, placement: Placement
) -> tuple[AnalyticCosts, Prepared] | None:
    """The kind that takes longest for a layout; None where it does not fit all of them."""
    ready = []
    for costs in kinds:
        prepared = costs.prepare(config, placement.stages)
        if prepared is None or prepared.peak_bytes > costs.capacity_bytes:
            return None
        ready.append((simulate(prepared.program, prepared.sharing).step_s, costs, prepared))
    _, costs, prepared = max(ready, key=lambda each: each[0])
    return costs, prepared


def _priced(
    candidate: Candidate, costs: AnalyticCosts, cluster: ClusterSpec, used: tuple[int, ...]
) -> Candidate:
    """With the prices and the peak rate of the devices that there are."""
    cost, precision = candidate.cost, costs.job.precision
    assumed = costs.node.device.flops_per_s[precision] * sum(used)
    pairs = list(zip(cluster.groups, used, strict=True))
    peak = sum(g.device.flops_per_s[precision] * n for g, n in pairs)
    known = all(g.price_per_hour for g in cluster.groups)
    price = sum(price_of(g, n) for g, n in pairs) if known else 0.0
    cost = replace(cost, mfu=cost.mfu * assumed / peak, price_per_hour=price)
    return replace(candidate, estimate=cost)


def _mixed(best: _Best, costs: MixedCosts) -> None:
    """Pipelines over several groups."""
    options, broken = best.options, Counter[str]()
    screened = screen(costs, options, best.worst, broken)
    ruled_out = sum(broken.values()) - broken[MEMORY_RULE]
    if screened is None:
        best.counts.append(replace(_NOTHING, enumerated=ruled_out, rejected=dict(broken)))
        return
    best.least = min(best.least, screened.least_left)
    pool, simulated, stages = screened.pool, 0, pinned_stages(options)
    fewest = min(
        (c.config.num_devices for c in best.candidates), default=costs.profile.cluster.num_devices
    )
    for position in range(len(pool)):
        bound = float(pool.bound[position])
        config, kinds = _pipeline(screened.layouts, screened.orders, pool.mesh, pool.order,
                                  pool.counts, position)  # fmt: skip
        if options.objective == "devices" and config.num_devices > fewest:
            break
        if simulated == MOST_PRICED or bound > best.worst * (1 + 1e-9):
            best.least = min(best.least, bound)
            continue
        prepared = costs.prepare(config, kinds, stages)
        if prepared is None or not costs.fits(prepared, kinds):
            broken[MEMORY_RULE] += 1
            continue
        simulated += 1
        best.add([estimate(costs, prepared)])
        fewest = min(fewest, config.num_devices)
    best.counts.append(
        SearchCounts(
            enumerated=screened.num_valid + ruled_out,
            rejected=dict(broken),
            pruned=screened.num_valid - broken[MEMORY_RULE] - simulated,
            simulated=simulated,
        )
    )


def _pipeline(
    layouts: Layouts,
    orders: list[tuple[int, ...]],
    mesh: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    position: int,
) -> tuple[ParallelConfig, Kinds]:
    groups, held = orders[int(order[position])], counts[position]
    kinds = tuple(g for g in groups for _ in range(int(held[g])))
    return replace(layouts.config(int(mesh[position])), pp=len(kinds)), kinds


def _nothing_fits(
    model: ModelSpec,
    profile: Profile,
    founds: list[tuple[AnalyticCosts, list[Found], SearchOptions]],
) -> UserError:
    """Says how near the largest group alone comes."""
    where = " and ".join(
        f"{g.num_nodes} x {g.devices_per_node} {g.device.name}" for g in profile.cluster.groups
    )
    searched = [f for f in founds if f[1]]
    details: tuple[str, ...] = ()
    if searched:
        costs, found, narrowed = max(searched, key=lambda f: f[1][-1].num_devices)
        alone = nothing_fits(costs, found, narrowed)
        kind = costs.node.device.name
        details = tuple(f"{kind} alone: {d}" for d in alone.details)
    return UserError(
        f"no layout of `{model.name}` fits on {where}",
        details=details,
        hint="take more devices or ones with more memory, or pin less",
        kind="infeasible",
    )
