"""A chain of blocks into consecutive stages: exact min-max dynamic programming under memory caps.

    M*  = min over splits of  max_s  sum_{j in stage s} cost_j          (first pass)
    min over splits with every stage <= M*  of  sum_s (stage cost)^2    (second pass: even out the
    rest)

subject, for each cap, to `fixed_j + held_j * in_flight_s` summed over stage s <= `room_s`; cost_j
counts `scale_s` times in stage s, for stages on machines of unlike speed. Prefix
sums make a stage O(1), so both passes are O(stages * blocks^2) (the classical linear partition
problem; memory per stage as in DAPPLE, Fan et al. 2021, section 4, where early stages hold more
micro-batches).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.result import SolveResult

Floats = NDArray[np.float64]
Stages = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A limit on every stage, in any unit."""

    fixed: Floats
    """[blocks]: what a block needs once."""
    held: Floats
    """[blocks]: what it needs for each micro-batch in flight."""
    in_flight: Sequence[int]
    """[stages]"""
    room: Floats
    """[stages]: what the stage may use."""


def partition(
    cost: Floats, num_stages: int, caps: Sequence[Cap] = (), scale: Sequence[float] = ()
) -> SolveResult[Stages]:
    """Split `cost` [blocks] (any unit, >= 0) into `num_stages` non-empty runs; objective is the
    largest sum. `scale` [stages]: empty means 1. INFEASIBLE where no split obeys the caps or there
    are more stages than blocks.
    """
    n = len(cost)
    if num_stages > n:
        return SolveResult(status="INFEASIBLE")
    allowed = _allowed(n, num_stages, caps)
    prefix = np.concatenate(([0.0], np.cumsum(cost)))
    sums = prefix[None, :] - prefix[:, None]  # [first, end)
    sums = np.asarray(scale or [1.0] * num_stages)[:, None, None] * sums
    largest, _ = _dynamic_program(sums, allowed, np.maximum)
    if not np.isfinite(largest):
        return SolveResult(status="INFEASIBLE")
    # A sum of prefixes and the maximum of sums round differently: leave room for the last bit.
    within = allowed & (sums <= largest * (1 + 1e-12))
    _, stages = _dynamic_program(sums**2, within, np.add)
    return SolveResult(status="OPTIMAL", value=stages, objective=largest, bound=largest)


def _allowed(n: int, num_stages: int, caps: Sequence[Cap]) -> NDArray[np.bool_]:
    """[stage, first, end]: the run is not empty and fits the stage."""
    ends = np.arange(n + 1)
    fits = np.repeat((ends[None, :] > ends[:, None])[None], num_stages, axis=0)
    for cap in caps:
        once, each = (np.concatenate(([0.0], np.cumsum(x))) for x in (cap.fixed, cap.held))
        for s, (flights, room) in enumerate(zip(cap.in_flight, cap.room, strict=True)):
            total = once + flights * each
            fits[s] &= total[None, :] - total[:, None] <= room
    return fits


def _dynamic_program(
    sums: Floats, allowed: NDArray[np.bool_], join: np.ufunc
) -> tuple[float, Stages]:
    """Best total of `join` over the stages' values `sums[stage, first, end]`; inf where nothing is
    allowed.
    """
    num_stages, size, _ = allowed.shape
    best = np.full(size, np.inf)
    best[0] = 0.0
    came_from = np.zeros((num_stages, size), dtype=np.int64)
    for s in range(num_stages):
        total = np.where(allowed[s], join(best[:, None], sums[s]), np.inf)
        came_from[s] = np.argmin(total, axis=0)
        best = total[came_from[s], np.arange(size)]
    if not np.isfinite(best[-1]):
        return float("inf"), ()
    stages, end = [], size - 1
    for s in reversed(range(num_stages)):
        first = int(came_from[s, end])
        stages.append((first, end))
        end = first
    return float(best[-1]), tuple(reversed(stages))
