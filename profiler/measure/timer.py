"""Repeat a piece of work until its median is known well enough, or the time is used up.

Spread is half the interquartile range. For a normal distribution that is 0.674 of the standard
deviation, and the standard error of a median of n is 1.253 standard deviations / sqrt(n) (Kendall
& Stuart, The Advanced Theory of Statistics, volume 1); repeating stops when this error is a set
share of the median.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from profiler.profile import Timing

WINDOW_S = 0.05
"""Several periods of a CPU quota: 10 ms to be fair, 100 ms by default, of which one is seen."""
Agree = Callable[[bool], bool]
"""Turns one rank's wish to stop into the group's: its ranks must repeat equally often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to stop: `budget_s` is wall time with warm-up; `min_repeats` are made in any case."""

    budget_s: float
    min_repeats: int = 3
    max_repeats: int = 2000
    warmup: int = 2
    check_every: int = 5
    """Repetitions between two looks at the clock."""
    tolerance: float = 0.003
    """Stop when the standard error of the first median is below this share of it."""


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's cyclic collector off; as before on the way out."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def elapsed_s(device: torch.device, thunk: Callable[[], object]) -> float:
    """Seconds of `thunk`: wall time on a CPU, between two events on an accelerator."""
    if device.type == "cpu":
        begin = time.perf_counter()
        thunk()
        return time.perf_counter() - begin
    first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    first.record()
    thunk()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) * 1e-3


def collect(
    sample: Callable[[], Sequence[float]], limits: Limits, agree: Agree = bool
) -> list[tuple[float, ...]]:
    """Call `sample` again and again and return its rows, warm-up left out.

    The wish to stop is put to `agree` after every `check_every` repetitions, from `min_repeats` on.
    """
    begin = time.perf_counter()
    with no_garbage_collection():
        for _ in range(limits.warmup):
            sample()
        rows: list[tuple[float, ...]] = []
        while True:
            rows += [tuple(sample()) for _ in range(limits.check_every)]
            if len(rows) < limits.min_repeats:
                continue
            late = time.perf_counter() - begin >= limits.budget_s
            known = _relative_error([row[0] for row in rows]) <= limits.tolerance
            enough = len(rows) >= 4 * limits.min_repeats and known
            if agree(late or enough or len(rows) >= limits.max_repeats):
                return rows


def _relative_error(samples: Sequence[float]) -> float:
    timing = summarise(samples)
    if timing.median_s == 0:
        return float("inf")
    deviation = timing.spread_s / 0.674
    return float(1.253 * deviation / len(samples) ** 0.5 / timing.median_s)


def summarise(samples: Sequence[float]) -> Timing:
    """Median and half the interquartile range of seconds."""
    low, median, high = np.percentile(np.asarray(samples), (25, 50, 75)).tolist()
    return Timing(median_s=median, spread_s=(high - low) / 2, repeats=len(samples))


def sustained(samples: Sequence[float]) -> Timing:
    """Median and half the interquartile range of means over windows, each of repetitions that take
    `WINDOW_S` together (or a fifth of all, where that is less).

    A process that is held to a share of a core (a CPU quota, as in containers) computes at full
    speed until its share of a period is used up, and then not at all: most repetitions of a short
    piece are fast, few bear all of the waiting, and the median of single ones is what no step
    reaches. Means over some periods keep it, medians over windows leave other disturbances out.
    """
    width = min(WINDOW_S, sum(samples) / 5)
    means: list[float] = []
    window: list[float] = []
    for seconds in samples:
        window.append(seconds)
        if sum(window) >= width:
            means.append(sum(window) / len(window))
            window = []
    low, median, high = np.percentile(np.asarray(means), (25, 50, 75)).tolist()
    return Timing(median_s=median, spread_s=(high - low) / 2, repeats=len(samples))


def measure(
    thunk: Callable[[], object], limits: Limits, device: torch.device, agree: Agree = bool
) -> Timing:
    """Time of one call of `thunk`."""
    return summarise(
        [row[0] for row in collect(lambda: (elapsed_s(device, thunk),), limits, agree)]
    )
