"""DualPipeV: DeepSeek's DualPipe (DeepSeek-AI 2024, arXiv:2412.19437, 3.2.1) cut in half.

DualPipe sends micro-batches into the pipeline from both ends and holds the parameters twice.
Folding its second half onto the first gives a V of half as many ranks with one copy (Qi et al.
2025, "DualPipe could be better without the dual", Sea AI Lab; DeepSeek's own `DualPipeV`). The
steady state pairs F of one chunk with B of the other, so that the messages of one hide behind the
computation of the other; here they follow each other, F first. Only the ends split B into I and W.

A rank keeps at most 2 * p + 1 stage-micro-batches. With equal stages, f = i = w and no overlap,
step = 2 * m * (f + i + w) + (p - 1) * f from m = 2 * p on, as long as ZB-V's.

With fewer micro-batches the table is that of 2 * p without the surplus.
"""

from planner.schedules.action import Flights, Table
from planner.schedules.v_row import VRow


def in_flight(pp: int, num_microbatches: int) -> Flights | None:
    """The V's memory, and one more while forwards go on; None where the V is not filled."""
    if num_microbatches < 2 * pp:
        return None
    return ((2 * pp, 2 * pp + 1),) * (pp - 1) + ((2 * pp + 1, 2 * pp + 1),)


def table(pp: int, num_microbatches: int) -> Table:
    """Actions of each of `pp` ranks, two stages per rank."""
    num = max(2 * pp, num_microbatches)
    rows = []
    for rank in range(pp):
        row = VRow(rank, pp, num_microbatches)
        to_come = pp - 1 - rank
        _fill(row, rank, to_come)
        for _ in range(num - 2 * pp + rank + 1):
            row.forward(0)
            row.backward(1)
            row.forward(1)
            row.backward(0)
        for _ in range(to_come):
            row.backward(1)
            row.forward(1)
            row.backward(0)
        _drain(row, rank, to_come)
        rows.append(tuple(row.actions))
    return tuple(rows)


def _fill(row: VRow, rank: int, to_come: int) -> None:
    """Forwards, then the first backwards, split: the rank before waits for them."""
    for _ in range(2 * to_come):
        row.forward(0)
    for _ in range(rank + 1):
        row.forward(0)
        row.forward(1)
    for _ in range(to_come):
        row.input_gradient(1)
        row.weight_gradient()
        row.forward(1)


def _drain(row: VRow, rank: int, to_come: int) -> None:
    """The last backwards: the first half of those of both chunks in one, the others split."""
    for k in range(2 * (rank + 1)):
        (row.backward if k <= rank else row.input_gradient)(1 - k % 2)
    for _ in range(to_come):
        row.weight_gradient()
        row.input_gradient(0)
    for _ in range(rank + 1):
        row.weight_gradient()
