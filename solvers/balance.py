"""Consecutive items to runs so that the largest sum is least: fast, for many calls.

The least maximum is found by bisection on the answer: greedy packing from the right tells in one
pass whether a limit holds (each run takes items while they fit, and leaves one for every run before
it), and where not, which larger limit is the next that could: few passes for items of few sizes.
Packing from the right leaves what is over to the first runs, which in a pipeline hold most
activations. Equal to `solvers.partition` without caps (tested); that one also obeys caps.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from solvers.partition import Stages

SAME = 1e-12
"""Relative difference of two sums that are equal but for their rounding."""


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
    best, _ = _packed(sums, caps, high)
    limit, tries = low, 0
    while best is not None:
        found, larger = _packed(sums, caps, limit * (1 + SAME))
        if found is None:
            low = max(limit, larger)
        else:
            best, high = found, max(sums[e] - sums[f] for f, e in found)
        if high <= low * (1 + SAME):
            break
        tries += 1
        limit = low if found is None and tries < 2 else (low + high) / 2
    return best


def _packed(
    sums: Sequence[float], caps: Sequence[int], limit: float
) -> tuple[Stages | None, float]:
    """Runs of at most `limit`, as full as can be from the right; where they need more, None and the
    least limit at which any of these runs would take an item more."""
    runs, end, larger = [], len(sums) - 1, float("inf")
    for left in range(len(caps) - 1, -1, -1):
        # Comparisons and not `max`: a search packs hundreds of thousands of times.
        total, least = sums[end], end - caps[left]
        full = bisect_left(sums, total - limit, 0, end)
        first = full if left else 0
        if left and first < left:
            first = left
        if left and first < least:
            first = least
        if full >= first and full:
            larger = min(larger, total - sums[full - 1])
        if first >= end or first < least or full > first:
            return None, larger
        runs.append((first, end))
        end = first
    runs.reverse()
    return tuple(runs), larger
