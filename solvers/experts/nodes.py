"""Which part of each expert's choices each node takes: replicas on other nodes that level nodes.

Given a home node of each expert, per layer, x[e, n] = part of expert e taken by node n:

    min  compute_s * L + V
    L >= load of node n / ranks of a node        load[e] * x[e, n] moves; unlike ranks count by
                                                 1 / slowdown
    V >= traffic of node n in seconds            a token leaves the home node where e was its only
                                                 choice there, and enters n where it had none

The traffic is linear in x to first order (replicas of one token's choices are drawn independently).
A basic solution of this linear program has few x strictly between 0 and 1, not more than there are
rows, two per node, so it asks for few slots; where a node has fewer, the smallest loads stay home.
"""

import numpy as np
from scipy.optimize import linprog  # type: ignore[import-untyped]
from scipy.sparse import coo_array  # type: ignore[import-untyped]

from solvers.experts.problem import DROPPED, Floats, Ints, Problem
from solvers.experts.traffic import home_s

_LAZY = 1e-6
"""Price of moving all load, relative to the time: of equal solutions the one that moves least."""
_LEAST = 1e-3
"""Part of an expert below which a replica is not worth its slot."""


def node_parts(problem: Problem, layer: int, node: Ints, spare: Ints, scale: float) -> Floats:
    """[experts, nodes]: the part of each expert that each node takes.

    `node` [experts]: home nodes; `spare` [nodes]: slots that are free for replicas; `scale`: tokens
    that each of `problem.ids` stands for.
    """
    load, num = problem.counts[layer], problem.num_nodes
    part = np.zeros((len(load), num))
    part[np.arange(len(load)), node] = 1.0
    if num == 1 or not spare.any() or not load.any():
        return part
    level = level_load(problem, layer)
    leaving, entering, visits = _moves(problem, layer, node, scale)
    # Only from nodes that are busier than the mean to nodes that are less.
    busy = np.bincount(node, load, num) * problem.compute_s / node_speed(problem)
    busy += visits * seconds_per_visit(problem)
    gives = (busy > busy.mean())[node] & (load > 0)
    expert, to = np.nonzero(gives[:, None] & (busy <= busy.mean()) & (spare > 0))
    if not len(expert):
        return part
    x = _solved(problem, node, (expert, to), (leaving, entering, visits), load)
    for target in range(num):
        mine = np.flatnonzero((to == target) & (x > _LEAST))
        mine = mine[np.argsort(-(x * load[expert])[mine], kind="stable")]
        # What is more than a rank's load needs several slots.
        wants = np.ceil((x * load[expert])[mine] / level[target])
        kept = mine[np.cumsum(wants) <= spare[target]]
        part[expert[kept], target] = x[kept]
    away = part.sum(axis=1) - part[np.arange(len(load)), node]
    # Of what goes almost wholly nothing stays: that frees a slot.
    gone = away > 1 - _LEAST
    part[gone] /= away[gone, None]
    part[np.arange(len(load)), node] = np.where(gone, 0.0, 1 - away)
    return part


def _solved(
    problem: Problem,
    node: Ints,
    move: tuple[Ints, Ints],
    copies: tuple[Floats, Floats, Floats],
    load: Floats,
) -> Floats:
    """[moves]: part of each expert that goes to each other node, from the linear program."""
    (expert, to), (leaving, entering, visits) = move, copies
    num, count, home = problem.num_nodes, len(expert), node[expert]
    second = seconds_per_visit(problem)
    compute = problem.compute_s / node_speed(problem)
    column = np.arange(count)
    rows = np.r_[home, to, num + home, num + to, np.arange(2 * num)]
    columns = np.r_[column, column, column, column, np.full(num, count), np.full(num, count + 1)]
    values = np.r_[
        -load[expert] * compute[home],
        load[expert] * compute[to],
        -leaving[expert] * second[home],
        entering[expert, to] * second[to],
        -np.ones(2 * num),
    ]
    now = np.bincount(node, load, num) * compute
    limit = -np.r_[now, visits * second]
    unit = max(-limit.min(), 1e-300)
    cost = np.r_[_LAZY * load[expert] / load.sum(), 1.0, 1.0]
    values[: 4 * count] /= unit
    # No more leaves than there is: one more row per expert.
    rows, columns = np.r_[rows, 2 * num + expert], np.r_[columns, column]
    values = np.r_[values, np.ones(count)]
    limit = np.r_[limit / unit, np.ones(len(load))]
    matrix = coo_array((values, (rows, columns)), shape=(len(limit), count + 2))
    bounds = np.zeros((count + 2, 2))
    bounds[:count, 1], bounds[count:, 1] = 1.0, np.inf
    found = linprog(cost, matrix, limit, bounds=bounds, method="highs")
    return np.asarray(found.x[:count]) if found.status == 0 else np.zeros(count)


def node_speed(problem: Problem) -> Floats:
    """[nodes]: ranks of slowdown 1 that do as much as those of each."""
    return np.asarray((1 / problem.slow).reshape(problem.num_nodes, -1).sum(axis=1))


def level_load(problem: Problem, layer: int) -> Floats:
    """[nodes]: load of a rank of each if all ranks took equally long."""
    speed = (1 / problem.slow).reshape(problem.num_nodes, -1)
    total = float(problem.counts[layer].sum())
    return np.asarray(total / speed.sum() * speed.mean(axis=1))


def seconds_per_visit(problem: Problem) -> Floats:
    """[nodes]: traffic seconds of a copy that enters each node, its copies even over its ranks."""
    num, per = problem.num_nodes, problem.ranks_per_node
    one = np.eye(num)
    return home_s(problem, one, np.repeat(one / per, per, axis=1))


def _moves(problem: Problem, layer: int, node: Ints, scale: float) -> tuple[Floats, Floats, Floats]:
    """(copies that leave home per expert, copies that enter each node per expert, copies now)."""
    load, num = problem.counts[layer], problem.num_nodes
    if problem.copies != "node" or not len(problem.ids):
        return load, np.tile(load[:, None], num), np.bincount(node, load, num).astype(float)
    chosen = problem.ids[:, layer].astype(np.int64)
    padded = np.append(node, num)
    at = np.arange(len(chosen))[:, None] * (num + 1) + padded[chosen]
    here = np.bincount(at.ravel(), minlength=len(chosen) * (num + 1))
    alone = (here[at] == 1) & (chosen != DROPPED)
    leaving = np.bincount(chosen[alone], minlength=len(load)) * scale
    missed = here.reshape(len(chosen), num + 1)[:, :num] == 0
    entering = np.empty((len(load), num))
    for to in range(num):
        tokens = chosen[missed[:, to]]
        entering[:, to] = np.bincount(tokens[tokens != DROPPED], minlength=len(load)) * scale
    return np.asarray(leaving), entering, np.asarray((~missed).sum(axis=0) * scale)
