"""How much ranks of one host disturb each other: slow-down of compute, delay of messages.

    slow-down(k) = throughput of one group alone / mean throughput of k ranks' groups at once

Rounds alternate between one group alone and all of them together, so that a drift of the host
touches both; the result is the median over rounds. All ranks of a round compute over the same
window of time and only what ended inside it counts: nobody's last repetition runs on a host that
the others have left already.

The delay of a message is taken one way, from the moment a computing rank hands it over to the
moment the waiting rank goes on, both on the host's common monotonic clock; the time of the same
message on the idle host is taken off.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from profiler.measure.timer import no_garbage_collection, summarise
from profiler.profile import DeliveryEntry, SharingEntry

NUM_ROUNDS = 3
MIN_REPEATS = 5
"""Repetitions that a window holds at least, with all ranks running."""
MESSAGES = 40
"""Messages per measurement of a delay."""


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


def measure_delivery(
    thunk: Callable[[], object], active: int, num_bytes: int, host: Host
) -> DeliveryEntry | None:
    """Extra delay of messages of `num_bytes` from rank 0 to rank 1 while rank 0 and `active` - 1
    ranks from 2 on run `thunk`; called by every rank of the host. Rank 0 returns the entry."""
    busy = _delays(thunk, {0, *range(2, active + 1)}, num_bytes, host)
    idle = _delays(lambda: time.sleep(0.002), {0}, num_bytes, host)
    if host.rank:
        return None
    usual = float(np.median(idle))
    return DeliveryEntry(
        active=active, time=summarise([max(0.0, d - usual) for d in busy]), source="measured"
    )


def _delays(
    thunk: Callable[[], object], computing: set[int], num_bytes: int, host: Host
) -> list[float]:
    """One-way times of the messages, on every rank."""
    payload = torch.zeros(num_bytes // 4)
    stamps = torch.zeros(MESSAGES, dtype=torch.float64)
    host.barrier()
    if host.rank == 0:
        pending = []
        for i in range(MESSAGES):
            thunk()
            stamps[i] = -time.perf_counter()
            pending.append(dist.isend(payload, 1))
        thunk()
        for work in pending:
            if work is not None:
                work.wait()
    elif host.rank == 1:
        for i in range(MESSAGES):
            dist.recv(payload, 0)
            stamps[i] = time.perf_counter()
    elif host.rank in computing:
        _compute_until_all_are_sent(thunk)
    if host.rank == 0:
        dist.send(torch.zeros(1), 1)
    elif host.rank == 1:
        dist.recv(torch.zeros(1), 0)
    dist.all_reduce(stamps)
    return [float(x) for x in stamps]


def _compute_until_all_are_sent(thunk: Callable[[], object]) -> None:
    """Rank 0 sends as many messages as it computes; an equal rank needs as many repetitions."""
    for _ in range(MESSAGES + 2):
        thunk()
