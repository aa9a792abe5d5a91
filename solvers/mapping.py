"""Blocks of ranks to nodes with unlike links, so that their communication takes least time.

A block is what one node holds. Phases of communication follow each other; a phase ends when its
slowest *row* does: a hop of a ring, a chain of a pipeline, all that a node sends or receives
(`solvers.mapping_problem` has the formula). This is a quadratic assignment problem with
bottlenecks, as in Pipette (Yim et al. 2024, arXiv:2405.18093), which anneals it. Here: orders that
follow good links as starts, then descent over swaps, reversals and rotations, many of them
evaluated at once as arrays, from the starts and again from the best after a kick (iterated local
search, Lourenco et al. 2003). The mean row, with a small weight, leads over plateaus of the maxima.
The first start is the caller's, so nothing worse comes back. `enumerate_nodes` is exact for few.
`solvers.mapping_bound` proves how far from the optimum the result can be.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.mapping_problem import Floats, Ints, Problem
from solvers.mapping_swaps import Swaps

_ALL_ORDERS = 7
"""Most nodes of which all orders are compared."""
_ALL_MOVES = 24
"""Most nodes of which all moves are tried."""
_DRAWN = 512
"""Swaps drawn together..."""
_MISSES = 4
"""...and how often without a better one; the last time, other moves are tried as well."""


@dataclass(slots=True)
class _Search:
    """The best so far, by T and then by what leads."""

    problem: Problem
    place: Ints
    seconds: float = float("inf")

    def offer(self, place: Ints) -> None:
        """Keep it if it is the best."""
        total = float(self.problem.phases(place[None]).sum())
        if total < self.seconds * (1 - 1e-12):
            self.seconds, self.place = total, place.copy()


def map_blocks(
    problem: Problem, starts: Sequence[Ints], effort: int, seed: int = 0
) -> tuple[Ints, float]:
    """(node of each block, then the idle nodes; T), never worse than any of `starts`, each of all
    nodes. `effort`: places that are evaluated, about. Equal inputs, equal result."""
    random = np.random.default_rng(seed)
    search = _Search(problem, starts[0])
    tables = np.array(starts)
    total, led = problem.seconds(tables)
    search.offer(tables[0])
    search.offer(tables[int(np.argmin(total))])
    if problem.num_nodes == 1 or not len(problem.flows.source):
        return search.place, search.seconds
    if problem.num_nodes <= _ALL_ORDERS:
        orders = np.array(list(permutations(range(problem.num_nodes))))
        search.offer(orders[int(np.argmin(problem.seconds(orders)[0]))])
        return search.place, search.seconds
    order = np.argsort(led, kind="stable")
    for index in order[: max(2, len(order) // 4)]:
        _descend(search, tables[index], random, effort)
        if problem.evaluated >= effort:
            break
    while problem.evaluated < effort:
        kicked = search.place.copy()
        for _ in range(int(random.integers(2, 5))):
            a, b = random.integers(0, len(kicked), 2)
            kicked[[a, b]] = kicked[[b, a]]
        _descend(search, kicked, random, effort)
    return search.place, search.seconds


def _descend(search: _Search, place: Ints, random: np.random.Generator, effort: int) -> None:
    """Take the best of all moves, or of many, while one is better."""
    problem, misses = search.problem, 0
    few = len(place) <= _ALL_MOVES
    swaps = None if few else Swaps(problem)
    _, led = problem.seconds(place[None])
    now = float(led[0])
    while problem.evaluated < effort and misses < (1 if few else _MISSES):
        if swaps is None or misses == _MISSES - 1:
            moved = _moves(problem, place, random)
            _, led = problem.seconds(moved)
            best = int(np.argmin(led))
            better, taken = float(led[best]), moved[best]
        else:
            swaps.move(place)
            pairs = _drawn(problem, place, random, _DRAWN)
            _, led = swaps.seconds(pairs)
            best = int(np.argmin(led))
            better, taken = float(led[best]), _swapped(place, pairs[best : best + 1])[0]
        misses += 1
        if better < now * (1 - 1e-9):
            place, now, misses = taken, better, 0
            search.offer(place)


def _moves(problem: Problem, place: Ints, random: np.random.Generator) -> Ints:
    """Places one move away, [k, n]: all of few nodes; of many, some of the blocks in the slowest
    rows with any others."""
    num = len(place)
    if num <= _ALL_MOVES:
        pairs = np.array([(a, b) for a in range(num) for b in range(a + 1, num)]).reshape(-1, 2)
        moved = [way(place, pairs) for way in (_swapped, _reversed, _rotated)]
        return np.concatenate([*moved, _rotated(place, pairs[:, ::-1])])
    pairs = _drawn(problem, place, random, _DRAWN // 8)
    return np.concatenate([_reversed(place, np.sort(pairs, axis=1)), _rotated(place, pairs)])


def _drawn(problem: Problem, place: Ints, random: np.random.Generator, number: int) -> Ints:
    """Pairs of a block in a slowest row and any other, [about number, 2]."""
    slow = _slowest_blocks(problem, place)
    pairs = np.stack([random.choice(slow, number), random.integers(0, len(place), number)], axis=1)
    return np.asarray(pairs[pairs[:, 0] != pairs[:, 1]])


def _slowest_blocks(problem: Problem, place: Ints) -> Ints:
    """Blocks of the slowest row of each phase."""
    rows = problem.rows(place[None])[0]
    ends = np.append(problem.first_of_phases, len(rows))
    worst = [int(a + np.argmax(rows[a:b])) for a, b in pairwise(ends)]
    inside = np.isin(problem.flows.row, worst)
    blocks = np.concatenate([problem.flows.source[inside], problem.flows.target[inside]])
    return np.unique(blocks)


def _swapped(place: Ints, pairs: Ints) -> Ints:
    moved = np.repeat(place[None], len(pairs), axis=0)
    k = np.arange(len(pairs))
    moved[k, pairs[:, 0]], moved[k, pairs[:, 1]] = place[pairs[:, 1]], place[pairs[:, 0]]
    return moved


def _reversed(place: Ints, pairs: Ints) -> Ints:
    """Runs from a to b the other way round."""
    at, low, high = np.arange(len(place))[None], pairs[:, :1], pairs[:, 1:]
    inside = (at >= low) & (at <= high)
    return np.asarray(place[np.where(inside, low + high - at, at)])


def _rotated(place: Ints, pairs: Ints) -> Ints:
    """The one at a moved to b, those between pushed towards a."""
    at, a, b = np.arange(len(place))[None], pairs[:, :1], pairs[:, 1:]
    ahead = (at >= a) & (at < b)
    back = (at <= a) & (at > b)
    source = np.where(ahead, at + 1, np.where(back, at - 1, at))
    return np.asarray(place[np.where(at == b, a, source)])


def chain_orders(cost: Floats, num_starts: int) -> Iterator[Ints]:
    """Orders of nodes in which each follows the one before over its best link, [n]: from several
    first nodes."""
    num = len(cost)
    both = cost + cost.T
    np.fill_diagonal(both, np.inf)
    for first in np.linspace(0, num - 1, min(num_starts, num)).astype(int):
        left = np.ones(num, dtype=np.bool_)
        order = [int(first)]
        left[first] = False
        for _ in range(num - 1):
            nearest = int(np.argmin(np.where(left, both[order[-1]], np.inf)))
            order.append(nearest)
            left[nearest] = False
        yield np.array(order)


def enumerate_nodes(counts: Sequence[int], num_units: int) -> NDArray[Any]:
    """All assignments of units to nodes with room for `counts` units each, [k, units]; two units
    on one node do not count twice."""
    rows: list[list[int]] = []
    left = list(counts)
    row: list[int] = []

    def place() -> None:
        if len(row) == num_units:
            rows.append(list(row))
            return
        for node, room in enumerate(left):
            if room:
                left[node] -= 1
                row.append(node)
                place()
                row.pop()
                left[node] += 1

    place()
    return np.array(rows, dtype=np.int64).reshape(-1, num_units)
