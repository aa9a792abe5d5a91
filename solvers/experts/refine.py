"""Traffic "home": swaps of two slots of different ranks while the true cost of a layer falls.

Whatever the layer came from, here links that are unlike count, and tokens that a swap brings
together or apart. All swaps of a layer are evaluated at once: after expert e in place P (a rank, or
a node) has given way to f, the tokens that visit P are

    visits - tokens where e was the only expert in P + tokens of f with no expert in P
           + tokens of f where e was the only expert in P

which holds with one slot per expert. With replicas, whose tokens are drawn, it is copies "choice"
alone that is refined: there a rank's copies are its load.
"""

import numpy as np

from solvers.experts.problem import DROPPED, Floats, Ints, Placed, Problem
from solvers.experts.score import scales, thinned
from solvers.experts.traffic import home_s

MOST_SLOTS = 64
"""Slots up to which it is worth its time."""
_MOST_TOKENS = 2048
_MOST_SWAPS = 200
_SAME = 1e-9


def refines(problem: Problem) -> bool:
    """Whether swaps are tried for such problems."""
    single = problem.num_slots == problem.num_experts and len(problem.ids) > 0
    small = problem.num_slots <= MOST_SLOTS and problem.num_ranks > 1
    return small and problem.traffic == "home" and (single or problem.copies == "choice")


def refined(problem: Problem, placed: Placed) -> Placed:
    """After swaps, layer by layer; the tokens of large traces are thinned out."""
    problem = thinned(problem, _MOST_TOKENS)
    slots, shares = placed.slots.copy(), placed.shares.copy()
    for layer, scale in enumerate(scales(problem)):
        chosen = problem.ids[:, layer].astype(np.int64)
        swaps = _Swaps(problem, problem.counts[layer], chosen, float(scale))
        order = swaps.all(slots[layer], shares[layer])
        slots[layer], shares[layer] = slots[layer][order], shares[layer][order]
    return Placed(slots=slots, shares=shares)


class _Swaps:
    """Of one layer."""

    def __init__(self, problem: Problem, count: Floats, chosen: Ints, unit: float) -> None:
        self.problem, self.count, self.unit = problem, count, unit
        has = np.zeros((len(chosen), problem.num_experts + 1), np.float32)
        has[np.arange(len(chosen))[:, None], np.where(chosen == DROPPED, -1, chosen)] = 1
        self.has = np.ascontiguousarray(has[:, :-1])
        self.rank = problem.rank_of_slot
        one, two = np.triu_indices(problem.num_slots, 1)
        apart = self.rank[one] != self.rank[two]
        self.one, self.two = one[apart], two[apart]

    def all(self, slots: Ints, shares: Floats) -> Ints:
        """[slots]: the slot whose content each takes over, after swaps while one helps."""
        order = np.arange(len(slots))
        weight = self.count[slots] * shares
        for _ in range(_MOST_SWAPS):
            cost, now = self._costs(slots[order], weight[order])
            best = int(cost.argmin())
            if cost[best] >= now * (1 - _SAME):
                break
            a, b = self.one[best], self.two[best]
            order[a], order[b] = order[b], order[a]
        return order

    def _costs(self, slots: Ints, weight: Floats) -> tuple[Floats, float]:
        """([swaps] seconds after each, seconds now)."""
        problem, ranks = self.problem, self.problem.num_ranks
        eye = np.eye(ranks)
        moves = eye[self.rank[self.two]] - eye[self.rank[self.one]]
        load = np.bincount(self.rank, weight, ranks)
        loads = load + moves * (weight[self.one] - weight[self.two])[:, None]
        # The last row is the present.
        loads = np.append(loads, load[None], axis=0)
        nodes = np.zeros((len(loads), problem.num_nodes))
        copies = loads
        if problem.copies != "choice":
            copies = self._visits(slots, self.rank, ranks)
        if problem.copies == "node":
            nodes = self._visits(slots, self.rank // problem.ranks_per_node, problem.num_nodes)
        cost = problem.compute_s * (loads * problem.slow).max(axis=1)
        cost += home_s(problem, nodes, copies)
        return cost[:-1], float(cost[-1])

    def _visits(self, slots: Ints, place: Ints, num: int) -> Floats:
        """[swaps + 1, places]: tokens that visit each after each swap, and now."""
        has = self.has[:, slots]
        here = has @ np.eye(num, dtype=np.float32)[place]
        alone = has * (here[:, place] == 1)
        leaving, entering = alone.sum(axis=0), has.T @ (here == 0).astype(np.float32)
        back = alone.T @ has
        visits = np.tile((here > 0).sum(axis=0).astype(float), (len(self.one) + 1, 1))
        row = np.arange(len(self.one))
        other = place[self.one] != place[self.two]
        for mine, its in ((self.one, self.two), (self.two, self.one)):
            change = entering[its, place[mine]] - leaving[mine] + back[mine, its]
            visits[row, place[mine]] += np.where(other, change, 0.0)
        return visits * self.unit
