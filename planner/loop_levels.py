"""GPipe, 1F1B, interleaved 1F1B and zero bubble as grids of numbers, without a table.

In a loop schedule every rank r runs the same N = m * v forwards in the same order, and the same
backwards in theirs (`planner.schedules.interleaved`). Slot i of a rank is forward i, backward
i - w_r and weight gradient i - w_r - r, as far as they exist, where w_r = w_0 - d * r forwards run
ahead: d is 1 in 1F1B and zero bubble, 2 in interleaved 1F1B. With q actions in a slot,

    level = q * slot + (0, 1 or 2) + d * r

grows along every wait inside a chunk: by d from rank to rank in forward, by (q - 1) * d in backward
and by one at least along a row. From the last rank to the first of the next chunk, a round of n
micro-batches later, it grows by q * n - d * (p - 1) in forward and q * n - (q - 1) * d * (p - 1) in
backward. Both are positive where a round has p micro-batches; where they are not, `levels_of` is
None.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.program import Structure
from planner.schedules import Op
from planner.schedules.interleaved import round_sizes

Ints = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All actions of an operation, [rank, position in the order of every rank]."""

    op: Op
    rank: Ints
    stage: Ints
    micro_batch: Ints
    level: Ints
    needs: Ints
    """Flat index in the grid of what the action waits for beside its rank; -1: nothing."""


def levels_of(structure: Structure) -> list[Grid] | None:
    """Grids of a structure that has them."""
    if structure.schedule == "gpipe":
        return _gpipe(structure.pp, structure.num_microbatches)
    if structure.schedule in ("1f1b", "interleaved", "zero_bubble"):
        return _loop(structure)
    return None


def _gpipe(pp: int, num: int) -> list[Grid]:
    rank, k = np.arange(pp)[:, None], np.arange(num)[None]
    order = _Order(pp, num, 1)
    return [
        order.grid("F", k + rank, order.from_before()),
        order.grid("B", num + pp - 1 + k + pp - 1 - rank, order.from_behind()),
    ]


def _loop(structure: Structure) -> list[Grid] | None:
    pp, vpp = structure.pp, structure.vpp
    order = _Order(pp, structure.num_microbatches, vpp)
    step = 2 if structure.schedule == "interleaved" else 1
    q = 3 if structure.schedule == "zero_bubble" else 2
    largest, smallest = int(order.size.max()), int(order.size.min())
    if vpp > 1 and q * smallest <= max(step, (q - 1) * step) * (pp - 1):
        return None
    rank, i = np.arange(pp)[:, None], np.arange(len(order.size))[None]
    ahead = (vpp - 1) * largest + step * (pp - 1 - rank)
    offset = step * rank
    back = q * (i + ahead) + 1 + offset
    grids = [order.grid("F", q * i + offset, order.from_before())]
    if q == 2:
        return [*grids, order.grid("B", back, order.from_behind())]
    nothing = np.full(back.shape, -1)
    return [
        *grids,
        order.grid("I", back, order.from_behind()),
        order.grid("W", back + 1 + q * rank, nothing),
    ]


class _Order:
    """The order of chunks and micro-batches that all ranks share."""

    def __init__(self, pp: int, num_microbatches: int, vpp: int) -> None:
        self._pp, self._vpp = pp, vpp
        sizes = round_sizes(pp, num_microbatches) if vpp > 1 else (num_microbatches,)
        chunk, micro_batch, size = [], [], []
        first = 0
        for n in sorted(set(sizes), reverse=True):
            shape = (sizes.count(n), vpp, n)
            starts = first + n * np.arange(shape[0])
            chunk.append(np.broadcast_to(np.arange(vpp)[:, None], shape).ravel())
            micro_batch.append(np.broadcast_to(starts[:, None, None] + np.arange(n), shape).ravel())
            size.append(np.full(chunk[-1].shape, n))
            first += n * shape[0]
        self._chunk, self._micro_batch = np.concatenate(chunk), np.concatenate(micro_batch)
        self.size: Ints = np.concatenate(size)
        """Of the round that each position belongs to."""

    def from_before(self) -> Ints:
        """Forward waits for the rank before; the first rank for the last, one chunk before."""
        return self._neighbour(self._flat(-1), first=0, other=self._pp - 1)

    def from_behind(self) -> Ints:
        """The same of backward, which goes round from the last rank and the last chunk."""
        return self._neighbour(self._flat(1), first=self._pp - 1, other=0)

    def _flat(self, by: int) -> Ints:
        num = len(self.size)
        return (np.arange(self._pp)[:, None] + by) * num + np.arange(num)

    def _neighbour(self, needs: Ints, first: int, other: int) -> Ints:
        num = len(self.size)
        in_chunk_before = other * num + np.arange(num) - self.size
        needs[first] = np.where(self._chunk == 0, -1, in_chunk_before)
        return needs

    def grid(self, op: Op, level: Ints, needs: Ints) -> Grid:
        """A grid in this order; chunks of backward are counted from the last."""
        rank = np.arange(self._pp)[:, None]
        chunk = self._chunk if op == "F" else self._vpp - 1 - self._chunk
        return Grid(
            op=op,
            rank=np.broadcast_to(rank, level.shape),
            stage=chunk * self._pp + rank,
            micro_batch=np.broadcast_to(self._micro_batch, level.shape),
            level=level,
            needs=needs,
        )
