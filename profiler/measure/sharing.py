"""How much ranks of one host slow each other down when they compute at the same time.

    slow-down(k) = throughput of one rank alone / mean throughput of k ranks at once

Rounds alternate between one rank alone and k ranks together, so that a drift of the host touches
both; the result is the median over rounds. Each rank of a round computes for the same wall time
after a common start and counts what it finished: all overlap, however unequal they are.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from profiler.measure.timer import no_garbage_collection
from profiler.profile import SharingEntry

NUM_ROUNDS = 5
MIN_REPEATS = 2
"""Repetitions that a window holds at least, with all ranks running."""


def throughput(thunk: Callable[[], object], window_s: float) -> float:
    """Repetitions per second over `window_s` seconds, to the end of the last one begun in it."""
    count = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < window_s:
        thunk()
        count += 1
    return count / (time.perf_counter() - begin)


def measure_sharing(
    thunk: Callable[[], object],
    active: int,
    rank: int,
    budget_s: float,
    barrier: Callable[[], None],
    gather: Callable[[float], Sequence[float]],
) -> SharingEntry | None:
    """Slow-down when ranks 0 .. `active` - 1 run `thunk` at once; called by every rank of the host.

    `gather` returns each rank's number to all ranks. The rank that runs alone changes from round to
    round. Rank 0 returns the entry, other ranks None.
    """
    for _ in range(3):
        thunk()
    single = throughput(thunk, 0.05)
    barrier()
    window_s = _window(budget_s, active, max(1.0 / x for x in gather(single)))
    ratios, alone = [], []
    with no_garbage_collection():
        for turn in range(NUM_ROUNDS):
            alone.append(_round(thunk, {turn % active}, rank, window_s, barrier, gather))
            if active > 1:
                group = set(range(active))
                ratios.append(alone[-1] / _round(thunk, group, rank, window_s, barrier, gather))
    if rank:
        return None
    if active == 1:
        low, median, high = np.percentile(alone, (25, 50, 75)).tolist()
        return _entry(active, 1.0, (high - low) / 2 / median)
    low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return _entry(active, max(1.0, median), (high - low) / 2)


def _entry(active: int, slowdown: float, spread: float) -> SharingEntry:
    return SharingEntry(active=active, slowdown=slowdown, spread=spread, source="measured")


def _window(budget_s: float, active: int, slowest_s: float) -> float:
    kinds = 1 if active == 1 else 2
    return max(budget_s / (NUM_ROUNDS * kinds), MIN_REPEATS * slowest_s)


def _round(
    thunk: Callable[[], object],
    running: set[int],
    rank: int,
    window_s: float,
    barrier: Callable[[], None],
    gather: Callable[[float], Sequence[float]],
) -> float:
    """Mean throughput of the ranks in `running` while the others wait."""
    barrier()
    mine = throughput(thunk, window_s) if rank in running else 0.0
    everyone = gather(mine)
    return float(np.mean([everyone[r] for r in running]))
