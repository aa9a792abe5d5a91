"""Which part of its expert's choices each replica takes, so that the fullest rank is least.

    min L  with  slow[r] * sum over slots of rank r of  load[expert] * share  <=  L,
           shares of an expert summing to 1,   slow 1 where ranks are alike

A linear program, exact (HiGHS in scipy); only experts in several slots are variables. What LPLB
does per batch: fast enough to be called while a run goes on, when the loads have changed and the
experts have not.
"""

import numpy as np
from scipy.optimize import linprog  # type: ignore[import-untyped]
from scipy.sparse import coo_array  # type: ignore[import-untyped]

from solvers.experts.problem import Floats, Ints


def split_shares(slots: Ints, loads: Floats, num_ranks: int, slow: Floats | None = None) -> Floats:
    """[layers, slots]: of `slots` [layers, slots] (rank-major), for `loads` [layers, experts] and
    `slow` [ranks], what each takes for the same work; None: all alike."""
    rank = np.arange(slots.shape[1]) // (slots.shape[1] // num_ranks)
    whole, slow = np.ones(loads.shape[1]), np.ones(num_ranks) if slow is None else slow
    return np.stack(
        [_layer(row, rank, load, whole, slow) for row, load in zip(slots, loads, strict=True)]
    )


def split_parts(
    slots: Ints, parts: Floats, loads: Floats, num_ranks: int, slow: Floats | None = None
) -> Floats:
    """[layers, slots]: shares where each node keeps its part of every expert, `parts` [layers,
    experts, nodes], and only divides it among its own slots."""
    slow = np.ones(num_ranks) if slow is None else slow
    layers, experts, nodes = parts.shape
    rank = np.arange(slots.shape[1]) // (slots.shape[1] // num_ranks)
    node = rank // (num_ranks // nodes)
    shares = np.empty(slots.shape)
    for layer in range(layers):
        # An expert is another one on each node.
        part = parts[layer].T.ravel()
        load = np.tile(loads[layer], nodes)
        shares[layer] = _layer(node * experts + slots[layer], rank, load, part, slow)
    return shares


def _layer(slots: Ints, rank: Ints, load: Floats, part: Floats, slow: Floats) -> Floats:
    """[slots]: shares of one layer that sum to `part` [experts]."""
    num_ranks = len(slow)
    times = np.bincount(slots, minlength=len(load))
    shares = part[slots] / times[slots]
    varies = (times[slots] > 1) & ((load * part)[slots] > 0)
    free, fixed = np.flatnonzero(varies), np.flatnonzero(~varies)
    if not len(free):
        return np.asarray(shares)
    base = np.bincount(rank[fixed], (load[slots] * shares * slow[rank])[fixed], num_ranks)
    unit = max(float((load * part).sum()) / num_ranks, 1e-300)
    many = np.unique(slots[free])
    num, column = len(free), np.arange(len(free))
    cost = np.zeros(num + 1)
    cost[-1] = 1.0
    upper = coo_array(
        (
            np.r_[(load[slots] * slow[rank])[free] / unit, -np.ones(num_ranks)],
            (np.r_[rank[free], np.arange(num_ranks)], np.r_[column, np.full(num_ranks, num)]),
        ),
        shape=(num_ranks, num + 1),
    )
    equal = coo_array(
        (np.ones(num), (np.searchsorted(many, slots[free]), column)), shape=(len(many), num + 1)
    )
    found = linprog(cost, upper, -base / unit, equal, part[many], method="highs")
    if found.status == 0:
        got = np.clip(found.x[:-1], 0, None)
        sums = np.bincount(slots[free], got, len(load))[slots[free]]
        shares[free] = got * part[slots[free]] / np.maximum(sums, 1e-300)
    return np.asarray(shares)
