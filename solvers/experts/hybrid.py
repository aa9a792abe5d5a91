"""Many experts with spare slots, traffic "home": nodes first, then ranks, then shares.

1. Homes: groups keep together, as evenly over the nodes as they go (they keep their order where
   there is one per node); without groups experts that tokens choose together (`coactivation`).
   Without spare slots swaps of experts then relieve the busiest node (`home_swaps`).
2. Spare slots first go to replicas on other nodes that level load and traffic (`nodes`).
3. What is left of each node's slots goes to its experts with most load per slot, and the slots to
   ranks by longest processing time and swaps (`packing`).
4. Shares by linear program (`shares`), each node keeping its part of every expert or, where that
   is faster, without that. Of unlike ranks also with the copies of an expert on different ranks:
   how much a fast one takes of them is then free.
"""

import numpy as np
from numpy.typing import NDArray

from solvers.experts.coactivation import homes_by_coactivation
from solvers.experts.home_swaps import relieved
from solvers.experts.nodes import level_load, node_parts, node_speed
from solvers.experts.packing import longest_first, packed
from solvers.experts.problem import Floats, Ints, Placed, Problem
from solvers.experts.score import best_of_layers, scales, thinned, times
from solvers.experts.shares import split_parts, split_shares

_MOST_TOKENS = 4096
"""Tokens that the traffic of a move is counted on."""


def hybrid(problem: Problem, seed: int = 0) -> Placed:
    """The placement; any number of ranks, nodes and spare slots."""
    problem = thinned(problem, _MOST_TOKENS)
    layers, num = problem.num_layers, problem.num_nodes
    homes = home_nodes(problem, seed)
    if problem.num_slots == problem.num_experts:
        homes = relieved(problem, homes)
    scale = scales(problem)
    room = problem.slots_per_rank * problem.ranks_per_node
    parts = np.empty((layers, problem.num_experts, num))
    for layer in range(layers):
        spare = room - np.bincount(homes[layer], minlength=num) - _reserved(problem, homes, layer)
        spare = np.maximum(spare, 0)
        parts[layer] = node_parts(problem, layer, homes[layer], spare, float(scale[layer]))
    found = []
    for apart in (False, True)[: 1 + problem.unlike]:
        slots = _slots(problem, parts, apart=apart)
        kept = split_parts(slots, parts, problem.counts, problem.num_ranks, problem.slow)
        free = split_shares(slots, problem.counts, problem.num_ranks, problem.slow)
        found += [Placed(slots=slots, shares=shares) for shares in (kept, free)]
    return best_of_layers(found, np.stack([times(problem, placed) for placed in found]))


def home_nodes(problem: Problem, seed: int) -> Ints:
    """[layers, experts]: node that each expert is on."""
    groups, nodes = problem.num_groups, problem.num_nodes
    size = problem.num_experts // groups
    if groups == 1 or groups % nodes:
        return homes_by_coactivation(problem, seed)
    load = problem.counts.reshape(problem.num_layers, groups, size).sum(axis=2)
    node = np.tile(np.arange(groups) * nodes // groups, (problem.num_layers, 1))
    if groups > nodes:
        speed = node_speed(problem)
        bins = longest_first(load, nodes, speed.max() / speed)
        np.put_along_axis(
            node,
            bins.reshape(len(node), -1),
            np.repeat(np.arange(nodes), groups // nodes)[None],
            axis=1,
        )
    return np.repeat(node, size, axis=1)


def _reserved(problem: Problem, homes: Ints, layer: int) -> Ints:
    """[nodes]: slots that their own experts need, those with more load than a rank should have."""
    load = problem.counts[layer]
    level = np.maximum(level_load(problem, layer), 1e-300)[homes[layer]]
    more = np.maximum(np.ceil(load / level) - 1, 0)
    return np.bincount(homes[layer], more, problem.num_nodes).astype(np.int64)


def _slots(problem: Problem, parts: Floats, *, apart: bool) -> Ints:
    """[layers, slots]: experts of every rank, from the parts [layers, experts, nodes] of nodes;
    `apart`: copies of an expert in a node on different ranks."""
    layers, experts, nodes = parts.shape
    room = problem.slots_per_rank * problem.ranks_per_node
    load = (parts * problem.counts[..., None]).transpose(0, 2, 1).reshape(-1, experts)
    there = (parts > 0).transpose(0, 2, 1).reshape(-1, experts)
    item, slot_load = _replicated(load, there, room)
    slow = np.tile(problem.slow.reshape(nodes, -1), (layers, 1))
    per = problem.ranks_per_node
    bins = longest_first(slot_load, per, slow, item) if apart else packed(slot_load, per, slow)
    placed = np.take_along_axis(item, bins.reshape(len(item), -1), axis=1)
    return placed.reshape(layers, nodes * room)


def _replicated(load: Floats, there: NDArray[np.bool_], room: int) -> tuple[Ints, Floats]:
    """([cases, room] experts, [cases, room] load of each slot), every expert that is there at least
    once."""
    cases = np.arange(len(load))
    times = there.astype(np.int64)
    for _ in range(room - int(times.sum(axis=1).min())):
        left = times.sum(axis=1) < room
        hottest = np.where(times > 0, load / np.maximum(times, 1), -1.0).argmax(axis=1)
        times[cases[left], hottest[left]] += 1
    flat = np.repeat(np.tile(np.arange(load.shape[1]), len(load)), times.ravel())
    item = flat.reshape(len(load), room)
    return item, np.take_along_axis(load / np.maximum(times, 1), item, axis=1)
