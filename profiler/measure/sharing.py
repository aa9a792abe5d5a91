"""How much ranks of one host slow each other down when they compute at the same time.

    slow-down(k) = throughput of one group alone / mean throughput of k ranks' groups at once

Rounds alternate between one group alone and all of them together, so that a drift of the host
touches both; the result is the median over rounds. All ranks of a round compute over the same
window of time and only what ended inside it counts: nobody's last repetition runs on a host that
the others have left already.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from profiler.measure.timer import no_garbage_collection
from profiler.profile import SharingEntry

NUM_ROUNDS = 3
MIN_REPEATS = 5
"""Repetitions that a window holds at least, with all ranks running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The ranks of the host, as one of them sees them."""

    rank: int
    barrier: Callable[[], None]
    gather: Callable[[float], Sequence[float]]
    """Each rank's number, to all ranks."""


def throughput(
    thunk: Callable[[], object], window_s: float, agree: Callable[[bool], bool]
) -> float:
    """Repetitions per second among those that ended within `window_s` seconds.

    `agree` makes the wish to stop that of the whole tensor-parallel group.
    """
    count, begin = 0, time.perf_counter()
    last = begin
    while True:
        thunk()
        now = time.perf_counter()
        inside = now - begin <= window_s
        if inside or not count:
            count, last = count + 1, now
        if agree(not inside):
            return count / (last - begin)


def measure_sharing(
    thunk: Callable[[], object],
    tp: int,
    active: int,
    budget_s: float,
    host: Host,
    agree: Callable[[bool], bool],
) -> SharingEntry | None:
    """Slow-down when ranks 0 .. `active` - 1 run `thunk` at once, in groups of `tp` consecutive
    ranks; called by every rank of the host. Rank 0 returns the entry, other ranks None.
    """
    everyone = range(active)
    for _ in range(2):
        if host.rank in everyone:
            thunk()
    window_s = budget_s / NUM_ROUNDS / (1 if active == tp else 2)
    slowest = _round(thunk, everyone, 0.0, host, agree)
    window_s = max(window_s, MIN_REPEATS / slowest)
    ratios, alone = [], []
    with no_garbage_collection():
        for turn in range(NUM_ROUNDS):
            first = turn * tp % active
            alone.append(_round(thunk, range(first, first + tp), window_s, host, agree))
            if active > tp:
                ratios.append(alone[-1] / _round(thunk, everyone, window_s, host, agree))
    if host.rank:
        return None
    values = ratios or [value / float(np.median(alone)) for value in alone]
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return SharingEntry(
        tp=tp, active=active, slowdown=max(1.0, median), spread=(high - low) / 2, source="measured"
    )


def _round(
    thunk: Callable[[], object],
    running: range,
    window_s: float,
    host: Host,
    agree: Callable[[bool], bool],
) -> float:
    """Mean throughput of the ranks in `running` while the others wait."""
    host.barrier()
    mine = throughput(thunk, window_s, agree) if host.rank in running else 0.0
    everyone = host.gather(mine)
    return float(np.mean([everyone[r] for r in running]))
