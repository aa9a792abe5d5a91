"""Choose the layout on a cluster of several kinds of node.

Three families are searched and compared:

    alone     every kind of layout on one node group, the others idle (`planner.search`)
    evenly    every kind of layout over all devices as if all were of the slowest kind, with the
              least memory of any, where nodes have equally many devices; it takes what the slowest
              of the kinds takes for it
    mixed     pipelines with ranks on several groups and unlike numbers of layers per rank; devices
              may be idle (`planner.mixed_space`)

so that the answer is never worse than the best group alone or the slower kind everywhere. Of the
pipelines the `MOST_PRICED` best by closed form are split and simulated, while their bound is below
the worst layout shown; where that many were not needed, and none was dropped from the pool of
`planner.mixed_screen`, the result is that of simulating all.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

from planner.analytic import AnalyticCosts
from planner.axes import pinned_stages
from planner.config import ParallelConfig
from planner.cost import slowest
from planner.estimate import estimate
from planner.misses import nothing_fits
from planner.mixed_costs import MixedCosts
from planner.mixed_screen import Screened, screen
from planner.objective import order_of, price_of
from planner.plan import Candidate, Plan, SearchCounts, SearchOptions, plan_id
from planner.prepared import Prepared
from planner.screening import Found
from planner.search import counts_of, find
from planner.simulate import simulate
from planner.space import MEMORY_RULE
from planner.where import starts_of
from profiler.cluster import ClusterSpec
from profiler.codec import replace
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile

MOST_PRICED = 200
MOST_SEEDS = 20
_NOTHING = SearchCounts(enumerated=0, rejected={}, pruned=0, simulated=0)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A simulated layout."""

    score: float
    config: ParallelConfig
    used: tuple[int, ...]
    """Devices of each group that work."""
    made: Candidate | Prepared


@dataclass(slots=True)
class _Best:
    """The best layouts so far, the best first."""

    options: SearchOptions
    cluster: ClusterSpec
    entries: list[_Entry] = field(default_factory=list)
    counts: list[SearchCounts] = field(default_factory=list)
    least: float = math.inf
    """Least score of the bounds of what was not simulated."""

    @property
    def worst(self) -> float:
        """Score that a layout must stay below to be shown; inf where there is room for more, or
        where numbers of devices go first."""
        full = len(self.entries) > self.options.top and self.options.objective != "devices"
        return self.entries[-1].score if full else math.inf

    @property
    def fewest(self) -> int:
        """Devices of the layout that uses fewest."""
        numbers = [e.config.num_devices for e in self.entries]
        return min(numbers, default=self.cluster.num_devices)

    def weight(self, used: tuple[int, ...]) -> float:
        """Factor of a step in its score where so many devices of each group work."""
        return weight_of_groups(self.options, self.cluster, used)

    def add(self, step_s: float, made: Candidate | Prepared, used: tuple[int, ...]) -> None:
        """Take a layout if it is among the best; of those that differ in sharding alone one."""
        by_devices = self.options.objective == "devices"
        entry = _Entry(step_s * self.weight(used), made.config, used, made)

        def key(e: _Entry) -> tuple[object, ...]:
            return (e.config.num_devices if by_devices else 0, e.score, order_of(e.config))

        kin: dict[object, _Entry] = {}
        for each in sorted([*self.entries, entry], key=key):
            plain = replace(each.config, dp_replicate=1, dp_shard=1, zero=0)
            kin.setdefault((plain, each.used), each)
        self.entries = list(kin.values())[: self.options.top + 1]


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
    costs = MixedCosts(model, job, profile)
    if options.objective != "devices":  # what all devices reach cuts the others short
        _evenly(best, model, job, profile)
        _mixed(best, costs)
    founds = [_alone(best, model, job, profile, g) for g in range(len(profile.cluster.groups))]
    if options.objective == "devices":
        _mixed(best, costs)
        _evenly(best, model, job, profile)
    if not best.entries:
        raise _nothing_fits(model, profile, founds)
    return _plan(best, costs)


def _plan(best: _Best, costs: MixedCosts) -> Plan:
    chosen, *others = (
        estimate(costs, e.made) if isinstance(e.made, Prepared) else e.made for e in best.entries
    )
    front = [chosen]
    for each in others:
        if each.cost.peak_bytes < front[-1].cost.peak_bytes:
            front.append(each)
    bound = min(best.least / best.weight(best.entries[0].used), chosen.cost.step_s)
    rejected: Counter[str] = Counter()
    for counts in best.counts:
        rejected.update(counts.rejected)
    plan = Plan(
        id="",
        model=costs.model,
        job=costs.job,
        cluster=costs.profile.cluster,
        profile=costs.profile,
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
    limit = best.worst / price
    founds, found, simulated, least = find(costs, options, limit)
    best.counts.append(counts_of(founds, simulated))
    best.least = min(best.least, least * price)
    for each in found:
        used = _only(profile.cluster, g, each.config.num_devices)
        best.add(each.cost.step_s, _placed(each, profile.cluster, start), used)
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
    """Layouts over all devices, found for the slowest kind and the least memory."""
    cluster, options = profile.cluster, best.options
    total = cluster.num_devices
    unlike = len({g.devices_per_node for g in cluster.groups}) > 1
    fewer = options.objective == "devices" and bool(best.entries)
    if unlike or fewer or (options.devices and total not in options.devices):
        return
    nodes = sum(g.num_nodes for g in cluster.groups)
    kinds = [
        AnalyticCosts(model, job, profile.of_group(g, nodes)) for g in range(len(cluster.groups))
    ]
    used = tuple(g.num_nodes * g.devices_per_node for g in cluster.groups)
    price = weight_of_groups(options, cluster, used)
    slow = min(kinds, key=lambda k: _speed(k, job))
    slow.capacity_bytes = min(k.capacity_bytes for k in kinds)
    narrowed = replace(options, devices=(total,))
    limit = best.worst / price * (total if options.objective == "cost" else 1.0)
    founds, found, simulated, least = find(slow, narrowed, limit)
    best.counts.append(counts_of(founds, simulated))
    best.least = min(best.least, least / founds[0].weight * price)
    for each in found:
        pair = slowest(kinds, each.config, each.placement)
        if pair is not None:
            made = _priced(estimate(*pair), pair[0], cluster, used)
            best.add(made.cost.step_s, made, used)


def _speed(costs: AnalyticCosts, job: JobSpec) -> float:
    """FLOP/s that large products reach."""
    rate = costs.node.device.flops_per_s[job.precision]
    return rate * costs.profile.constants["matrix_efficiency"]


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
    """Pipelines over several groups; first few of them, whose best cut the others short."""
    options = best.options
    if options.objective != "devices":
        seeds = replace(options, pin={"mbs": ("1",), "zero": ("0", "1"), **options.pin})
        screened = screen(costs, seeds, best.worst, Counter())
        if screened is not None:
            _price(best, costs, screened, MOST_SEEDS)
    broken = Counter[str]()
    screened = screen(costs, options, best.worst, broken)
    ruled_out = sum(broken.values()) - broken[MEMORY_RULE]
    if screened is None:
        best.counts.append(replace(_NOTHING, enumerated=ruled_out, rejected=dict(broken)))
        return
    best.least = min(best.least, screened.least_left)
    simulated, unfit = _price(best, costs, screened, MOST_PRICED, rest_counts=True)
    broken[MEMORY_RULE] += unfit
    best.counts.append(
        SearchCounts(
            enumerated=screened.num_valid + ruled_out,
            rejected=dict(broken),
            pruned=screened.num_valid - broken[MEMORY_RULE] - simulated,
            simulated=simulated,
        )
    )


def _price(
    best: _Best, costs: MixedCosts, screened: Screened, most: int, *, rest_counts: bool = False
) -> tuple[int, int]:
    """Simulate up to `most` of what was screened, note the least bound of the rest if asked; (how
    many were simulated, how many do not fit)."""
    options, stages = best.options, pinned_stages(best.options)
    pool, simulated, unfit = screened.pool, 0, 0
    ranks = screened.layouts.stage_ranks[pool.mesh]
    numbers = ranks * pool.counts.sum(axis=1)
    for position in range(len(pool)):
        bound = float(pool.bound[position])
        if options.objective == "devices" and numbers[position] > best.fewest:
            break
        if simulated == most or bound > best.worst * (1 + 1e-9):
            best.least = min(best.least, bound) if rest_counts else best.least
            continue
        config, kinds = screened.pipeline(position)
        prepared = costs.prepare(config, kinds, stages)
        if prepared is None or not costs.fits(prepared, kinds):
            unfit += 1
            continue
        simulated += 1
        used = tuple(int(n) for n in pool.counts[position] * ranks[position])
        best.add(simulate(prepared.program).step_s, prepared, used)
    return simulated, unfit


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
