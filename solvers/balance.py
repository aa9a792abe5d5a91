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


def balance(
    costs: Sequence[float], num_runs: int, most: Sequence[int] | None = None
) -> Stages | None:
    """Runs [first, end), none empty, of at most `most[run]` items each; None where there are fewer
    items than runs, or more than `most` allows."""
    caps = [len(costs)] * num_runs if most is None else [min(n, len(costs)) for n in most]
    if len(costs) < num_runs or sum(caps) < len(costs) or min(caps) < 1:
        return None
    sums = [0.0, *accumulate(costs)]
    low, high = max(max(costs), sums[-1] / num_runs), sums[-1]
    best = _packed(sums, caps, high)
    quick = _packed(sums, caps, low * (1 + 1e-12))
    if quick is not None:
        return quick
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = _packed(sums, caps, middle * (1 + 1e-12))
        if found is None:
            low = middle
        else:
            best, high = found, max(sums[e] - sums[f] for f, e in found)
            if high <= low * (1 + 1e-12):
                break
    return best


def _packed(sums: Sequence[float], caps: Sequence[int], limit: float) -> Stages | None:
    """Runs of at most `limit`, as full as can be from the right; None where they need more."""
    runs, end = [], len(sums) - 1
    for left in range(len(caps) - 1, -1, -1):
        full = bisect_left(sums, sums[end] - limit * (1 + 1e-15))
        first = max(full, left, end - caps[left]) if left else 0
        over = sums[end] - sums[first] > limit * (1 + 1e-9) or end - first > caps[left]
        if first >= end or over:
            return None
        runs.append((first, end))
        end = first
    return tuple(reversed(runs))
