"""A step on ranks that share the cores of their host (CPU training).

Durations are work done at the rate 1 / slow(ranks that compute now), with the measured curve
relative to one group of ranks alone. That is processor sharing: a waiting rank leaves its share to
the others, so a bubble costs less than on devices that are each their own. Ranks of a
tensor-parallel group and of data-parallel replicas run in step, so one actor stands for all ranks
of a pipeline rank. A lane that reduces gradients beside its rank's computation is an actor too.
"""

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.dependencies import check_complete
from planner.program import Floats, Program
from planner.schedules import Action, Table
from planner.tail import Tail


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Cores shared by the ranks of a host."""

    slowdown: tuple[float, ...]
    """[k - 1] with k ranks of the host active, relative to one group alone; not decreasing."""
    sync_slowdown: tuple[float, ...]
    """The same for the gradient reduction, and what is gathered before the first forward, relative
    to its group alone."""
    ranks_on_host: tuple[tuple[int, ...], ...]
    """[pipeline rank][host]: ranks on that host."""
    in_turn: bool = False
    """A stage's messages in one direction follow each other on its link, as on slow ones; else each
    arrives its time after it was sent."""


def slow(curve: tuple[float, ...], active: int) -> float:
    """Slow-down with `active` ranks; beyond the curve, cores are shared as at its end."""
    if active <= len(curve):
        return curve[max(active, 1) - 1]
    return curve[-1] * active / len(curve)


Piece = Action | Literal["head", "bucket", "sync", "update"]
Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SharedStep:
    """Start and end of every action [row][position], and the tail, as of one program."""

    start: tuple[Floats, ...]
    end: tuple[Floats, ...]
    tail: Tail


def run_shared(program: Program, sharing: Sharing) -> SharedStep:
    """The step. Raises `ValueError` for a table whose actions wait for each other."""
    run = _Run(program, sharing)
    run.until_done()
    ranks = range(len(run.table))
    lane_end = [max(run.sync[stage][1] for stage in run.done[rank]) for rank in ranks]
    sync = [run.sync[stage] for stage in range(program.num_stages)]
    tail = (
        [run.bucket_end[rank] for rank in ranks],
        [start for start, _ in sync],
        [end for _, end in sync],
        lane_end,
        [run.update_end[rank] for rank in ranks],
    )
    return SharedStep(
        start=tuple(np.array([start for start, _ in row]) for row in run.spans),
        end=tuple(np.array([end for _, end in row]) for row in run.spans),
        tail=Tail(*(np.array([times]) for times in tail)),
    )


class _Run:
    """From event to event: an actor's rate is set by who works beside it.

    Actors are the ranks and, where reductions overlap, as many lanes; each has a list of pieces.
    """

    def __init__(self, program: Program, sharing: Sharing) -> None:
        self.program, self.sharing, self.now = program, sharing, 0.0
        self.table = program.structure.actions
        self.arrival = _Arrivals(program, in_turn=sharing.in_turn)
        self.pieces = _pieces(program, self.table)
        self.position = [0] * len(self.pieces)
        self.left: dict[int, float] = {}  # actor -> work left, in seconds of its group alone
        self.began = [0.0] * len(self.pieces)
        self.coming: list[float] = []
        self.to_end = Counter(a.stage for row in self.table for a in row if a.op in "BW")
        self.done: list[list[int]] = [[] for _ in self.table]  # stages by last backward
        self.num_stages = Counter(program.structure.owners)
        self.spans: list[list[Span]] = [[] for _ in self.table]
        self.sync: dict[int, Span] = {}
        self.bucket_end: dict[int, float] = {}
        self.update_end: dict[int, float] = {}

    def until_done(self) -> None:
        """Run all pieces."""
        self._begin_what_can()
        while self.left or self.coming:
            self._advance()
            self._begin_what_can()
        check_complete(self.table, [len(row) for row in self.spans])

    def _rank(self, actor: int) -> int:
        return actor % len(self.table)

    def _next(self, actor: int) -> tuple[float, float | None]:
        """Seconds of an actor's next piece, and when it can start if that is known."""
        program, rank = self.program, self._rank(actor)
        piece = self.pieces[actor][self.position[actor]]
        if isinstance(piece, Action):
            return self.arrival.work(piece), self.arrival.of(piece)
        if piece == "head":
            return program.heads[rank], 0.0
        if piece == "bucket":
            return program.bucket_s[rank], 0.0
        num_done = sum(stage in self.sync for stage in self.done[rank])
        if piece == "update":
            ready = num_done == self.num_stages[rank]
            return program.optimizer_s[rank], 0.0 if ready else None
        if num_done == len(self.done[rank]):
            return 0.0, None
        return program.sync_s[self.done[rank][num_done]], 0.0

    def _begin_what_can(self) -> None:
        for actor, pieces in enumerate(self.pieces):
            if actor in self.left or self.position[actor] == len(pieces):
                continue
            work, ready = self._next(actor)
            if ready is None:
                continue
            if ready <= self.now:
                self.left[actor], self.began[actor] = work, self.now
            else:
                heapq.heappush(self.coming, ready)

    def _rates(self) -> dict[int, float]:
        """Progress per second of each working actor."""
        on = self.sharing.ranks_on_host
        active = [sum(on[self._rank(a)][h] for a in self.left) for h in range(len(on[0]))]
        rates = {}
        for actor in self.left:
            piece = self.pieces[actor][self.position[actor]]
            is_network = piece in ("sync", "head")
            curve = self.sharing.sync_slowdown if is_network else self.sharing.slowdown
            ranks = on[self._rank(actor)]
            rates[actor] = 1 / max(slow(curve, active[h]) for h, n in enumerate(ranks) if n)
        return rates

    def _advance(self) -> None:
        """To the next end of work or arrival of an input, whichever is first."""
        rates = self._rates()
        ends = {actor: self.now + left / rates[actor] for actor, left in self.left.items()}
        until = min([*ends.values(), *self.coming[:1]])
        while self.coming and self.coming[0] <= until:
            heapq.heappop(self.coming)
        for actor in list(self.left):
            if ends[actor] <= until:
                del self.left[actor]
                self._end(actor, until)
            else:
                self.left[actor] -= (until - self.now) * rates[actor]
        self.now = until

    def _end(self, actor: int, now: float) -> None:
        rank, span = self._rank(actor), (self.began[actor], now)
        piece = self.pieces[actor][self.position[actor]]
        self.position[actor] += 1
        if isinstance(piece, Action):
            self.spans[rank].append(span)
            self.arrival.finish(piece, now)
            self.to_end[piece.stage] -= piece.op in "BW"
            if piece.op in "BW" and not self.to_end[piece.stage]:
                self.done[rank].append(piece.stage)
        elif piece == "sync":
            self.sync[next(s for s in self.done[rank] if s not in self.sync)] = span
        elif piece == "bucket":
            self.bucket_end[rank] = now
        elif piece == "update":
            self.update_end[rank] = now


def _pieces(program: Program, table: Table) -> list[list[Piece]]:
    """Pieces of each rank, then of each lane."""
    num_stages = Counter(program.structure.owners)
    heads: list[list[Piece]] = [["head"] if head else [] for head in program.heads]
    syncs: list[list[Piece]] = [["sync"] * num_stages[rank] for rank in range(len(table))]
    own: list[list[Piece]] = [
        [*head, *row, "bucket", *(() if program.overlap_sync else sync), "update"]
        for head, row, sync in zip(heads, table, syncs, strict=True)
    ]
    return [*own, *syncs] if program.overlap_sync else own


class _Arrivals:
    """When what each action needs arrives; None while it is not known."""

    def __init__(self, program: Program, *, in_turn: bool) -> None:
        self._in_turn = in_turn
        self._program, self._last = program, program.num_stages - 1
        self._at: dict[tuple[str, int, int], float] = {}  # B stands for I as well
        self._free: dict[tuple[str, int], float] = {}
        self._work = {
            "F": program.forward_s,
            "B": program.backward_s,
            "I": program.input_s,
            "W": program.weight_s,
        }

    def work(self, action: Action) -> float:
        """Seconds of an action."""
        return self._work[action.op][action.stage]

    def of(self, action: Action) -> float | None:
        """When the action can start, as far as others decide."""
        stage, op, k = action
        if op == "F" and stage == 0:
            return 0.0
        return self._at.get(("B" if op == "I" else op, stage, k))

    def finish(self, action: Action, now: float) -> None:
        """Note the end of an action: its result is on the way to where it is needed."""
        stage, op, k = action
        if op == "F" and stage < self._last:
            self._at["F", stage + 1, k] = self._sent("F", stage, now)
        elif op == "F":
            self._at["B", stage, k] = now
        elif op != "W" and stage > 0:
            self._at["B", stage - 1, k] = self._sent("B", stage, now)
        if op == "I":
            self._at["W", stage, k] = now

    def _sent(self, way: str, stage: int, now: float) -> float:
        """When a message that is ready now has arrived."""
        seconds = self._program.send_forward_s if way == "F" else self._program.send_backward_s
        begin = max(now, self._free.get((way, stage), 0.0)) if self._in_turn else now
        arrival = begin + seconds[stage]
        self._free[way, stage] = arrival
        return arrival
