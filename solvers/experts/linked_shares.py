"""Shares of replicas where links between nodes are unlike: load and traffic in one linear program.

    min  compute_s * L + (D + C) / 2
    L >= load of each rank by its slowdown
    D, C >= seconds of each link and port in dispatch, in combine

Homes are even, so node n takes load[n] * copies / nodes from each node, and every link and port is
linear in the loads of nodes. Copies per choice are taken as they are now: exact for copies
"choice", to first order where a token's copies are shared.
"""

import numpy as np
from scipy.optimize import linprog  # type: ignore[import-untyped]

from solvers.experts.problem import Floats, Placed, Problem, held
from solvers.experts.score import by_node, visited


def split_by_links(problem: Problem, placed: Placed) -> Placed:
    """The same slots with other shares."""
    layers = range(problem.num_layers)
    parts = [held(problem, placed, layer) for layer in layers]
    load = np.stack([problem.counts[at] @ by_node(problem, parts[at]) for at in layers])
    copies = load
    if problem.copies == "node":
        copies = visited(problem, [by_node(problem, part) for part in parts])
    elif problem.copies == "rank":
        copies = visited(problem, parts).reshape(*load.shape, -1).sum(axis=2)
    per_choice = np.divide(copies, load, out=np.ones_like(load), where=load > 0)
    shares = np.stack([_layer(problem, placed, at, per_choice[at]) for at in layers])
    return Placed(slots=placed.slots, shares=shares)


def _layer(problem: Problem, placed: Placed, layer: int, per_choice: Floats) -> Floats:
    """[slots]: of one layer."""
    slots, rank = placed.slots[layer], problem.rank_of_slot
    load, num = problem.counts[layer][slots], len(slots)
    if not load.any():
        return np.asarray(placed.shares[layer])
    on_rank = np.eye(problem.num_ranks)[rank].T * load
    on_node = on_rank.reshape(problem.num_nodes, -1, num).sum(axis=1) * per_choice[:, None]
    unit = float(load.max()) * max(problem.compute_s, 1e-300)
    taken = problem.compute_s * problem.slow[:, None] * on_rank
    blocks = [taken, *(rows @ on_node for rows in phases(problem))]
    upper = np.zeros((sum(len(block) for block in blocks), num + 3))
    begin = 0
    for which, block in enumerate(blocks):
        upper[begin : begin + len(block), :num] = block / unit
        upper[begin : begin + len(block), num + which] = -1
        begin += len(block)
    sums = np.zeros((problem.num_experts, num + 3))
    sums[slots, np.arange(num)] = 1
    cost = np.r_[np.zeros(num), 1.0, 0.5, 0.5]
    found = linprog(
        cost, upper, np.zeros(len(upper)), sums, np.ones(problem.num_experts), method="highs"
    )
    if found.status != 0:
        return np.asarray(placed.shares[layer])
    got = np.clip(found.x[:num], 0, None)
    return np.asarray(got / np.bincount(slots, got, problem.num_experts)[slots])


def phases(problem: Problem) -> tuple[Floats, Floats]:
    """([rows, nodes], [rows, nodes]): seconds of links and ports per copy that each node takes, in
    dispatch and in combine; as `traffic` has them."""
    num = problem.num_nodes
    apart, one = 1 - np.eye(num), np.eye(num)
    into = one * (num - 1) / num
    others = apart / num
    phases = []
    for entering, leaving, turned in ((into, others, False), (others, into, True)):
        rows = [np.zeros((1, num))]
        if problem.in_s is not None:
            rows.append(problem.in_s[:, None] * entering)
        if problem.out_s is not None:
            rows.append(problem.out_s[:, None] * leaving)
        if problem.pair_s is not None:
            pair = np.where(apart > 0, problem.pair_s, 0)
            # One row per link a -> n, whose copies are those that n takes.
            rows.append(((pair.T if turned else pair)[:, :, None] * one / num).reshape(-1, num))
        phases.append(np.concatenate(rows))
    return phases[0], phases[1]
