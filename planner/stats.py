"""Figures of merit of predictions against measurements. Pure: arrays in, numbers out.

Errors are relative to what was measured. Ranges are bootstrap percentile ranges: rows are drawn
with replacement, each figure is taken anew, and the middle 95 % of its values are the range. Rows
of one study resemble each other, so a range says how far a figure hangs on the rows at hand, not
how far it will carry to other models.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Range = tuple[float, float]
Figure = Callable[[Index], float | None]

RESAMPLES = 1000
MIN_ROWS = 5
"""Fewer rows have no range: resamples of four rows say nothing."""


def ape(predicted: Array, measured: Array) -> Array:
    """Absolute relative errors, |predicted - measured| / measured; 0.1 is 10 %."""
    return np.abs(predicted - measured) / measured


def quantile(values: Array, q: float) -> float | None:
    """The `q` quantile, linear between order statistics: position (n - 1) q from the smallest.

    None of no values. The median is `q` 0.5: the mean of the middle two where n is even.
    """
    return float(np.quantile(values, q)) if values.size else None


def bias(predicted: Array, measured: Array) -> float | None:
    """exp(median(ln(predicted / measured))) - 1: above 0 where the typical prediction is too slow.

    The logarithm makes twice and half as long equally wrong, so that they cancel.
    """
    if not predicted.size:
        return None
    return float(np.expm1(np.median(np.log(predicted / measured))))


def ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the mean of the ranks that they take up."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: Array = (last - (counts - 1) / 2)[place]
    return shared


def spearman(a: Array, b: Array) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks. None where either side is constant."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean() if x.size else x, y - y.mean() if y.size else y
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip((x @ y) / scale, -1.0, 1.0)) if scale else None


def geomean(values: Array) -> float | None:
    """Geometric mean; None of no values."""
    return float(np.exp(np.mean(np.log(values)))) if values.size else None


def ranges(
    num_rows: int, figures: tuple[Figure, ...], seed: int, resamples: int = RESAMPLES
) -> tuple[Range | None, ...]:
    """Bootstrap 95 % range of each figure, a function of the indices of the rows drawn.

    All figures see the same draws. None below `MIN_ROWS` rows, with no resamples, or where fewer
    than half of the resamples have the figure.
    """
    if num_rows < MIN_ROWS or resamples < 1:
        return (None,) * len(figures)
    rng = np.random.default_rng(seed)
    drawn: list[list[float]] = [[] for _ in figures]
    for _ in range(resamples):
        index = rng.integers(num_rows, size=num_rows)
        for values, figure in zip(drawn, figures, strict=True):
            value = figure(index)
            if value is not None:
                values.append(value)
    return tuple(_middle(values) if 2 * len(values) >= resamples else None for values in drawn)


def _middle(values: list[float]) -> Range:
    low, high = np.quantile(np.array(values), (0.025, 0.975))
    return float(low), float(high)
