"""How few tokens the busiest place can be visited by, in one layer, whatever the placement; places
are nodes or ranks, N of them, each with R slots.

A token of d distinct experts that visits m places has at least

    p_d(m) = q(r) + q(s) + ...  pairs of its choices in one place,  q(c) = c (c - 1) / 2,

its choices spread as evenly over the m places as they go. So for any price z >= 0 of a pair

    visits of all tokens  >=  sum over tokens of  min over m of (m + z p_d(m))  -  z * pairs inside,

m from ceil(d / R) to min(d, N), and the busiest place has 1 / N of them. What is left is how many
pairs any placement can have inside places. With A[e, f] the tokens that choose both and x[n, e] the
part of expert e at n, they are 1/2 sum over n of x[n]' A x[n] (replicas are drawn independently),
linear in each expert's parts: some placement of whole experts, at most R in a place, has as many.
Upper bounds of them:

    rows        of an expert's pairs those with the R - 1 experts that it is chosen with most;
    spectral    (Donath and Hoffman 1973, projected as by Rendl and Wolkowicz 1995) with N R - n
                experts that nobody chooses the places are full, and the scaled indicators of places
                are N orthonormal vectors whose span has the vector of ones. For any diagonal u
                    2 pairs + sum u  =  R tr(Y' (A + diag u) Y)
                                    <=  R (1' (A + diag u) 1 / (N R)  +  the N - 1 largest
                                           eigenvalues of A + diag u where it is orthogonal to 1).
                u[e] = -2 |A[e]| puts the edges of Wigner's semicircle, which differ where experts
                are not chosen equally often, at one place.

Besides, a place that takes part x of an expert chosen by c tokens is visited by x c. Without
replicas the place of the hottest expert is visited by all of its tokens, and by those that choose
the R - 1 others there without it, no one of which counts for more than min(k, R - 1) experts. With
them, for few experts, a linear program: y[e, f] = sum over n of x[n, e] x[n, f],

    min V  with  N V >= visits as above with sum of A y for the pairs,  y <= 1,
                 c[e] y[e, f] <= V,  sum over f of y[e, f] <= R - 1.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigvalsh  # type: ignore[import-untyped]
from scipy.optimize import linprog  # type: ignore[import-untyped]
from scipy.sparse import coo_array, vstack  # type: ignore[import-untyped]

from solvers.experts.coactivation import coactivation
from solvers.experts.problem import DROPPED, Floats, Ints, Problem

_MOST_IN_PROGRAM = 32
"""Experts up to which the linear program is fast enough."""
_MOST_EIGENVALUES = 16
"""Places up to which the spectral bound is worth its time."""
_SAFE = 1e-5
"""Relative tolerance of the linear program, which its bound is lowered by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The tokens of a layer as the bounds know them."""

    top_k: int
    distinct: Ints
    """[k + 1]: tokens with so many distinct experts."""
    by_expert: Floats
    """[experts]: tokens that choose it."""
    both: Floats
    """[experts, experts]: tokens that choose both; 0 on the diagonal."""


def chosen_of(problem: Problem, layer: int) -> Chosen:
    """Of `problem.ids`, not scaled up."""
    ids = np.sort(problem.ids[:, layer], axis=1)
    fresh = (np.diff(ids, axis=1, prepend=DROPPED) != 0) & (ids != DROPPED)
    return Chosen(
        top_k=problem.top_k,
        distinct=np.bincount(fresh.sum(axis=1), minlength=problem.top_k + 1),
        by_expert=np.bincount(ids[fresh], minlength=problem.num_experts).astype(float),
        both=coactivation(problem, layer),
    )


def least_busiest(chosen: Chosen, places: int, room: int, *, spectral: bool) -> float:
    """Tokens that visit the busiest of `places` with `room` slots each, at least."""
    found = mean_visits(chosen, places, room, spectral=spectral)
    experts = len(chosen.both)
    if places > 1 and places * room == experts:
        found = max(found, _of_hottest(chosen, room))
    if places > 1 and 1 < experts <= _MOST_IN_PROGRAM:
        found = max(found, _by_program(chosen, places, room, *_lines(chosen, places, room)))
    return found


def mean_visits(chosen: Chosen, places: int, room: int, *, spectral: bool) -> float:
    """Tokens that visit one of `places` with `room` slots each on average, at least."""
    if places == 1:
        return float(chosen.distinct[1:].sum())
    prices, least = _lines(chosen, places, room)
    inside = _by_rows(chosen.both, room)
    if spectral and places <= _MOST_EIGENVALUES:
        inside = min(inside, _by_eigenvalues(chosen.both, places, room))
    return float((least - prices * inside).max()) / places


def _lines(chosen: Chosen, places: int, room: int) -> tuple[Floats, Floats]:
    """([prices] of a pair, [prices] visits of all tokens and their pairs at that price, at
    least)."""
    pairs = _fewest_pairs(chosen.top_k, min(chosen.top_k, places))
    steps = -np.diff(pairs)
    prices = np.r_[0.0, 1 / np.unique(steps[steps > 0])]
    least = np.zeros(len(prices))
    for d, tokens in enumerate(chosen.distinct):
        first, last = -(-d // room), min(d, places)
        if d and tokens:
            m = np.arange(first, last + 1)
            cost = m + prices[:, None] * _fewest_pairs(d, last)[first - 1 :]
            least += tokens * cost.min(axis=1)
    return prices, least


def _fewest_pairs(choices: int, most: int) -> Floats:
    """[most]: pairs of `choices` in one place where they are in 1 .. `most` places."""
    m = np.arange(1, most + 1)
    each, more = np.divmod(choices, m)
    return np.asarray(more * each * (each + 1) / 2 + (m - more) * each * (each - 1) / 2)


def _by_rows(both: Floats, room: int) -> float:
    """Pairs inside places of `room` slots, at most."""
    others = min(room, len(both)) - 1
    if others < 1:
        return 0.0
    return float(np.partition(both, -others, axis=1)[:, -others:].sum()) / 2


def _by_eigenvalues(both: Floats, places: int, room: int) -> float:
    """The same, for all places together."""
    num, total = len(both), places * room
    spare, edge = total - num, 2 * np.sqrt((both**2).sum(axis=1))
    # One more coordinate, along which all experts that nobody chooses are equal.
    size = num + (spare > 0)
    matrix = np.zeros((size, size))
    matrix[:num, :num] = both - np.diag(edge)
    ones = np.full(size, total**-0.5)
    ones[num:] *= spare**0.5
    row = matrix @ ones
    mean = float(ones @ row)
    # Of the ones themselves the eigenvalue is moved below all others.
    below = mean - 2 * float(np.abs(matrix).sum(axis=1).max())
    matrix += below * np.outer(ones, ones) - np.outer(ones, row - mean * ones)
    matrix -= np.outer(row, ones)
    few = min(places - 1, size)
    large = eigvalsh(matrix, subset_by_index=(size - few, size - 1), driver="evx")
    # Across that coordinate they have the eigenvalue 0.
    large = np.sort(np.r_[large, np.zeros(max(0, min(spare - 1, places - 1)))])[-(places - 1) :]
    rounding = 1e-12 * size * float(np.abs(matrix).max(initial=0.0)) * places
    return float(room * (mean + large.sum() + rounding) + edge.sum()) / 2


def _of_hottest(chosen: Chosen, room: int) -> float:
    """Tokens that visit the place of the hottest expert, at least."""
    hottest = int(chosen.by_expert.argmax())
    alone = np.delete(chosen.by_expert - chosen.both[hottest], hottest)
    others = np.sort(np.maximum(alone, 0))[: room - 1].sum()
    return float(chosen.by_expert[hottest] + others / max(1, min(chosen.top_k, room - 1)))


def _by_program(chosen: Chosen, places: int, room: int, prices: Floats, least: Floats) -> float:
    """The linear program of the module's text, in units of all tokens."""
    unit, num = max(float(chosen.distinct.sum()), 1.0), len(chosen.both)
    one, two = np.triu_indices(num, 1)
    count, pair = len(one), np.arange(len(one))
    inside = np.outer(-prices, chosen.both[one, two] / unit)
    rows = [np.c_[inside, np.full(len(prices), -float(places))]]
    ends = coo_array(
        (np.ones(2 * count), (np.r_[one, two], np.r_[pair, pair])), shape=(num, count + 1)
    )
    hot = np.maximum(chosen.by_expert[one], chosen.by_expert[two]) / unit
    capped = coo_array(
        (np.r_[hot, -np.ones(count)], (np.r_[pair, pair], np.r_[pair, np.full(count, count)])),
        shape=(count, count + 1),
    )
    limit = np.r_[-least / unit, np.full(num, room - 1.0), np.zeros(count)]
    bounds = np.zeros((count + 1, 2))
    bounds[:, 1] = np.r_[np.ones(count), np.inf]
    found = linprog(
        np.r_[np.zeros(count), 1.0], vstack([*map(coo_array, rows), ends, capped]), limit,
        bounds=bounds, method="highs",
    )  # fmt: skip
    return float(found.fun) * unit * (1 - _SAFE) if found.status == 0 else 0.0
