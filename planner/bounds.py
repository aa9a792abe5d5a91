"""Lower bounds of a step, for pruning and as a statement of how good a layout can be.

Of a rank r with m micro-batches, F, B and I the forward, whole backward and backward for the input
of a virtual stage, T what follows the last backward of a stage until its rank's update is over:

    step >= first_r + m * sum(F + B of r) + T_r

because the first input of r's lowest stage l passes through all stages before l. And r's last
backward of l goes back through these, where each still has its weight gradient to do:

    step >= first_r + m * sum(F + I of r) + max over s < l of (I of stages s .. l - 1 + sends + W_s
                                                               + T_s)

B stands for I + W where the schedule does not split it. One micro-batch alone, through all stages
and back, is the third bound. On a host whose ranks share cores also: all work / the most that the
host does at once. None of them asks for the order of a schedule.
"""

from dataclasses import dataclass
from itertools import pairwise

from planner.program import Program
from planner.schedules import SPLIT_BACKWARD
from planner.shared_host import Sharing, slow


def lower_bound(program: Program, sharing: Sharing | None) -> float:
    """Seconds that no order of these actions can beat."""
    best = _device_bound(program)
    return best if sharing is None else max(best, _host_bound(program, sharing))


@dataclass(slots=True)
class _Rank:
    """What the virtual stages of a rank have in common."""

    lowest: int
    first_s: float
    """Until the lowest stage can start."""
    busy_s: float = 0.0
    chain_s: float = 0.0
    """Of `busy_s`, what cannot wait until the rank's last gradient is sent."""
    sync_s: float = 0.0
    least_sync_s: float = float("inf")
    least_busy_s: float = float("inf")
    """Of the stage with the least to do."""


def _device_bound(program: Program) -> float:
    owners, m = program.structure.owners, program.num_microbatches
    back = _chain(program)
    starts = _first_starts(program, owners)
    ranks: dict[int, _Rank] = {}
    for s, owner in enumerate(owners):
        rank = ranks.setdefault(owner, _Rank(lowest=s, first_s=starts[s]))
        own = m * (program.forward_s[s] + program.input_s[s] + program.weight_s[s])
        rank.busy_s += own
        rank.chain_s += m * (program.forward_s[s] + back[s])
        rank.sync_s += program.sync_s[s]
        rank.least_sync_s = min(rank.least_sync_s, program.sync_s[s])
        rank.least_busy_s = min(rank.least_busy_s, own)
    after = _after(program, owners, back, ranks)
    last = len(owners) - 1
    best = starts[last] + program.forward_s[last] + after[last + 1]
    for r, rank in ranks.items():
        rest = max(rank.busy_s + _tail(program, r, rank), rank.chain_s + after[rank.lowest])
        best = max(best, rank.first_s + rest)
        if program.overlap_sync:
            lane = rank.least_busy_s + rank.sync_s + program.optimizer_s[r]
            best = max(best, rank.first_s + lane)
    return best


def _chain(program: Program) -> tuple[float, ...]:
    """Seconds of a stage's backward that the stage before waits for."""
    if program.table is None:
        split = program.schedule in SPLIT_BACKWARD
    else:
        split = any(action.op == "I" for row in program.table for action in row)
    return program.input_s if split else program.backward_s


def _first_starts(program: Program, owners: tuple[int, ...]) -> list[float]:
    """When each stage can start its first micro-batch."""
    heads = program.heads
    starts = [heads[owners[0]]]
    for before, s in pairwise(range(len(owners))):
        arrival = starts[before] + program.forward_s[before] + program.send_forward_s[before]
        starts.append(max(heads[owners[s]], arrival))
    return starts


def _after(
    program: Program, owners: tuple[int, ...], back: tuple[float, ...], ranks: dict[int, _Rank]
) -> list[float]:
    """[s]: from the last gradient that stage s sends to the end of the step; of the number of
    stages, from the last stage's forward on."""
    after = [0.0]
    for s, owner in enumerate(owners):
        send = program.send_backward_s[s + 1] if s + 1 < len(owners) else 0.0
        rest = program.input_s[s] + program.weight_s[s] - back[s] + _end(program, s, owner, ranks)
        after.append(send + back[s] + max(after[s], rest))
    return after


def _end(program: Program, s: int, r: int, ranks: dict[int, _Rank]) -> float:
    """From the last backward of stage s to the rank's update."""
    if program.overlap_sync:
        return max(program.sync_s[s], program.bucket_s[r]) + program.optimizer_s[r]
    return _tail(program, r, ranks[r])


def _tail(program: Program, r: int, rank: _Rank) -> float:
    """From the last action of a rank to its update."""
    if program.overlap_sync:
        return max(rank.least_sync_s, program.bucket_s[r]) + program.optimizer_s[r]
    return program.bucket_s[r] + rank.sync_s + program.optimizer_s[r]


def _host_bound(program: Program, sharing: Sharing) -> float:
    """All work of the busiest host over the most it does at once, k / slow(k) at the best k."""
    owners, m = program.structure.owners, program.num_microbatches
    blocks = [a + b for a, b in zip(program.bucket_s, program.optimizer_s, strict=True)]
    network = list(program.heads)
    for s, owner in enumerate(owners):
        blocks[owner] += m * (program.forward_s[s] + program.input_s[s] + program.weight_s[s])
        network[owner] += program.sync_s[s]
    worst = 0.0
    for ranks in zip(*sharing.ranks_on_host, strict=True):
        most = sum(ranks) * (1 + program.overlap_sync)  # with lanes beside the ranks
        if most:
            work = sum(n * x for n, x in zip(ranks, blocks, strict=True))
            talk = sum(n * x for n, x in zip(ranks, network, strict=True))
            time = work / _most(sharing.slowdown, most) + talk / _most(sharing.sync_slowdown, most)
            worst = max(worst, time)
    return worst


def _most(curve: tuple[float, ...], most: int) -> float:
    """Most ranks' work, in ranks alone, that up to `most` ranks do at once."""
    return max(k / slow(curve, k) for k in range(1, most + 1))
