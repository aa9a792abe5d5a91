"""Consecutive items to runs so that the largest sum is least: fast, for many calls.

The least maximum is found by bisection on the answer: greedy packing from the right tells in one
pass whether a limit holds (each run takes items while they fit, and leaves one for every run before
it). Packing from the right leaves what is over to the first runs, which in a pipeline hold most
activations. Equal to `solvers.partition` without caps (tested); that one also obeys caps.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from solvers.partition import Stages

STEPS = 48
"""Halvings of the interval: more than the bits of its relative precision in practice."""


def balance(costs: Sequence[float], num_runs: int) -> Stages | None:
    """Runs [first, end), none empty; None where there are fewer items than runs."""
    if len(costs) < num_runs:
        return None
    sums = [0.0, *accumulate(costs)]
    low, high = max(max(costs), sums[-1] / num_runs), sums[-1]
    best = _packed(sums, num_runs, high)
    quick = _packed(sums, num_runs, low * (1 + 1e-12))
    if quick is not None:
        return quick
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = _packed(sums, num_runs, middle * (1 + 1e-12))
        if found is None:
            low = middle
        else:
            best, high = found, max(sums[e] - sums[f] for f, e in found)
            if high <= low * (1 + 1e-12):
                break
    return best


def _packed(sums: Sequence[float], num_runs: int, limit: float) -> Stages | None:
    """Runs of at most `limit`, as full as can be from the right; None where they need more."""
    runs, end = [], len(sums) - 1
    for left in range(num_runs - 1, -1, -1):
        first = max(bisect_left(sums, sums[end] - limit * (1 + 1e-15)), left)
        if left == 0:
            first = 0
        if first >= end or sums[end] - sums[first] > limit * (1 + 1e-9):
            return None
        runs.append((first, end))
        end = first
    return tuple(reversed(runs))
