"""Placements to compare with, which look at no tokens: contiguous, round-robin; and EPLB's.

EPLB (DeepSeek's expert-parallel load balancer, from the description in its README): groups of
experts go to nodes by longest processing time; in each node the expert with most load per replica
gets the next spare slot; the replicas go to the node's ranks by longest processing time. Global:
the same with one group and one node. Shares are even. Checked on its published example (tests).
"""

import numpy as np

from solvers.experts.packing import longest_first, per_slot, replicated
from solvers.experts.problem import Floats, Ints, Placed, Problem, even_shares


def contiguous(problem: Problem) -> Placed:
    """Consecutive experts on each rank, one more on some where they do not divide; spare slots are
    copies of the first experts."""
    ranks, experts, slots = problem.num_ranks, problem.num_experts, problem.num_slots
    owner = np.arange(experts) * ranks // experts
    return _filled(problem, owner, slots - experts)


def round_robin(problem: Problem) -> Placed:
    """Expert e on rank e mod ranks; spare slots are copies of the first experts."""
    owner = np.arange(problem.num_experts) % problem.num_ranks
    return _filled(problem, owner, problem.num_slots - problem.num_experts)


def eplb(problem: Problem, *, hierarchical: bool) -> Placed:
    """EPLB's placement. Hierarchical needs groups that divide over the nodes, else ValueError."""
    weights = problem.counts
    if not hierarchical:
        slots = _in_nodes(weights, problem.num_ranks, problem.slots_per_rank)
        return Placed(slots=slots, shares=even_shares(slots, problem.num_experts))
    groups, nodes = problem.num_groups, problem.num_nodes
    if groups % nodes:
        raise ValueError(f"{groups} groups do not divide over {nodes} nodes")
    layers, size = len(weights), problem.num_experts // groups
    group_load = weights.reshape(layers, groups, size).sum(axis=2)
    # One group per node needs no packing: they keep their order.
    of_node = (
        np.tile(np.arange(groups)[:, None], (layers, 1, 1))
        if groups == nodes
        else longest_first(group_load, nodes)
    )
    experts = (of_node[..., None] * size + np.arange(size)).reshape(layers * nodes, -1)
    layer = np.repeat(np.arange(layers), nodes)[:, None]
    local = _in_nodes(weights[layer, experts], problem.ranks_per_node, problem.slots_per_rank)
    slots = np.take_along_axis(experts, local, axis=1).reshape(layers, problem.num_slots)
    return Placed(slots=slots, shares=even_shares(slots, problem.num_experts))


def _in_nodes(weights: Floats, num_ranks: int, slots_per_rank: int) -> Ints:
    """[cases, slots]: replicas, then their ranks."""
    item = replicated(weights, num_ranks * slots_per_rank)
    load = per_slot(weights, item)
    # Ranks of one slot need no packing: the replicas keep their order.
    if slots_per_rank == 1:
        return item
    bins = longest_first(load, num_ranks).reshape(len(weights), -1)
    return np.take_along_axis(item, bins, axis=1)


def _filled(problem: Problem, owner: Ints, spare: int) -> Placed:
    """Experts with their owners [experts], and copies of the first ones in what is left."""
    again = np.arange(spare) % problem.num_experts
    room = problem.slots_per_rank - np.bincount(owner, minlength=problem.num_ranks)
    rank = np.concatenate([owner, np.repeat(np.arange(problem.num_ranks), room)])
    expert = np.concatenate([np.arange(problem.num_experts), again])
    slots = np.tile(expert[np.argsort(rank, kind="stable")], (problem.num_layers, 1))
    return Placed(slots=slots, shares=even_shares(slots, problem.num_experts))
