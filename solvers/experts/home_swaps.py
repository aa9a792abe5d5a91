"""Homes of experts on nodes: swaps of two experts while they relieve the node that most tokens
visit, for traffic "home" with copies "node".

Groups that keep together are visited by unlike numbers of tokens, and the busiest node is what all
wait for. Each swap is of an expert there with one elsewhere, of all such the one that leaves least

    compute_s * (fullest node's load per rank, at least what `load_bound` leaves to the fullest
    rank)  +  (mean over nodes of (seconds of its visits) ** p) ** (1 / p),

p = 32: nearly the busiest node's seconds, but of two swaps that relieve it as much the one that
burdens the others less, and one that burdens a node near the top does not end the search.

Visits after a swap are exact. After expert e in node P has given way to f, P is visited by

    visits - tokens where e was the only expert in P + tokens of f with no expert in P
           + tokens of f where e was the only expert in P

and the tables that say so change by the tokens of e and f alone. `refine` has the same formula for
slots of ranks, with tables made anew for each swap.
"""

import numpy as np

from solvers.experts.bounds import load_bound
from solvers.experts.nodes import node_speed, seconds_per_visit
from solvers.experts.problem import DROPPED, Floats, Ints, Problem
from solvers.experts.score import scales

_MOST_SWAPS = 200
_SAME = 1e-9
_SQUARINGS = 5
"""p = 2 ** 5."""


def relieved(problem: Problem, homes: Ints) -> Ints:
    """[layers, experts]: nodes after swaps, from `homes` [layers, experts]; each node keeps as many
    experts as it had."""
    if problem.copies != "node" or problem.num_nodes == 1 or not len(problem.ids):
        return homes
    seconds, least = seconds_per_visit(problem), load_bound(problem)
    scale = scales(problem)
    return np.stack(
        [
            _Homes(problem, layer, homes[layer]).swapped(scale[layer] * seconds, least[layer])
            for layer in range(problem.num_layers)
        ]
    )


class _Homes:
    """Of one layer. A choice that was dropped, or is in a token twice, is expert `num` on a node
    of its own."""

    def __init__(self, problem: Problem, layer: int, node: Ints) -> None:
        num, nodes = problem.num_experts, problem.num_nodes
        self.problem, self.load, self.speed = problem, problem.counts[layer], node_speed(problem)
        chosen = np.sort(problem.ids[:, layer].astype(np.int64), axis=1)
        again = np.diff(chosen, axis=1, prepend=DROPPED) == 0
        self.chosen = np.where(again | (chosen == DROPPED), num, chosen)
        self.node = np.append(node, nodes)
        self.tokens = np.bincount(self.chosen.ravel(), minlength=num + 1)
        self.visits = np.zeros(nodes + 1, np.int64)
        self.alone = np.zeros(num + 1, np.int64)
        """[experts + 1]: tokens in which it is the only expert of its node."""
        self.beside = np.zeros((num + 1, nodes + 1), np.int64)
        """[experts + 1, nodes + 1]: tokens that choose it and visit the node."""
        self.both = np.zeros((num + 1, num + 1), np.int64)
        """[experts + 1, experts + 1]: tokens in which the first is the only expert of its node and
        which choose the second."""
        self._add(self.chosen, 1)

    def swapped(self, seconds: Floats, least: float) -> Ints:
        """[experts]: nodes after swaps while one helps, the best on the way. `seconds` [nodes] of
        one token's visit, `least`: load of the fullest rank, at least."""
        best, best_s = self.node[:-1].copy(), np.inf
        for _ in range(_MOST_SWAPS):
            load = self._load()
            now_s = self.problem.compute_s * max(least, float(load.max()))
            now_s += float((self.visits[:-1] * seconds).max())
            if now_s < best_s:
                best, best_s = self.node[:-1].copy(), now_s
            mine, others, gain = self._gains(seconds, load, least)
            at = int(gain.argmax())
            if gain.flat[at] <= now_s * _SAME:
                break
            self._swap(mine[at // len(others)], others[at % len(others)])
        return best

    def _load(self) -> Floats:
        """[nodes]: load per rank, of one that is not slow."""
        load = np.bincount(self.node[:-1], self.load, self.problem.num_nodes)
        return np.asarray(load / self.speed)

    def _gains(self, seconds: Floats, load: Floats, least: float) -> tuple[Ints, Ints, Floats]:
        """(experts of the busiest node, all others, [mine, others] seconds that a swap saves)."""
        node, took = self.node[:-1], self.visits[:-1] * seconds
        at = int(took.argmax())
        mine, others = np.flatnonzero(node == at), np.flatnonzero(node != at)
        e, f, to = mine[:, None], others[None, :], node[others]
        here = self.visits[at] - self.alone[e] + self.both[e, f]
        here = here + (self.tokens - self.beside[:, at])[f]
        there = self.visits[to] - self.alone[f] + self.both[f, e]
        there = there + self.tokens[e] - self.beside[e, to]
        unit = max(float(took[at]), 1e-300)
        sharp = _raised(took / unit)
        after = _raised(here * seconds[at] / unit) + _raised(there * seconds[to] / unit)
        after += np.maximum(sharp.sum() - sharp[at] - sharp[to], 0)
        saved = (
            unit
            * (_lowered(np.asarray(sharp.sum())) - _lowered(after))
            / len(took) ** (0.5**_SQUARINGS)
        )
        moved = self.load[e] - self.load[f]
        fullest = np.maximum(load[at] - moved / self.speed[at], load[to] + moved / self.speed[to])
        fullest = np.maximum(fullest, np.maximum(least, _without(load, at)[to]))
        more = fullest - max(least, float(load.max()))
        return mine, others, saved - self.problem.compute_s * more

    def _swap(self, one: int, two: int) -> None:
        rows = self.chosen[((self.chosen == one) | (self.chosen == two)).any(axis=1)]
        self._add(rows, -1)
        self.node[one], self.node[two] = self.node[two], self.node[one]
        self._add(rows, 1)

    def _add(self, chosen: Ints, sign: int) -> None:
        """Counts tokens [tokens, k] in the tables, or takes them out."""
        size, places = self.both.shape[0], len(self.visits)
        row = np.arange(len(chosen))[:, None] * places
        at = row + self.node[chosen]
        here = np.bincount(at.ravel(), minlength=len(chosen) * places)
        token, slot = np.nonzero(here[at] == 1)
        first = chosen[token, slot]
        self.alone += sign * np.bincount(first, minlength=size)
        pair = (first[:, None] * size + chosen[token]).ravel()
        self.both += sign * np.bincount(pair, minlength=size * size).reshape(size, size)
        visitor, place = np.nonzero(here.reshape(-1, places))
        self.visits += sign * np.bincount(place, minlength=places)
        visit = (chosen[visitor] * places + place[:, None]).ravel()
        counted = np.bincount(visit, minlength=size * places)
        self.beside += sign * counted.reshape(size, places)


def _raised(values: Floats) -> Floats:
    """To the power p; by squarings, which take a tenth of the time."""
    for _ in range(_SQUARINGS):
        values = values * values
    return values


def _lowered(values: Floats) -> Floats:
    """The p-th root."""
    for _ in range(_SQUARINGS):
        values = np.asarray(np.sqrt(values))
    return values


def _without(values: Floats, at: int) -> Floats:
    """[places]: the largest of all but `at` and each."""
    left = np.tile(values, (len(values), 1))
    np.fill_diagonal(left, -np.inf)
    left[:, at] = -np.inf
    return np.asarray(left.max(axis=1))
