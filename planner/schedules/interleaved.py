"""Interleaved 1F1B (Narayanan et al. 2021, arXiv:2104.04473, 2.2): v stages per rank in a loop.

Micro-batches go in rounds: every rank runs chunk 0 of the whole round, then chunk 1 ...; backwards
of a round go from the last chunk to the first. Rank r of p runs (v - 1) * n + 2 * (p - 1 - r)
forwards ahead, n the first round's size, then alternates. With equal stages of forward f and
backward b, step = (m * v + p - 1) * (f + b) from m = p on: the bubble is a v-th of 1F1B's.

The paper asks for rounds of p and m a multiple of p. As in PyTorch there are max(1, m // p) rounds
of p to 2 * p - 1, or one smaller; where PyTorch refuses a count that the rounds do not divide, the
first rounds are one larger than the others here. That keeps the closed form, which filling up the
last round and leaving out the surplus does not.
"""

from itertools import product

from planner.schedules.action import Action, Flights, Table

Chunks = list[tuple[int, int]]
"""(chunk, micro-batch), in the order of every rank."""


def round_sizes(pp: int, num_microbatches: int) -> tuple[int, ...]:
    """Micro-batches of each round, largest first."""
    num_rounds = max(1, num_microbatches // pp)
    size, larger = divmod(num_microbatches, num_rounds)
    return (size + 1,) * larger + (size,) * (num_rounds - larger)


def orders(pp: int, num_microbatches: int, vpp: int) -> tuple[Chunks, Chunks]:
    """Forwards and backwards."""
    forwards: Chunks = []
    backwards: Chunks = []
    first = 0
    for size in round_sizes(pp, num_microbatches):
        in_round = range(first, first + size)
        forwards += product(range(vpp), in_round)
        backwards += product(reversed(range(vpp)), in_round)
        first += size
    return forwards, backwards


def _warm_up(rank: int, pp: int, num_microbatches: int, vpp: int) -> int:
    """Forwards before the first that a backward follows."""
    ahead = (vpp - 1) * round_sizes(pp, num_microbatches)[0] + 2 * (pp - 1 - rank)
    return min(ahead, vpp * num_microbatches)


def in_flight(pp: int, num_microbatches: int, vpp: int) -> Flights:
    """The forwards that run ahead and one; as many again while forwards go on."""
    most = vpp * num_microbatches
    before = [min(most, _warm_up(r, pp, num_microbatches, vpp) + 1) for r in range(pp)]
    return tuple((n, min(n, most - 1)) for n in before)


def table(pp: int, num_microbatches: int, vpp: int) -> Table:
    """Actions of each of `pp` ranks, `vpp` stages per rank."""
    forwards, backwards = orders(pp, num_microbatches, vpp)
    rows = []
    for rank in range(pp):
        warm_up = _warm_up(rank, pp, num_microbatches, vpp)
        fs = [Action(chunk * pp + rank, "F", k) for chunk, k in forwards]
        bs = [Action(chunk * pp + rank, "B", k) for chunk, k in backwards]
        row = fs[:warm_up]
        for i, backward in enumerate(bs):
            row += [*fs[warm_up + i : warm_up + i + 1], backward]
        rows.append(tuple(row))
    return tuple(rows)
