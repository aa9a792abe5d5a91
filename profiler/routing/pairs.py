"""How often experts are chosen together, within a layer and from one layer to the next."""

import numpy as np
from numpy.typing import NDArray

from profiler.routing.trace import DROPPED, Ids

Floats = NDArray[np.float64]
_CHUNK = 2**16
"""Tokens looked at together, so that memory stays small."""
_SWEEPS, _CLOSE = 1000, 1e-10


def pair_counts(ids: Ids, num_experts: int) -> Floats:
    """[experts, experts], symmetric, 0 on the diagonal: tokens [n, k] with both."""
    rows, columns = np.triu_indices(ids.shape[1], 1)
    found = np.zeros(num_experts * num_experts)
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK].astype(np.int64)
        a, b = part[:, rows], part[:, columns]
        both = (a != DROPPED) & (b != DROPPED)
        found += np.bincount((a * num_experts + b)[both], minlength=len(found))
    square = found.reshape(num_experts, num_experts)
    total: Floats = square + square.T
    return total


def joint_counts(here: Ids, there: Ids, num_experts: int) -> Floats:
    """[experts, experts]: choices of tokens [n, k] here and [n, k'] there, each with each."""
    found = np.zeros(num_experts * num_experts)
    for start in range(0, len(here), _CHUNK):
        a = here[start : start + _CHUNK, :, None].astype(np.int64)
        b = there[start : start + _CHUNK, None, :].astype(np.int64)
        both = (a != DROPPED) & (b != DROPPED)
        found += np.bincount((a * num_experts + b)[both], minlength=len(found))
    return found.reshape(num_experts, num_experts)


def quasi_independent(counts: Floats) -> Floats:
    """u[a] u[b] off the diagonal, 0 on it, with the sums over rows of `counts` (symmetric, its
    diagonal 0), by iterative proportional fitting.

    One expert in more than half of all pairs has no such fit; then the closest is given.
    """
    sums = counts.sum(axis=1)
    u = sums / np.sqrt(max(float(sums.sum()), 1.0))
    for _ in range(_SWEEPS):
        others = u.sum() - u
        fitted = np.divide(sums, others, out=np.zeros_like(u), where=others > 0)
        new = np.sqrt(u * fitted)  # the geometric mean does not swing from side to side
        done = np.abs(new - u).max(initial=0.0) <= _CLOSE * max(float(u.max(initial=0.0)), 1e-300)
        u = new
        if done:
            break
    expected: Floats = np.outer(u, u)
    np.fill_diagonal(expected, 0.0)
    return expected
