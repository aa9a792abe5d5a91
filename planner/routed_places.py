"""Where the experts of a layout that trains had better be, and what that is worth: the objective of
`plan --routing` (`planner.routed_plan.ranks_of`, `solvers.experts.score`) on the nodes and the
links that the layout's ranks are really on, with the computation as this run has timed it.

All groups of `ep` of a pipeline rank hold the same and take equal parts of what was routed, at the
same time. So a link or port that k groups cross takes k times as long for a copy of each, and what
counts between two places of a group is the slowest of the groups' links:

    pair_s[a, b] = max over groups of k * s / bytes_per_s[node of a, node of b]
    out_s[a]     = max over groups of k * s / out_bytes_per_s[node of a], and in_s alike

with s the bytes of a choice's copies in a step: exact, as the groups' flows are equal. Where nodes
do not hold equally many ranks of each group, every rank counts as a node of its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.config import ExpertSlots, ParallelConfig, Placement
from planner.expert_moves import Experts
from planner.expert_placement import Ranks, Unlike, place, problem_of
from planner.grid import Grid
from planner.pipeline import moe_ranks
from planner.routed_plan import ranks_of, speeds_of
from planner.where import nodes_of_ranks
from profiler.codec import replace
from profiler.job import JobSpec
from profiler.profile import Profile
from profiler.routing.trace import Counts, RoutingCounts
from solvers.experts.problem import Placed
from solvers.experts.score import score
from solvers.matching import spread_evenly

Floats = NDArray[np.float64]
_ALIKE = 1.1
"""Ports that differ by less are alike: repeated measurements of links do not agree better."""
_AS_GOOD = 1.01
"""Places that take so much longer are as good, where more experts stay."""
_BETTER = 1 - 1e-9
"""Less than this is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks of a group of `ep`, as all groups of a pipeline rank are, and the layers there."""

    ranks: Ranks
    layers: tuple[int, ...]
    """Among the MoE layers."""
    order: tuple[int, ...]
    """Ranks of the group, node by node, as `ranks` counts them."""


class RoutedPlaces:
    """Places and prices experts by what was routed, on these groups."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = tuple(groups)

    def place(self, counts: Counts, current: Experts) -> Experts:
        """Slots of every layer by `counts` [layers, experts]; a layer that gains nothing stays.

        Each rank has as many slots as the ranks have now on average. Ranks that are alike trade
        their slots, so that most experts stay where they are.
        """
        held = max(sum(map(len, layer.slots)) for layer in current)
        found = list(current)
        for group in self._groups:
            own = [current[layer] for layer in group.layers]
            rows = counts[list(group.layers)]
            for layer, new in zip(group.layers, _better(group, rows, own, held), strict=True):
                found[layer] = new
        return tuple(found)

    def price(self, counts: Counts, experts: Experts) -> Floats:
        """[layers]: seconds in which one group of ranks does all of `counts` [layers, experts]."""
        found = np.zeros(len(experts))
        for group in self._groups:
            layers = list(group.layers)
            found[layers] = _price(group, counts[layers], [experts[layer] for layer in layers])
        return found


def routed_places(
    profile: Profile, job: JobSpec, config: ParallelConfig, placement: Placement, *,
    compute_s: float,
) -> RoutedPlaces:  # fmt: skip
    """For a layout; `compute_s`: seconds that a rank takes for one choice, forward and backward."""
    base = ranks_of(profile, job, config.ep, etp=config.etp)
    base = replace(base, rates=replace(base.rates, compute_s=compute_s))
    # Links are between all hosts: those of a group are picked from them.
    ports = ranks_of(profile, job, profile.cluster.num_devices) if profile.links else None
    groups = profile.cluster.groups
    kinds = np.repeat(np.arange(len(groups)), [each.num_nodes for each in groups])
    speeds = speeds_of(profile, job, config.ep, config.etp)
    nodes = nodes_of_ranks(profile.cluster, config, placement)
    grid, stages = Grid(config, placement), moe_ranks(profile.model, config, placement)
    found = []
    for pp in sorted({*stages}):
        members = [g for g in grid.groups("ep") if grid.coordinate(g[0])["pp"] == pp]
        table = np.array([[nodes[rank] for rank in group] for group in members])
        layers = tuple(layer for layer, stage in enumerate(stages) if stage == pp)
        found.append(_group(base, ports, table, layers, speeds, kinds))
    return RoutedPlaces(found)


def _group(
    base: Ranks, ports: Ranks | None, table: NDArray[np.int64], layers: tuple[int, ...],
    speeds: Unlike, kind_of_node: NDArray[np.int64],
) -> Group:  # fmt: skip
    """`table` [groups, ep]: nodes; `ports`: of all hosts, where links were measured;
    `kind_of_node` [nodes]: node groups, with their `speeds`."""
    ep = table.shape[1]
    order = np.argsort(table[0], kind="stable")
    per = int((table[0] == table[0][order[0]]).sum())
    rows = table[:, order].reshape(len(table), -1, per) if ep % per == 0 else table[:, :, None]
    of_node = rows[:, :, 0]
    even = (rows == of_node[:, :, None]).all() and all(len({*row}) == len(row) for row in of_node)
    if not even:
        order, per, of_node = np.arange(ep), 1, table
    ranks = replace(
        base, ranks_per_node=per, pair_s=None, out_s=None, in_s=None,
        slowdown=None, near_s=None, far_s=None,
    )  # fmt: skip
    if len(speeds.group_compute_s) > 1:
        ranks = _of_kinds(ranks, speeds, kind_of_node[table], order)
    if ports is not None:
        ranks = _linked(ranks, ports, of_node)
    return Group(ranks=ranks, layers=layers, order=tuple(order.tolist()))


def _of_kinds(
    ranks: Ranks, speeds: Unlike, kinds: NDArray[np.int64], order: NDArray[np.intp]
) -> Ranks:
    """With the speeds of the node groups `kinds` [groups, ep] that places are on, the slowest of
    all groups counting; `compute_s` being the mean."""
    compute_s = speeds.group_compute_s[kinds].max(axis=0)[order]
    copy_s = speeds.group_copy_s[kinds].max(axis=0)[order]
    far_s = copy_s.reshape(-1, ranks.ranks_per_node).max(axis=1)
    return replace(
        ranks,
        slowdown=compute_s / compute_s.mean() if np.ptp(compute_s) > 0 else None,
        far_s=far_s if np.ptp(far_s) > 0 else None,
    )


def _linked(ranks: Ranks, ports: Ranks, of_node: NDArray[np.int64]) -> Ranks:
    """With the seconds of the links between the nodes of each group, `of_node` [groups, nodes]."""
    assert ports.pair_s is not None
    assert ports.out_s is not None
    assert ports.in_s is not None
    both = np.stack(np.broadcast_arrays(of_node[:, :, None], of_node[:, None, :]), axis=-1)
    return replace(
        ranks,
        pair_s=(ports.pair_s[both[..., 0], both[..., 1]] * _times(both)).max(axis=0),
        out_s=(ports.out_s[of_node] * _times(of_node[..., None])).max(axis=0),
        in_s=(ports.in_s[of_node] * _times(of_node[..., None])).max(axis=0),
    )


def _times(what: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each of `what` [..., k] is among them."""
    rows = [tuple(row) for row in what.reshape(-1, what.shape[-1]).tolist()]
    known = Counter(rows)
    return np.array([known[row] for row in rows]).reshape(what.shape[:-1])


def _better(
    group: Group, counts: Counts, current: list[ExpertSlots], held: int
) -> list[ExpertSlots]:
    """The best places found, of several that are as good those where most experts stay."""
    num, num_experts = group.ranks.num_ranks, counts.shape[1]
    slots = max(-(-num_experts // num), held // num)
    ranks = replace(group.ranks, slots_per_rank=slots)
    routing = RoutingCounts(windows=counts[None])
    layers = place(routing, ranks, held_out=0, compare=False).layers
    at = {rank: number for number, rank in enumerate(group.order)}
    found = [_reordered(layer, [at[rank] for rank in range(num)]) for layer in layers]
    limit = _AS_GOOD * _price(group, counts, found)
    best, known = list(current), _BETTER * _price(group, counts, current)
    is_open = np.ones(len(best), np.bool_)
    for alike in _kinds(group):  # the last trades least and costs nothing
        traded = [keep_in_place(a, b, alike) for a, b in zip(current, found, strict=True)]
        price = _price(group, counts, traded)
        taken = is_open & (price <= limit) & (price < known)
        for i in np.flatnonzero(taken):
            best[i] = traded[i]
        is_open &= ~taken
    return best


def _kinds(group: Group) -> list[list[int]]:
    """Kinds of the ranks among which slots may be traded: all of one, by the speed of their nodes'
    ports, by node."""
    ranks, per = group.ranks, group.ranks.ranks_per_node
    num = ranks.num_ranks // per
    if ranks.pair_s is None or ranks.out_s is None or ranks.in_s is None or num == 1:
        return [[0] * ranks.num_ranks]
    apart = ~np.eye(num, dtype=np.bool_)
    pairs = np.array([[np.median(m[i][apart[i]]) for i in range(num)]
                      for m in (ranks.pair_s, ranks.pair_s.T)])  # fmt: skip
    port = np.maximum(np.maximum(ranks.out_s, ranks.in_s), pairs.max(axis=0))
    kinds, start = [0] * num, -1.0
    for kind, node in enumerate(np.argsort(port, kind="stable").tolist()):
        if start < 0 or port[node] > _ALIKE * start:
            start, own = float(port[node]), kind
        kinds[node] = own

    def of_rank(of_node: list[int]) -> list[int]:
        found = [0] * ranks.num_ranks
        for number, rank in enumerate(group.order):
            found[rank] = of_node[number // per]
        return found

    return [of_rank([0] * num), of_rank(kinds), of_rank(list(range(num)))]


def _price(group: Group, counts: Counts, experts: Sequence[ExpertSlots]) -> Floats:
    most = max(len(rank) for layer in experts for rank in layer.slots)
    ranks = replace(group.ranks, slots_per_rank=max(most, -(-counts.shape[1] // len(group.order))))
    problem = problem_of(RoutingCounts(windows=counts[None]), ranks)
    ordered = [_reordered(layer, group.order) for layer in experts]
    return score(problem, _padded(ordered, ranks.slots_per_rank, counts.shape[1])).layer_s


def _padded(layers: Sequence[ExpertSlots], per_rank: int, num_experts: int) -> Placed:
    """As solvers have it, all ranks with as many slots: those that are missing take nothing."""
    num = len(layers[0].slots) * per_rank
    slots, shares = np.zeros((len(layers), num), np.int64), np.zeros((len(layers), num))
    for i, layer in enumerate(layers):
        for rank, experts in enumerate(layer.slots):
            at = slice(rank * per_rank, rank * per_rank + len(experts))
            slots[i, at] = experts
            shares[i, at] = layer.shares[rank] if layer.shares else 1.0
        total = np.bincount(slots[i], weights=shares[i], minlength=num_experts)
        shares[i] /= total[slots[i]]
    return Placed(slots=slots, shares=shares)


def _reordered(layer: ExpertSlots, order: Sequence[int]) -> ExpertSlots:
    """Rank i has what `order[i]` had."""
    return replace(
        layer,
        slots=tuple(layer.slots[rank] for rank in order),
        shares=tuple(layer.shares[rank] for rank in order) if layer.shares else (),
    )


def keep_in_place(
    old: ExpertSlots, new: ExpertSlots, alike: Sequence[int] | None = None
) -> ExpertSlots:
    """The new slots dealt out so that most experts stay on their ranks.

    Ranks trade whole sets of slots, with others of their kind (`alike`, a number per rank; None:
    all are of one) that have as many.
    """
    n = len(old.slots)
    kinds = [(alike[r] if alike else 0, len(new.slots[r])) for r in range(n)]
    cost = np.array(
        [
            [
                -float(len({*new.slots[a]} & {*old.slots[b]})) if kinds[a] == kinds[b] else 1e9
                for b in range(n)
            ]
            for a in range(n)
        ]
    )
    at = {b: a for a, b in enumerate(spread_evenly(cost))}
    return _reordered(new, [at[b] for b in range(n)])
