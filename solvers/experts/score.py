"""What a placement costs, on the problem's own tokens or on others that it was not made from."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from solvers.experts.problem import DROPPED, Floats, Placed, Problem, Score, held
from solvers.experts.traffic import chained_s, home_s, hops

_AT_ONCE = 1 << 15
"""Numbers of a layer's tokens by ranks that are worked on together, to stay in the cache."""


def score(problem: Problem, placed: Placed, ids: NDArray[np.integer] | None = None) -> Score:
    """Of all layers; with `ids` [tokens, layers, k] these are the tokens, and the loads theirs."""
    if ids is not None:
        problem = replace(problem, ids=ids, counts=count(ids, problem.num_experts))
    layers = problem.num_layers
    parts = [held(problem, placed, layer) for layer in range(layers)]
    load = np.stack([problem.counts[layer] @ parts[layer] for layer in range(layers)])
    flows = flows_of(problem, parts)
    layer_s = problem.compute_s * (load * problem.slow).max(axis=1)
    ranks = visited(problem, parts)
    nodes = visited(problem, [by_node(problem, part) for part in parts])
    if problem.traffic == "home":
        copies = load if problem.copies == "choice" else ranks
        layer_s = layer_s + home_s(problem, nodes, copies)
    else:
        layer_s[:-1] += chained_s(problem, flows)
    skew = skew_of(problem, load)
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


def times(problem: Problem, placed: Placed, below: Floats | None = None) -> Floats:
    """[layers]: the score's seconds alone, for solvers that compare many placements. Traffic "home"
    is left out, where compute alone takes `below` [layers] or more in every layer."""
    layers = range(problem.num_layers)
    parts = [held(problem, placed, layer) for layer in layers]
    load = np.stack([problem.counts[layer] @ parts[layer] for layer in layers])
    layer_s = problem.compute_s * (load * problem.slow).max(axis=1)
    if problem.traffic == "chained":
        layer_s[:-1] += chained_s(problem, flows_of(problem, parts))
        return np.asarray(layer_s)
    known = below is not None and bool((layer_s >= below).all())
    return np.asarray(layer_s if known else layer_s + _home_s(problem, parts, load))


def _home_s(problem: Problem, parts: list[Floats], load: Floats) -> Floats:
    """[layers]: seconds of traffic "home"."""
    if problem.copies == "choice":
        return home_s(problem, np.zeros((len(load), problem.num_nodes)), load)
    nodes = visited(problem, [by_node(problem, part) for part in parts])
    # No rank has more copies than load: where that takes less than the nodes' copies, it is enough.
    least = home_s(problem, nodes, np.zeros_like(load))
    if problem.copies == "node" and (home_s(problem, nodes, load) <= least).all():
        return least
    return home_s(problem, nodes, visited(problem, parts))


def best_of_layers(found: list[Placed], costs: Floats) -> Placed:
    """Of each layer the one that costs least, `costs` [placements, layers]; where layers do not
    touch each other."""
    best = costs.argmin(axis=0)
    return Placed(
        slots=np.stack([found[which].slots[layer] for layer, which in enumerate(best)]),
        shares=np.stack([found[which].shares[layer] for layer, which in enumerate(best)]),
    )


def count(ids: NDArray[np.integer], num_experts: int) -> Floats:
    """[layers, experts]: choices of each expert."""
    found = np.zeros((ids.shape[1], num_experts))
    for layer in range(ids.shape[1]):
        chosen = ids[:, layer].ravel()
        found[layer] = np.bincount(chosen[chosen != DROPPED], minlength=num_experts)
    return found


def skew_of(problem: Problem, load: Floats) -> Floats:
    """Longest time of a rank over that of level times, of [layers, ranks]; of like ranks the
    largest load over the mean. 1 where a layer has no load."""
    level = load.sum(axis=1) / (1 / problem.slow).sum()
    longest = (load * problem.slow).max(axis=1)
    return np.asarray(np.divide(longest, level, out=np.ones(len(load)), where=level > 0))


def scales(problem: Problem) -> Floats:
    """[layers]: choices in `counts` for one in `ids`; 1 where there are none."""
    seen = (problem.ids != DROPPED).sum(axis=(0, 2)).astype(float)
    total = problem.counts.sum(axis=1)
    return np.asarray(np.divide(total, seen, out=np.ones(len(seen)), where=seen > 0))


def thinned(problem: Problem, most: int) -> Problem:
    """The same with at most `most` tokens, evenly from all of them; loads stay."""
    step = -(-len(problem.ids) // most) if len(problem.ids) else 1
    return replace(problem, ids=np.ascontiguousarray(problem.ids[::step]))


def visited(problem: Problem, parts: list[Floats]) -> Floats:
    """[layers, places]: tokens that have a choice there, `parts` [experts, places] per layer.

    1 - product over the token's choices of (1 - the part of the choice's expert that is there).
    """
    found = np.empty((problem.num_layers, parts[0].shape[1]))
    scale = scales(problem)
    for layer, part in enumerate(parts):
        if len(problem.ids):
            found[layer] = scale[layer] * _touched(problem.ids[:, layer], part)
        else:
            total = max(float(problem.counts[layer].sum()), 1e-300)
            missed = (1 - problem.counts[layer] @ part / total) ** problem.top_k
            found[layer] = total / problem.top_k * (1 - missed)
    return found


def by_node(problem: Problem, part: Floats) -> Floats:
    """[experts, nodes]: of [experts, ranks]."""
    return np.asarray(part.reshape(len(part), problem.num_nodes, -1).sum(axis=2))


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
    one: Floats = np.eye(problem.num_experts)
    alone = replace(
        problem, num_ranks=problem.num_experts, ranks_per_node=1, slots_per_rank=1,
        slowdown=None, near_s=None, far_s=None,
    )  # fmt: skip
    return flows_of(alone, [one] * problem.num_layers)


def _tokens(problem: Problem) -> Floats:
    """[layers]: tokens that the counts stand for."""
    if len(problem.ids):
        return np.asarray(np.maximum(len(problem.ids) * scales(problem), 1e-300))
    return np.asarray(np.maximum(problem.counts.sum(axis=1) / problem.top_k, 1e-300))


def _touched(chosen: NDArray[np.integer], part: Floats) -> Floats:
    """[places]: expected tokens of `chosen` [tokens, k] with a choice at each, `part` [experts,
    places]."""
    missed = np.append(1 - part, np.ones((1, part.shape[1])), axis=0)
    total = np.zeros(part.shape[1])
    size = max(1, _AT_ONCE // part.shape[1])
    # -1 is the last row; indices are made valid once, as a checked look-up takes twice as long.
    chosen = np.where(chosen == DROPPED, len(part), chosen)
    for begin in range(0, len(chosen), size):
        some = np.ascontiguousarray(chosen[begin : begin + size].T.astype(np.intp))
        none = np.take(missed, some[0], axis=0, mode="clip")
        other = np.empty_like(none)
        for row in some[1:]:
            none *= np.take(missed, row, axis=0, mode="clip", out=other)
        total += len(none) - none.sum(axis=0)
    return total


def _copies(chosen: NDArray[np.integer], part: Floats) -> Floats:
    """[tokens, ranks]: expected choices of each token on each rank."""
    padded = np.append(part, np.zeros((1, part.shape[1])), axis=0)
    total = padded[chosen[:, 0]]
    for k in range(1, chosen.shape[1]):
        total += padded[chosen[:, k]]
    return np.asarray(total)
