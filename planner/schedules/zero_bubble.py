"""ZB-H1 and its interleaved form (Qi et al. 2023, arXiv:2401.10241): backward split in two.

I, the input gradient, is all that the stage before waits for; W, the weight gradient, fills what
would be a bubble. Rank r of p runs (v - 1) * n + p - 1 - r forwards ahead (where `interleaved` runs
two for each rank that follows: the way back is shorter by W), then F and I in turn; each W comes r
backwards after its I. So every rank keeps (v - 1) * n + p stage-micro-batches: ZB-H1 (v = 1) peaks
at 1F1B's p, but on every rank. Rounds, of n micro-batches at first, are those of `interleaved`.

With equal stages, step = m * v * (f + i + w) + (p - 1) * max(f, i, f + i - w) from m = p on. The
last of the three, the largest where w is the shortest, is the paper's bubble of ZB-H1.
"""

from planner.schedules.action import Action, Flights, Table
from planner.schedules.interleaved import orders, round_sizes


def in_flight(pp: int, num_microbatches: int, vpp: int) -> Flights:
    """The same on every rank: those that run ahead and those that wait for W."""
    most = vpp * num_microbatches
    before = min(most, (vpp - 1) * round_sizes(pp, num_microbatches)[0] + pp)
    return ((before, min(before, most - 1)),) * pp


def table(pp: int, num_microbatches: int, vpp: int) -> Table:
    """Actions of each of `pp` ranks, `vpp` stages per rank."""
    forwards, backwards = orders(pp, num_microbatches, vpp)
    largest = round_sizes(pp, num_microbatches)[0]
    rows = []
    for rank in range(pp):
        warm_up = min(len(forwards), (vpp - 1) * largest + pp - 1 - rank)
        fs = [Action(chunk * pp + rank, "F", k) for chunk, k in forwards]
        gs = [Action(chunk * pp + rank, "I", k) for chunk, k in backwards]
        ws = [Action(chunk * pp + rank, "W", k) for chunk, k in backwards]
        row = fs[:warm_up]
        for i, input_gradient in enumerate(gs):
            row += [*fs[warm_up + i : warm_up + i + 1], input_gradient]
            if i >= rank:
                row.append(ws[i - rank])
        rows.append((*row, *ws[max(0, len(ws) - rank) :]))
    return tuple(rows)
