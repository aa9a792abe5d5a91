"""Homes of experts so that a token's choices lie on few nodes: balanced clusters of co-activation.

    max  sum over pairs of experts on one node of  tokens that choose both,   equally many per node

Rounds of linear assignment, each expert to the node that it shares most tokens with (as balanced
k-means with this kernel), from several random starts; then swaps of two experts while one gains
(Kernighan and Lin 1970, one swap at a time).
"""

import numpy as np

from solvers.experts.problem import DROPPED, Floats, Ints, Problem
from solvers.matching import spread_evenly

_STARTS = 2
_ROUNDS = 12
_MOST_SWAPS = 400


def coactivation(problem: Problem, layer: int) -> Floats:
    """[experts, experts]: tokens that choose both; 0 on the diagonal."""
    num, k = problem.num_experts, problem.top_k
    # Dropped choices are one expert more, which is cut off.
    chosen = np.array(problem.ids[:, layer].T, np.int64, order="C")
    chosen[chosen == DROPPED] = num
    both = np.zeros((num + 1) ** 2)
    for a in range(k - 1):
        pair = chosen[a] * (num + 1) + chosen[a + 1 :]
        both += np.bincount(pair.ravel(), minlength=len(both))
    both = both.reshape(num + 1, num + 1)[:num, :num]
    both = both + both.T
    np.fill_diagonal(both, 0)
    return both


def homes_by_coactivation(problem: Problem, seed: int) -> Ints:
    """[layers, experts]: nodes; without tokens or with one node, consecutive experts."""
    nodes, experts = problem.num_nodes, problem.num_experts
    plain = np.arange(experts) * nodes // experts
    homes = np.tile(plain, (problem.num_layers, 1))
    if nodes == 1 or not len(problem.ids):
        return homes
    rng = np.random.default_rng(seed)
    for layer in range(problem.num_layers):
        both = coactivation(problem, layer)
        # Popular experts go with all others: what tells is what exceeds that.
        degree = both.sum(axis=1)
        excess = both - np.outer(degree, degree) / max(degree.sum(), 1e-300)
        np.fill_diagonal(excess, 0)
        starts = [plain] + [rng.permutation(plain) for _ in range(_STARTS)]
        found = [_swapped(both, _assigned(excess, start, nodes), nodes) for start in starts]
        homes[layer] = max(found, key=lambda node: _inside(both, node))
    return homes


def _inside(both: Floats, node: Ints) -> float:
    return float(both[node[:, None] == node].sum())


def _assigned(excess: Floats, node: Ints, nodes: int) -> Ints:
    """[experts]: after rounds of assignment, the best on the way."""
    best, best_inside = node, _inside(excess, node)
    for _ in range(_ROUNDS):
        with_node = excess @ np.eye(nodes)[node]
        node = np.array(spread_evenly(-with_node))
        inside = _inside(excess, node)
        if inside <= best_inside:
            break
        best, best_inside = node, inside
    return best


def _swapped(both: Floats, node: Ints, nodes: int) -> Ints:
    """[experts]: after swaps while one gains."""
    node, with_node = node.copy(), both @ np.eye(nodes)[node]
    for _ in range(_MOST_SWAPS):
        gain = with_node[:, node] - with_node[np.arange(len(node)), node][:, None]
        gain = gain + gain.T - 2 * both
        gain[node[:, None] == node] = 0
        at = int(gain.argmax())
        a, b = divmod(at, len(node))
        if gain[a, b] <= 0:
            break
        change = both[:, b] - both[:, a]
        with_node[:, node[a]] += change
        with_node[:, node[b]] -= change
        node[a], node[b] = node[b], node[a]
    return node
