"""Seconds of a layer's traffic from its copies: one formula for scores, solvers and bounds.

All functions take any number of cases at once, in the leading axes.
"""

import numpy as np

from solvers.experts.problem import Floats, Problem


def home_s(problem: Problem, nodes: Floats, ranks: Floats) -> Floats:
    """Seconds of dispatch and combine together.

    `nodes` [..., nodes] and `ranks` [..., ranks]: copies that each needs, wherever they come from.
    With copies "node" all of a rank's copies cross its own link inside the node, with the others
    those alone that come from the node's other ranks.
    """
    num, per = problem.num_nodes, problem.ranks_per_node
    by_node = problem.copies == "node"
    inside = 1.0 if by_node else (per - 1) / problem.num_ranks
    intra = ranks.max(axis=-1) * inside * problem.intra_s
    if num == 1:
        return np.asarray(intra)
    if problem.measured:
        entering = nodes if by_node else ranks.reshape(*ranks.shape[:-1], num, per).sum(-1)
        flow = np.broadcast_to(entering[..., None, :] / num, (*entering.shape[:-1], num, num))
        inter = (_ports_s(problem, flow) + _ports_s(problem, np.swapaxes(flow, -1, -2))) / 2
    else:
        # DeepEP spreads a node's copies over its NICs; else each rank receives its own.
        worst = nodes.max(axis=-1) / per if by_node else ranks.max(axis=-1)
        inter = worst * (num - 1) / num * problem.inter_s
    return np.asarray(np.maximum(intra, inter))


def chained_s(problem: Problem, flow: Floats) -> Floats:
    """Seconds of `flow` [..., ranks, ranks], copies from rank to rank."""
    num, per = problem.num_nodes, problem.ranks_per_node
    lead = flow.shape[:-2]
    inside = np.kron(np.eye(num), np.ones((per, per)))
    apart = inside - np.eye(problem.num_ranks)
    intra = (flow * apart).max(axis=(-1, -2)) * problem.intra_s
    if num == 1:
        return np.asarray(intra)
    if problem.measured:
        between = flow.reshape(*lead, num, per, num, per).sum(axis=(-3, -1))
        return np.asarray(np.maximum(intra, _ports_s(problem, between)))
    across = flow * (1 - inside)
    worst = np.maximum(across.sum(-1).max(-1), across.sum(-2).max(-1))
    return np.asarray(np.maximum(intra, worst * problem.inter_s))


def _ports_s(problem: Problem, flow: Floats) -> Floats:
    """Seconds of `flow` [..., nodes, nodes] over measured links: the slowest link or port."""
    flow = flow * (1 - np.eye(problem.num_nodes))
    slowest = np.zeros(flow.shape[:-2])
    if problem.pair_s is not None:
        apart = ~np.eye(problem.num_nodes, dtype=np.bool_)
        slowest = np.maximum(slowest, (flow * np.where(apart, problem.pair_s, 0)).max((-1, -2)))
    if problem.out_s is not None:
        slowest = np.maximum(slowest, (flow.sum(-1) * problem.out_s).max(-1))
    if problem.in_s is not None:
        slowest = np.maximum(slowest, (flow.sum(-2) * problem.in_s).max(-1))
    return np.asarray(slowest)


def hops(problem: Problem, flow: Floats) -> Floats:
    """Copies of `flow` [..., ranks, ranks] that change rank, those that change node twice."""
    node = np.arange(problem.num_ranks) // problem.ranks_per_node
    weight = (node[:, None] != node).astype(float) + (1 - np.eye(problem.num_ranks))
    return np.asarray((flow * weight).sum(axis=(-1, -2)))
