"""Proven optima for few experts and ranks: all balanced assignments of each layer.

home     Layers do not touch each other: the best assignment of each, from tables over subsets of
         experts (copies of a place = tokens not wholly outside its subset; a sum over supersets).
chained  Dynamic programming over layers, states = assignments:
             best[l, b] = load_cost(l, b) + min over a of  best[l - 1, a] + link_cost(l - 1, a, b)

The cost does not change when equal ranks of a node, or equal nodes, change their names in all
layers at once (equally fast ones). So best[l, .] is needed of one assignment a of each orbit alone,
against every b; and an `a` is left out where even the lightest later layers lift it above a known
placement.
One slot per expert. 8 experts on 4 ranks are 2520 assignments, 315 (two nodes) or 105 orbits.
"""

from itertools import combinations, permutations, product

import numpy as np

from solvers.experts.bounds import link_bounds
from solvers.experts.problem import DROPPED, Floats, Ints, Placed, Problem
from solvers.experts.score import scales
from solvers.experts.sweeps import Chain, best_owners, placed_of
from solvers.experts.traffic import home_s

MOST_EXPERTS, MOST_RANKS = 8, 4
_AT_ONCE = 1 << 15
"""Transitions evaluated together."""


def fits(problem: Problem) -> bool:
    """Whether the exact methods are for problems of this size."""
    small = problem.num_experts <= MOST_EXPERTS and problem.num_ranks <= MOST_RANKS
    return small and problem.num_slots == problem.num_experts


def exact(problem: Problem, objective: str, seed: int = 0) -> Placed:
    """An optimum; ValueError where the problem is too large."""
    if not fits(problem):
        raise ValueError(
            f"exact placement is for at most {MOST_EXPERTS} experts on {MOST_RANKS} ranks, "
            "one slot each"
        )
    states = assignments(problem.num_experts, problem.num_ranks)
    if objective == "load" or (objective == "time" and problem.traffic == "home"):
        return placed_of(problem, states[_by_layer(problem, objective, states)])
    return placed_of(problem, _chain(problem, objective, states, seed))


def assignments(num_experts: int, num_ranks: int) -> Ints:
    """[states, experts]: every way to give each rank equally many experts."""
    room, found = num_experts // num_ranks, [np.full(num_experts, -1)]
    for rank in range(num_ranks):
        longer = []
        for partial in found:
            free = np.flatnonzero(partial < 0)
            for mine in combinations(free, room):
                full = partial.copy()
                full[list(mine)] = rank
                longer.append(full)
        found = longer
    return np.stack(found)


def _by_layer(problem: Problem, objective: str, states: Ints) -> Ints:
    """[layers]: the best state of each layer by itself."""
    eye = np.eye(problem.num_ranks)[states]
    load = np.einsum("le,ser->lsr", problem.counts, eye)
    if objective == "load":
        return np.asarray((load * problem.slow).max(axis=2).argmin(axis=1))
    cost = problem.compute_s * (load * problem.slow).max(axis=2)
    if problem.copies == "choice":
        none = np.zeros((1, problem.num_nodes))
        return np.asarray((cost + home_s(problem, none, load)).argmin(axis=1))
    bit = 1 << np.arange(problem.num_experts)
    ranks = np.einsum("ser,e->sr", eye, bit).astype(np.int64)
    nodes = ranks.reshape(len(states), problem.num_nodes, -1).sum(axis=2)
    best = np.empty(problem.num_layers, np.int64)
    for layer in range(problem.num_layers):
        touched = _touched_subsets(problem, layer)
        took = cost[layer] + home_s(problem, touched[nodes], touched[ranks])
        best[layer] = took.argmin()
    return best


def _touched_subsets(problem: Problem, layer: int) -> Floats:
    """[2 ** experts]: tokens with a choice among each subset of experts."""
    num, experts = len(problem.ids), problem.num_experts
    subsets = np.arange(1 << experts)
    if not num:
        total = max(float(problem.counts[layer].sum()), 1e-300)
        inside = ((subsets[:, None] >> np.arange(experts)) & 1) @ problem.counts[layer] / total
        tokens = total / problem.top_k
        return np.asarray(tokens * (1 - (1 - inside) ** problem.top_k))
    chosen = problem.ids[:, layer].astype(np.int64)
    bits = np.where(chosen == DROPPED, 0, 1 << np.maximum(chosen, 0))
    within = np.bincount(np.bitwise_or.reduce(bits, axis=1), minlength=1 << experts).astype(float)
    for e in range(experts):
        has = subsets[(subsets >> e) & 1 == 1]
        within[has] += within[has ^ (1 << e)]
    # Tokens wholly within the complement do not touch the subset.
    return np.asarray((num - within[::-1]) * scales(problem)[layer])


def _chain(problem: Problem, objective: str, states: Ints, seed: int) -> Ints:
    """[layers, experts]: owners of the best chain."""
    chain = Chain(problem, objective)
    known = chain.cost(best_owners(problem, objective, seed, 6))
    orbit = _orbits(problem, objective, states)
    firsts, member = np.unique(orbit, return_inverse=True)
    eye = np.eye(problem.num_ranks)[states]
    load = chain.load_cost(np.einsum("le,ser->lsr", problem.counts, eye))
    later = load.min(axis=1) + np.append(0.0, link_bounds(problem, objective))
    lightest = np.append(np.cumsum(later[::-1])[::-1], 0.0)
    best, before, where = load[0][firsts], [], []
    for layer in range(problem.num_layers - 1):
        # Those that can still be part of an optimum.
        open_ = np.flatnonzero(best + lightest[layer + 1] <= known * (1 + 1e-9))
        least, came = _step(chain, layer, eye, firsts[open_], best[open_])
        # The best of an orbit, under whichever names it was reached.
        by_orbit = np.lexsort((least, member))
        where.append(by_orbit[np.searchsorted(member[by_orbit], np.arange(len(firsts)))])
        best = least[where[-1]] + load[layer + 1][firsts]
        before.append(member[came])
    return _traced(states, firsts, int(best.argmin()), where, before)


def _traced(states: Ints, firsts: Ints, last: int, where: list[Ints], before: list[Ints]) -> Ints:
    """[layers, experts]: from the best last orbit back. Each step was found from the first member
    of an orbit to a member under other names, which the layers after it then take."""
    owner, orbit = [states[firsts[last]]], last
    for reached, came in zip(reversed(where), reversed(before), strict=True):
        state = int(reached[orbit])
        renamed = np.empty(int(states.max()) + 1, np.int64)
        renamed[owner[0]] = states[state]
        owner = [renamed[row] for row in owner]
        orbit = int(came[state])
        owner.insert(0, states[firsts[orbit]])
    return np.stack(owner)


def _orbits(problem: Problem, objective: str, states: Ints) -> Ints:
    """[states]: the first state of each one's orbit."""
    ranks, per = problem.num_ranks, problem.ranks_per_node
    unlike = problem.measured and objective == "time"
    nodes = [tuple(range(problem.num_nodes))] if unlike else permutations(range(problem.num_nodes))
    digits = ranks ** np.arange(states.shape[1])
    index = {int(code): at for at, code in enumerate(states @ digits)}
    lowest = np.full(len(states), np.iinfo(np.int64).max)
    for order in nodes:
        for inside in product(permutations(range(per)), repeat=problem.num_nodes):
            names = [
                node * per + rank for node, own in zip(order, inside, strict=True) for rank in own
            ]
            if objective == "hops" or _alike(problem, np.array(names)):
                lowest = np.minimum(lowest, np.array(names)[states] @ digits)
    return np.array([index[int(code)] for code in lowest])


def _alike(problem: Problem, names: Ints) -> bool:
    """Whether ranks that take each other's names are equally fast, inside and in links."""
    per = problem.ranks_per_node
    links = (np.repeat(each, per) for each in (problem.inside_s, problem.between_s))
    return all((each == each[names]).all() for each in (problem.slow, *links))


def _step(chain: Chain, layer: int, eye: Floats, open_: Ints, best: Floats) -> tuple[Floats, Ints]:
    """From the states `open_`, which cost `best` so far: ([states] least cost of each next state,
    [states] the state before it)."""
    least, came = np.full(len(eye), np.inf), np.zeros(len(eye), np.int64)
    # out[r, a, e]: copies from rank r under a to expert e.
    out = np.einsum("aer,ef->raf", eye[open_], chain.pairs[layer])
    after = np.ascontiguousarray(eye.transpose(2, 1, 0))
    size = max(1, _AT_ONCE // len(eye))
    for begin in range(0, len(open_), size):
        # [from, to, a, b], of which the cost wants the ranks last.
        flow = np.matmul(out[:, None, begin : begin + size], after[None])
        cost = chain.link_cost(np.moveaxis(flow, (0, 1), (-2, -1)))
        cost += best[begin : begin + size, None]
        mine = cost.argmin(axis=0)
        took = cost[mine, np.arange(len(eye))]
        better = took < least
        least[better], came[better] = took[better], open_[begin + mine[better]]
    return least, came
