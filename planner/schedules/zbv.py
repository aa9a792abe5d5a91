"""ZB-V (Qi et al. 2023, arXiv:2401.10241, section 6): two stages per rank in a V, backward split.

Rank r fills the V with 2 * p - 1 forwards, then runs F, I, W of one chunk and of the other in turn;
it drains with Is first and keeps Ws for the gaps. A rank holds at most 2 * p stage-micro-batches,
the memory of 1F1B's first rank (whose one stage is twice as long). With equal stages and f = i = w,
step = 2 * m * (f + i + w) + (p - 1) * f from m = 2 * p - 1 on: rank r starts r forwards late and
never waits. This is the paper's order for equal times; where they differ, ranks do wait.

With fewer micro-batches the table is that of 2 * p - 1 without the surplus.
"""

from planner.schedules.action import Flights, Table
from planner.schedules.v_row import VRow


def in_flight(pp: int, num_microbatches: int) -> Flights | None:
    """The V's memory on every rank; None where it is not filled."""
    if num_microbatches < max(2, 2 * pp - 1):
        return None
    return ((2 * pp, 2 * pp),) * pp


def table(pp: int, num_microbatches: int) -> Table:
    """Actions of each of `pp` ranks, two stages per rank."""
    num = max(2 * pp - 1, num_microbatches)
    rows = []
    for rank in range(pp):
        row = VRow(rank, pp, num_microbatches)
        _fill(row, rank, pp)
        for k in range(num - pp):
            if k < num - (2 * pp - 1 - rank):  # forwards of chunk 0 that filling has left
                row.forward(0)
            _split_backward(row, 0)
            row.forward(1)
            _split_backward(row, 1)
        _drain(row, rank, pp)
        rows.append(tuple(row.actions))
    return tuple(rows)


def _fill(row: VRow, rank: int, pp: int) -> None:
    """2 * pp - 1 - rank forwards of chunk 0, pp of chunk 1 and the backwards that have arrived."""
    for _ in range(2 * (pp - rank) - 1):
        row.forward(0)
    for _ in range(rank):
        row.forward(1)
        row.forward(0)
    for _ in range(pp - rank):
        row.forward(1)
        _split_backward(row, 1)


def _drain(row: VRow, rank: int, pp: int) -> None:
    """The last `pp` backwards of chunk 0 and `rank` of chunk 1."""
    for _ in range(rank):
        row.input_gradient(0)
        row.input_gradient(1)
    for _ in range(pp - rank):
        row.input_gradient(0)
        row.weight_gradient(0)
    for chunk in (1, 0):
        for _ in range(rank):
            row.weight_gradient(chunk)


def _split_backward(row: VRow, chunk: int) -> None:
    row.input_gradient(chunk)
    row.weight_gradient()
