"""Seconds of a layer's traffic from its copies: one formula for scores, solvers and bounds.

All functions take any number of cases at once, in the leading axes.
"""

import numpy as np

from solvers.experts.problem import Floats, Problem


def home_s(problem: Problem, nodes: Floats, ranks: Floats) -> Floats:
    """Seconds of dispatch and combine together.

    `nodes` [..., nodes] and `ranks` [..., ranks]: copies that each needs, wherever they come from.
    With copies "node" all of a rank's copies cross its own link inside the node, with the others
    those alone that come from the node's other ranks. Of like nodes it is what the fullest receives
    that takes longest; of unlike ones (`far_s`) also what each sends of its even share of tokens.
    """
    num, per = problem.num_nodes, problem.ranks_per_node
    by_node = problem.copies == "node"
    inside = 1.0 if by_node else (per - 1) / problem.num_ranks
    intra = (ranks * inside * np.repeat(problem.inside_s, per)).max(axis=-1)
    if num == 1:
        return np.asarray(intra)
    if problem.measured:
        entering = nodes if by_node else ranks.reshape(*ranks.shape[:-1], num, per).sum(-1)
        flow = np.broadcast_to(entering[..., None, :] / num, (*entering.shape[:-1], num, num))
        inter = (_ports_s(problem, flow) + _ports_s(problem, np.swapaxes(flow, -1, -2))) / 2
    else:
        # DeepEP spreads a node's copies over its NICs; else each rank receives its own.
        each = nodes / per if by_node else ranks
        rate = problem.between_s if by_node else np.repeat(problem.between_s, per)
        inter = (each * (num - 1) / num * rate).max(axis=-1)
        if problem.far_s is not None:
            entering = nodes if by_node else ranks.reshape(*ranks.shape[:-1], num, per).sum(-1)
            sent = (entering.sum(-1, keepdims=True) - entering) / (num * per)
            inter = np.maximum(inter, (sent * problem.far_s).max(axis=-1))
    return np.asarray(np.maximum(intra, inter))


def chained_s(problem: Problem, flow: Floats) -> Floats:
    """Seconds of `flow` [..., ranks, ranks], copies from rank to rank. Fastest where the ranks are
    the first axes in memory, as whole arrays are added up then."""
    num, per = problem.num_nodes, problem.ranks_per_node
    flow = np.moveaxis(flow, (-2, -1), (0, 1))
    took = np.zeros(flow.shape[2:])
    node = np.arange(problem.num_ranks) // per
    near = (node[:, None] == node) & ~np.eye(len(node), dtype=np.bool_)
    inside_s = problem.inside_s[node]
    for source, target in np.argwhere(near):
        took = np.maximum(took, flow[source, target] * inside_s[target])
    if num == 1:
        return np.asarray(took)
    if problem.measured:
        lead = flow.shape[2:]
        between = flow.reshape(num, per, num, per, *lead).sum(axis=(1, 3))
        return np.asarray(
            np.maximum(took, _ports_s(problem, np.moveaxis(between, (0, 1), (-2, -1))))
        )
    for rank, rate in enumerate(problem.between_s[node]):
        others = np.flatnonzero(node != node[rank])
        took = np.maximum(took, sum(flow[rank, other] for other in others) * rate)
        took = np.maximum(took, sum(flow[other, rank] for other in others) * rate)
    return np.asarray(took)


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
    return np.asarray(np.tensordot(flow, weight, axes=2))
