"""MoETuner's two integer programs and ExFlow's, corrected: baselines, and certificates where they
finish.

MoETuner (arXiv:2502.06643), first program, each layer by itself: every expert in exactly one
cluster (the paper prints at least one per cluster), clusters of equal size (its equality of memory
has no solution on real loads), and
    min max over clusters of load        instead of the sum of deviations, whose relative gap never
                                         closes near 0
Second program: clusters to ranks, a permutation y[l] per layer,
    min  sum over l of  max over (a, b) of  flow[c, d] * distance[a, b] * y[l, c, a] y[l + 1, d, b]
where the product is at least y + y' - 1.

ExFlow (arXiv:2401.08383): equally many experts per rank, most copies that stay,
    max  sum over l, e, f of flow[l, e, f] * sum over places of z,  z <= x[l, e, .], x[l + 1, f, .]
nodes first, then ranks inside each node.
"""

import numpy as np

from solvers.experts.packing import packed
from solvers.experts.problem import Floats, Ints, Problem
from solvers.experts.program import Library, Program, minimise
from solvers.experts.score import pairs
from solvers.experts.sweeps import Chain, best_owners, owners
from solvers.result import SolveResult

_LIMIT = 20.0
"""Deterministic units, or seconds, of one method."""
_FINE = 1e6
"""Steps into which the largest of numbers that are not whole is divided."""
_LARGEST = 2.0**53
"""Total up to which whole numbers are taken as they are: beyond, floats have lost their last digits
and sums soon overflow."""


def moetuner(problem: Problem, library: Library, effort: float | None) -> SolveResult[Ints]:
    """[layers, experts]: ranks. Objective and bound are those of the first program: sum over layers
    of the fullest cluster's load."""
    if problem.unlike:
        raise ValueError("MoETuner levels loads: it knows no ranks of unlike speed")
    limit = _LIMIT if effort is None else effort
    first = least_loads(problem, library, limit / 2)
    if first.value is None:
        return first
    chain = Chain(problem, "time")
    flows = [
        chain.flow(at, first.value[at], first.value[at + 1]) for at in range(problem.num_layers - 1)
    ]
    owner = first.value
    if flows:
        names = _clusters_to_ranks(np.stack(flows), chain.distance, library, limit / 2)
        owner = np.take_along_axis(names, owner, axis=1)
    return SolveResult(
        status=first.status, value=owner, objective=first.objective, bound=first.bound
    )


def least_loads(problem: Problem, library: Library, limit: float) -> SolveResult[Ints]:
    """[layers, experts]: clusters with the least sum over layers of the fullest one's load."""
    known = owners(packed(problem.counts, problem.num_ranks))
    owner, total, bound, proven = known.copy(), 0.0, 0.0, True
    for layer, load in enumerate(problem.counts):
        weights, unit = _whole(load, problem.top_k)
        program = Program()
        x = program.add((problem.num_experts, problem.num_ranks))
        top = program.add((1,), upper=int(weights.sum()), cost=1)
        for row in x:
            program.row(row, low=1, high=1)
        for column in x.T:
            program.row(column, low=problem.slots_per_rank, high=problem.slots_per_rank)
            program.row(np.r_[column, top], np.r_[weights, -1], high=0)
        start = np.eye(problem.num_ranks, dtype=np.int64)[known[layer]]
        hint = np.r_[start.ravel(), (weights @ start).max()]
        found = minimise(program, library, limit / problem.num_layers, hint)
        if found.value is not None:
            owner[layer] = found.value[x].argmax(axis=1)
        proven &= found.status == "OPTIMAL"
        bound += max(found.bound or 0.0, 0.0) * unit
        total += float(np.bincount(owner[layer], load).max())
    # Loads that were rounded prove as much as they were not.
    exactly = proven and bound >= total * (1 - 1e-9)
    return SolveResult(
        status="OPTIMAL" if exactly else "FEASIBLE", value=owner, objective=total, bound=bound
    )


def _clusters_to_ranks(flows: Floats, distance: Floats, library: Library, limit: float) -> Ints:
    """[layers, clusters]: ranks, from the second program; `flows` [layers - 1, clusters,
    clusters]."""
    ranks = len(distance)
    cost, _ = _whole(flows[:, :, :, None, None] * distance, 1)
    program = Program()
    y = program.add((len(flows) + 1, ranks, ranks))
    worst = program.add((len(flows),), upper=int(cost.max(initial=0)), cost=1)
    for line in (*y.reshape(-1, ranks), *y.transpose(0, 2, 1).reshape(-1, ranks)):
        program.row(line, low=1, high=1)
    for layer, of_layer in enumerate(cost):
        for (c, d, a, b), value in np.ndenumerate(of_layer):
            if value:
                chosen = np.array([y[layer, c, a], y[layer + 1, d, b], worst[layer]])
                program.row(chosen, np.array([value, value, -1]), high=int(value))
    same = np.tile(np.eye(ranks, dtype=np.int64), (len(y), 1, 1))
    top = [of_layer[:, :, range(ranks), :][_diagonal(ranks)].max() for of_layer in cost]
    found = minimise(program, library, limit, np.r_[same.ravel(), top])
    if found.value is None:
        return np.tile(np.arange(ranks), (len(y), 1))
    return np.asarray(found.value[y].argmax(axis=2))


def _diagonal(ranks: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Where cluster c is on rank c and cluster d on rank d."""
    c, d = (grid.ravel() for grid in np.indices((ranks, ranks)))
    return c, d, c, d


def exflow(problem: Problem, library: Library, effort: float | None) -> SolveResult[Ints]:
    """[layers, experts]: ranks. Objective and bound are hops where there is one node; with several
    nodes, both decided one after the other, None."""
    limit = _LIMIT if effort is None else effort
    flows, per = pairs(problem), problem.ranks_per_node
    known = best_owners(problem, "hops", 0, None)
    if problem.num_nodes == 1:
        return _staying(flows, problem.num_ranks, library, limit, known)
    nodes = _staying(flows, problem.num_nodes, library, limit / 2, known // per)
    if nodes.value is None:
        return nodes
    owner = nodes.value * per
    each = limit / 2 / problem.num_nodes
    for node in range(problem.num_nodes):
        mine = np.stack([np.flatnonzero(row == node) for row in nodes.value])
        inner = np.empty((len(flows), mine.shape[1], mine.shape[1]))
        for at, flow in enumerate(flows):
            inner[at] = flow[np.ix_(mine[at], mine[at + 1])]
        even = np.tile(np.arange(mine.shape[1]) * per // mine.shape[1], (len(mine), 1))
        found = _staying(inner, per, library, each, even)
        local = even if found.value is None else found.value
        np.put_along_axis(owner, mine, np.take_along_axis(owner, mine, axis=1) + local, axis=1)
    return SolveResult(status="FEASIBLE", value=owner, objective=None, bound=None)


def _staying(
    flows: Floats, num_places: int, library: Library, limit: float, known: Ints
) -> SolveResult[Ints]:
    """[layers, experts]: places between which the fewest copies move; `flows` [layers - 1, experts,
    experts]."""
    weights, unit = _whole(flows, 2)
    layers, experts = len(flows) + 1, flows.shape[1]
    program = Program()
    x = program.add((layers, experts, num_places))
    for row in x.reshape(-1, num_places):
        program.row(row, low=1, high=1)
    for column in x.transpose(0, 2, 1).reshape(-1, experts):
        program.row(column, low=experts // num_places, high=experts // num_places)
    hint = [np.eye(num_places, dtype=np.int64)[known].ravel()]
    for layer, of_layer in enumerate(weights):
        for e, f in np.argwhere(of_layer > 0):
            z = program.add((num_places,), cost=-int(of_layer[e, f]))
            both = (known[layer, e] == known[layer + 1, f]) & (
                np.arange(num_places) == known[layer, e]
            )
            hint.append(both.astype(np.int64))
            for place in range(num_places):
                for end in (x[layer, e, place], x[layer + 1, f, place]):
                    program.row(np.array([z[place], end]), np.array([1, -1]), high=0)
    found = minimise(program, library, limit, np.concatenate(hint))
    if found.value is None or found.objective is None:
        return SolveResult(status=found.status)
    owner, total = found.value[x].argmax(axis=2), float(weights.sum())
    return SolveResult(
        status=found.status,
        value=owner,
        objective=(total + found.objective) * unit,
        bound=None if found.bound is None else (total + found.bound) * unit,
    )


def _whole(values: Floats, parts: int) -> tuple[Ints, float]:
    """(whole numbers, their unit): exact where `values` are whole or multiples of 1 / parts and not
    too large, else rounded down."""
    for unit in (1.0, 1.0 / parts):
        scaled = values / unit
        exact = np.abs(scaled - np.round(scaled)).max(initial=0) < 1e-9
        if exact and scaled.sum() < _LARGEST:
            return np.round(scaled).astype(np.int64), unit
    unit = float(values.max()) / _FINE
    return np.floor(values / unit).astype(np.int64), unit
