"""A chain of items into consecutive runs on unlike machines: an item costs what its run's machine
takes for it.

    M*  = min over splits of  max_r  sum_{j in run r} cost_rj               (first pass)
    min over splits with every run <= M*  of  sum_r sum_{j in run r} cost_rj    (second pass: what
    one item takes through all runs, the fill of a pipeline)

with no empty run and, in run r, at most `most_r` of the items that count. Exact: the dynamic
programme of `solvers.partition` with costs per run, O(runs * items^2) in arrays. Greedy packing
does not do here: what is best left for the runs before depends on their own costs.
"""

import numpy as np
from numpy.typing import NDArray

from solvers.partition import Stages
from solvers.result import SolveResult

Floats = NDArray[np.float64]


def partition_unlike(cost: Floats, counts: Floats, most: Floats) -> SolveResult[Stages]:
    """Split items into runs: `cost` [runs, items] >= 0 in any unit, `counts` [items] what each adds
    to a run's limit `most` [runs]. INFEASIBLE where no split obeys the limits."""
    num_runs, n = cost.shape
    if num_runs > n:
        return SolveResult(status="INFEASIBLE")
    held = np.concatenate(([0.0], np.cumsum(counts)))
    sizes = held[None, :] - held[:, None]
    ends = np.arange(n + 1)
    some = ends[None, :] > ends[:, None]
    prefix = np.concatenate((np.zeros((num_runs, 1)), np.cumsum(cost, axis=1)), axis=1)
    largest, _ = _programme(prefix, some, sizes, most, np.inf)
    if not np.isfinite(largest):
        return SolveResult(status="INFEASIBLE")
    # A sum of prefixes and the maximum of sums round differently: leave room for the last bit.
    _, stages = _programme(prefix, some, sizes, most, largest * (1 + 1e-12))
    return SolveResult(status="OPTIMAL", value=stages, objective=largest, bound=largest)


def _programme(
    prefix: Floats, some: NDArray[np.bool_], sizes: Floats, most: Floats, limit: float
) -> tuple[float, Stages]:
    """With an infinite limit the least maximum of the runs' sums, else the least total of runs that
    are within it; infinite where nothing is."""
    num_runs, size = prefix.shape
    join = np.add if np.isfinite(limit) else np.maximum
    best = np.full(size, np.inf)
    best[0] = 0.0
    came_from = np.zeros((num_runs, size), dtype=np.int64)
    for r in range(num_runs):
        sums = prefix[r][None, :] - prefix[r][:, None]
        allowed = some & (sizes <= most[r]) & (sums <= limit)
        total = np.where(allowed, join(best[:, None], sums), np.inf)
        came_from[r] = np.argmin(total, axis=0)
        best = total[came_from[r], np.arange(size)]
    if not np.isfinite(best[-1]):
        return float("inf"), ()
    stages, end = [], size - 1
    for r in reversed(range(num_runs)):
        first = int(came_from[r, end])
        stages.append((first, end))
        end = first
    return float(best[-1]), tuple(reversed(stages))
