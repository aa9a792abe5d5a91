"""Latency and bandwidth of timed messages: the line that runs through most of them.

Seconds of a message of n bytes are `latency_s + n / bytes_per_s`. Deviations are relative, so that
the small messages settle the latency and the large ones the bandwidth, and count less the further
they lie out (Huber's weights, by their median), so that a slow outlier moves nothing. Benchmarks of
collectives change algorithm with the size: `spread`, the median relative deviation, says how well a
line holds at all.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_ROUNDS = 30
_HUBER = 1.345
"""Deviations of normal noise, in its standard deviations, up to which a point counts in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFit:
    """`latency_s + n / bytes_per_s`, and the median of its relative deviations."""

    latency_s: float
    bytes_per_s: float
    spread: float

    def seconds(self, num_bytes: float) -> float:
        """Of a message."""
        return self.latency_s + num_bytes / self.bytes_per_s


def fit_line(points: Sequence[tuple[int, float]]) -> LineFit | None:
    """Line through (bytes, seconds); None where they do not tell: fewer than two sizes, or no
    longer times of larger messages."""
    points = [(n, s) for n, s in points if n > 0 and s > 0]
    if len({n for n, _ in points}) < 2:
        return None
    weights = [1.0] * len(points)
    latency = slope = 0.0
    for _ in range(_ROUNDS):
        latency, slope = _weighted(points, weights)
        if not slope > 0 or not math.isfinite(1 / slope):
            return None
        off = [abs(latency + slope * n - s) / s for n, s in points]
        scale = max(_HUBER * 1.4826 * statistics.median(off), 1e-12)
        weights = [min(1.0, scale / d) if d > 0 else 1.0 for d in off]
    return LineFit(latency_s=latency, bytes_per_s=1 / slope, spread=statistics.median(off))


def _weighted(points: list[tuple[int, float]], weights: list[float]) -> tuple[float, float]:
    """Latency (0 or more) and seconds per byte of the least squares of relative deviations."""
    top = max(n for n, _ in points)
    w = sx = sxx = sy = sxy = 0.0
    for (n, seconds), weight in zip(points, weights, strict=True):
        one, x = 1 / seconds, n / top / seconds  # both sides over the seconds: the target is 1
        w += weight * one * one
        sx += weight * one * x
        sxx += weight * x * x
        sy += weight * one
        sxy += weight * x
    if not sxx > 0:
        return 0.0, 0.0
    determinant = w * sxx - sx * sx
    latency = (sy * sxx - sx * sxy) / determinant if determinant > 0 else 0.0
    if latency <= 0:
        return 0.0, sxy / sxx / top
    return latency, (w * sxy - sx * sy) / determinant / top
