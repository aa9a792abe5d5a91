"""Items to places with equal numbers in each: the linear assignment problem (Jonker and Volgenant
1987, as in scipy), each place counted as often as it may be taken."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]


def spread_evenly(cost: NDArray[np.float64]) -> tuple[int, ...]:
    """Place of each item with the least total of `cost` [items, places], no place taken by more
    than its share, rounded up."""
    items, places = cost.shape
    if not items or not places:
        return ()
    room = -(-items // places)
    _, columns = linear_sum_assignment(np.tile(cost, (1, room)))
    return tuple(int(c) % places for c in columns)
