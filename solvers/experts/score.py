"""What a placement costs, on the problem's own tokens or on others that it was not made from."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from solvers.experts.problem import DROPPED, Floats, Placed, Problem, Score, held
from solvers.experts.traffic import chained_s, home_s, hops

_AT_ONCE = 1 << 17
"""Numbers of a layer's tokens by ranks that are worked on together, to stay in the cache."""


def score(problem: Problem, placed: Placed, ids: NDArray[np.integer] | None = None) -> Score:
    """Of all layers; with `ids` [tokens, layers, k] these are the tokens, and the loads theirs."""
    if ids is not None:
        problem = replace(problem, ids=ids, counts=count(ids, problem.num_experts))
    layers = problem.num_layers
    parts = [held(problem, placed, layer) for layer in range(layers)]
    load = np.stack([problem.counts[layer] @ parts[layer] for layer in range(layers)])
    flows = flows_of(problem, parts)
    layer_s = problem.compute_s * load.max(axis=1)
    nodes, ranks = visits(problem, parts)
    if problem.traffic == "home":
        copies = load if problem.copies == "choice" else ranks
        layer_s = layer_s + home_s(problem, nodes, copies)
    else:
        layer_s[:-1] += chained_s(problem, flows)
    skew = skew_of(load)
    tokens = _tokens(problem)
    return Score(
        max_over_mean=float(skew.mean()),
        worst_layer=float(skew.max()),
        nodes_per_token=float((nodes.sum(1) / tokens).mean()),
        ranks_per_token=float((ranks.sum(1) / tokens).mean()),
        hops=float(hops(problem, flows).sum()),
        layer_s=layer_s,
        time_s=float(layer_s.sum()),
    )


def count(ids: NDArray[np.integer], num_experts: int) -> Floats:
    """[layers, experts]: choices of each expert."""
    found = np.zeros((ids.shape[1], num_experts))
    for layer in range(ids.shape[1]):
        chosen = ids[:, layer].ravel()
        found[layer] = np.bincount(chosen[chosen != DROPPED], minlength=num_experts)
    return found


def skew_of(load: Floats) -> Floats:
    """Largest over mean of [layers, ranks]; 1 where a layer has no load."""
    mean = load.mean(axis=1)
    return np.asarray(np.divide(load.max(1), mean, out=np.ones(len(load)), where=mean > 0))


def scales(problem: Problem) -> Floats:
    """[layers]: choices in `counts` for one in `ids`; 1 where there are none."""
    seen = (problem.ids != DROPPED).sum(axis=(0, 2)).astype(float)
    total = problem.counts.sum(axis=1)
    return np.asarray(np.divide(total, seen, out=np.ones(len(seen)), where=seen > 0))


def visits(problem: Problem, parts: list[Floats]) -> tuple[Floats, Floats]:
    """([layers, nodes], [layers, ranks]): tokens that have a choice there.

    1 - product over the token's choices of (1 - the part of the choice's expert that is there).
    `parts` [experts, ranks] per layer.
    """
    nodes = np.empty((problem.num_layers, problem.num_nodes))
    ranks = np.empty((problem.num_layers, problem.num_ranks))
    scale = scales(problem)
    for layer, part in enumerate(parts):
        by_node = part.reshape(len(part), problem.num_nodes, -1).sum(axis=2)
        if len(problem.ids):
            nodes[layer] = scale[layer] * _touched(problem.ids[:, layer], by_node)
            ranks[layer] = scale[layer] * _touched(problem.ids[:, layer], part)
        else:
            total = max(problem.counts[layer].sum(), 1e-300)
            tokens = total / problem.top_k
            of = problem.counts[layer] / total
            nodes[layer] = tokens * (1 - (1 - of @ by_node) ** problem.top_k)
            ranks[layer] = tokens * (1 - (1 - of @ part) ** problem.top_k)
    return nodes, ranks


def flows_of(problem: Problem, parts: list[Floats]) -> Floats:
    """[layers - 1, ranks, ranks]: copies from rank to rank if tokens are chained."""
    num = problem.num_layers - 1
    flows = np.zeros((num, problem.num_ranks, problem.num_ranks))
    if not len(problem.ids):
        loads = [problem.counts[layer] @ part for layer, part in enumerate(parts)]
        for layer in range(num):
            total = max(loads[layer + 1].sum(), 1e-300)
            flows[layer] = np.outer(loads[layer], loads[layer + 1]) / total
        return flows
    size = max(1, _AT_ONCE // problem.num_ranks)
    for begin in range(0, len(problem.ids), size):
        ids = problem.ids[begin : begin + size]
        before = _copies(ids[:, 0], parts[0])
        for layer in range(num):
            after = _copies(ids[:, layer + 1], parts[layer + 1])
            flows[layer] += before.T @ after / problem.top_k
            before = after
    return np.asarray(flows * scales(problem)[:-1, None, None])


def pairs(problem: Problem) -> Floats:
    """[layers - 1, experts, experts]: copies from expert to expert, what `flows_of` gives where
    every expert is a rank of its own."""
    one = np.eye(problem.num_experts)
    alone = replace(problem, num_ranks=problem.num_experts, ranks_per_node=1, slots_per_rank=1)
    return flows_of(alone, [one] * problem.num_layers)


def _tokens(problem: Problem) -> Floats:
    """[layers]: tokens that the counts stand for."""
    if len(problem.ids):
        return np.maximum(len(problem.ids) * scales(problem), 1e-300)
    return np.maximum(problem.counts.sum(axis=1) / problem.top_k, 1e-300)


def _touched(chosen: NDArray[np.integer], part: Floats) -> Floats:
    """[places]: expected tokens of `chosen` [tokens, k] with a choice at each, `part` [experts,
    places]."""
    missed = np.append(1 - part, np.ones((1, part.shape[1])), axis=0)
    total = np.zeros(part.shape[1])
    size = max(1, _AT_ONCE // part.shape[1])
    for begin in range(0, len(chosen), size):
        some = chosen[begin : begin + size]
        none = missed[some[:, 0]]
        for k in range(1, some.shape[1]):
            none *= missed[some[:, k]]
        total += (1 - none).sum(axis=0)
    return total


def _copies(chosen: NDArray[np.integer], part: Floats) -> Floats:
    """[tokens, ranks]: expected choices of each token on each rank."""
    padded = np.append(part, np.zeros((1, part.shape[1])), axis=0)
    total = padded[chosen[:, 0]]
    for k in range(1, chosen.shape[1]):
        total += padded[chosen[:, k]]
    return np.asarray(total)
