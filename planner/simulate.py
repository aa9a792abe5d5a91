"""Event-driven simulation of one optimizer step of a pipeline.

Each pipeline rank computes its row of the schedule's table in order. An action starts when the rank
is free and its input has arrived: F of stage s needs F of stage s-1, B of stage s needs B of stage
s+1, each later by the message's time (sends do not hold up the sender); the last stage's B needs
its own F. After its last action a rank reduces its gradients over the replicas and updates its
weights. The step ends with the last rank.

Where ranks share the cores of a host (CPU training), durations are work done at the rate
1 / slow(ranks that compute now), with the measured curve relative to one group of ranks alone. That
is processor sharing; a waiting rank leaves its share to the others, so a bubble costs less than on
devices that are each their own. Ranks of a tensor-parallel group and of data-parallel replicas run
in step, so one actor stands for all ranks of a stage.
"""

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.config import ScheduleName
from planner.schedules import Action, Table, table_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One step: its schedule and, per stage, seconds of each piece (blocks: per micro-batch)."""

    schedule: ScheduleName
    num_microbatches: int
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    send_forward_s: tuple[float, ...]
    """From stage s to s + 1; the last is unused."""
    send_backward_s: tuple[float, ...]
    """From stage s to s - 1; the first is unused."""
    bucket_s: tuple[float, ...]
    """Copy of the gradients into flat buckets, after the stage's last backward."""
    sync_s: tuple[float, ...]
    """Reduction of the buckets over the replicas."""
    optimizer_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Cores shared by the ranks of a host."""

    slowdown: tuple[float, ...]
    """[k - 1] with k ranks of the host active, relative to one group alone; not decreasing."""
    sync_slowdown: tuple[float, ...]
    """The same for the gradient reduction, relative to its group alone."""
    ranks_on_host: tuple[tuple[int, ...], ...]
    """[stage][host]: ranks of the stage on that host."""


def slow(curve: tuple[float, ...], active: int) -> float:
    """Slow-down with `active` ranks; beyond the curve, cores are shared as at its end."""
    if active <= len(curve):
        return curve[max(active, 1) - 1]
    return curve[-1] * active / len(curve)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Start and end of every action [row][position], and of the tail of each row; seconds from the
    start.
    """

    table: Table
    start: tuple[Floats, ...]
    end: tuple[Floats, ...]
    bucket_end: Floats
    sync_end: Floats
    optimizer_end: Floats
    step_s: float


def simulate(
    program: Program, sharing: Sharing | None = None, table: Table | None = None
) -> Timeline:
    """Time of one step from standing start; durations must be finite and not negative.

    `table` replaces the schedule's own, one stage per row. Raises `ValueError` for one whose
    actions wait for each other.
    """
    if table is None:
        table = table_of(program.schedule, len(program.forward_s), program.num_microbatches)
    if sharing is None:
        start, end = _own_devices(program, table)
        bucket_end = np.array([row[-1] for row in end]) + np.array(program.bucket_s)
        sync_end = bucket_end + np.array(program.sync_s)
        optimizer_end = sync_end + np.array(program.optimizer_s)
    else:
        start, end, bucket_end, sync_end, optimizer_end = _Shared(program, sharing, table).run()
    return Timeline(
        table=table,
        start=tuple(np.array(x) for x in start),
        end=tuple(np.array(x) for x in end),
        bucket_end=bucket_end,
        sync_end=sync_end,
        optimizer_end=optimizer_end,
        step_s=float(optimizer_end.max()),
    )


def _own_devices(program: Program, table: Table) -> tuple[list[list[float]], list[list[float]]]:
    """Each rank has its device: longest path, by running every row as far as its inputs allow."""
    last = len(table) - 1
    inputs = _Inputs(program)
    position, free = [0] * len(table), [0.0] * len(table)
    start: list[list[float]] = [[] for _ in table]
    end: list[list[float]] = [[] for _ in table]
    runnable = list(range(len(table)))
    while runnable:
        rank = runnable.pop()
        row, at, now = table[rank], position[rank], free[rank]
        while at < len(row):
            stage, op, k = row[at]
            ready = inputs.forward[stage][k] if op == "F" else inputs.backward[stage][k]
            if ready is None:
                break
            begin = max(now, ready)
            now = begin + (program.forward_s[stage] if op == "F" else program.backward_s[stage])
            start[rank].append(begin)
            end[rank].append(now)
            inputs.finish(row[at], now)
            neighbour = stage + 1 if op == "F" else stage - 1
            if 0 <= neighbour <= last:
                runnable.append(neighbour)
            at += 1
        position[rank], free[rank] = at, now
    _check_complete(table, position)
    return start, end


def _check_complete(table: Table, position: list[int]) -> None:
    stuck = [str(row[at]) for row, at in zip(table, position, strict=True) if at < len(row)]
    if stuck:
        raise ValueError(f"schedule can never run: {', '.join(stuck)} wait for each other")


class _Inputs:
    """When the input of each F and B arrives; None while it is not known."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._last = len(program.forward_s) - 1
        num, stages = program.num_microbatches, program.forward_s
        self.forward: list[list[float | None]] = [[None] * num for _ in stages]
        self.backward: list[list[float | None]] = [[None] * num for _ in stages]
        self.forward[0] = [0.0] * num

    def finish(self, action: Action, now: float) -> None:
        """Note the end of an action: its result is on the way to where it is needed."""
        stage, op, k = action
        if op == "F" and stage < self._last:
            self.forward[stage + 1][k] = now + self._program.send_forward_s[stage]
        elif op == "F":
            self.backward[stage][k] = now
        elif stage > 0:
            self.backward[stage - 1][k] = now + self._program.send_backward_s[stage]


class _Shared:
    """Processor sharing: from event to event, a stage's rate set by who computes beside it."""

    def __init__(self, program: Program, sharing: Sharing, table: Table) -> None:
        self.program, self.sharing, self.table, self.now = program, sharing, table, 0.0
        self.inputs = _Inputs(program)
        n = len(table)
        self.position = [0] * n
        self.left: dict[int, float] = {}  # stage -> work left, in seconds of the group alone
        self.begin: list[list[float]] = [[] for _ in range(n)]
        self.finish: list[list[float]] = [[] for _ in range(n)]
        self.arrivals: list[float] = []

    def run(self) -> tuple[list[list[float]], list[list[float]], Floats, Floats, Floats]:
        """Starts and ends of the table's actions, ends of copy, reduction and update."""
        self._begin_what_can()
        while self.left or self.arrivals:
            self._advance()
            self._begin_what_can()
        n = [len(row) for row in self.table]
        _check_complete(self.table, [min(p, k) for p, k in zip(self.position, n, strict=True)])
        return (
            [x[:k] for x, k in zip(self.begin, n, strict=True)],
            [x[:k] for x, k in zip(self.finish, n, strict=True)],
            np.array([x[k] for x, k in zip(self.finish, n, strict=True)]),
            np.array([x[k + 1] for x, k in zip(self.finish, n, strict=True)]),
            np.array([x[k + 2] for x, k in zip(self.finish, n, strict=True)]),
        )

    def _work(self, rank: int) -> tuple[float, float | None]:
        """Work and arrival of the input of a row's next piece."""
        program, at = self.program, self.position[rank]
        row = self.table[rank]
        if at >= len(row):
            tail = (program.bucket_s, program.sync_s, program.optimizer_s)
            return tail[at - len(row)][rank], 0.0
        stage, op, k = row[at]
        if op == "F":
            return program.forward_s[stage], self.inputs.forward[stage][k]
        return program.backward_s[stage], self.inputs.backward[stage][k]

    def _begin_what_can(self) -> None:
        for rank, row in enumerate(self.table):
            if rank in self.left or self.position[rank] > len(row) + 2:
                continue
            work, ready = self._work(rank)
            if ready is None:
                continue
            if ready <= self.now:
                self.left[rank] = work
                self.begin[rank].append(self.now)
            else:
                heapq.heappush(self.arrivals, ready)

    def _rates(self) -> dict[int, float]:
        """Progress per second of each computing stage."""
        active = self._active()
        rates = {}
        for s in self.left:
            in_sync = self.position[s] == len(self.table[s]) + 1
            curve = self.sharing.sync_slowdown if in_sync else self.sharing.slowdown
            ranks = self.sharing.ranks_on_host[s]
            rates[s] = 1 / max(slow(curve, active[h]) for h, n in enumerate(ranks) if n)
        return rates

    def _active(self) -> list[int]:
        """Ranks that compute, by host."""
        on = self.sharing.ranks_on_host
        return [sum(on[s][h] for s in self.left) for h in range(len(on[0]))]

    def _advance(self) -> None:
        """To the next end of work or arrival of an input, whichever is first."""
        rates = self._rates()
        done = {s: self.now + left / rates[s] for s, left in self.left.items()}
        until = min([*done.values(), *self.arrivals[:1]])
        while self.arrivals and self.arrivals[0] <= until:
            heapq.heappop(self.arrivals)
        for s in list(self.left):
            if done[s] <= until:
                del self.left[s]
                self._end(s, until)
            else:
                self.left[s] -= (until - self.now) * rates[s]
        self.now = until

    def _end(self, rank: int, now: float) -> None:
        row, at = self.table[rank], self.position[rank]
        self.finish[rank].append(now)
        if at < len(row):
            self.inputs.finish(row[at], now)
        self.position[rank] += 1
