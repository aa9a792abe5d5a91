"""Simulation of one optimizer step of a pipeline: any schedule, virtual stages, split backward.

Each pipeline rank computes its row of the schedule's table in order. An action starts when the rank
is free and its input has arrived: F of virtual stage s needs F of stage s - 1, backward of s needs
backward of s + 1, each later by the message's time; the last stage's backward needs its own F, W
its I. After its last action a rank copies, reduces and applies its gradients (`planner.tail`). The
step ends with the last rank.

Ranks that each have a device are timed by the longest path (`planner.wavefront`), ranks that share
the cores of a host from event to event (`planner.shared_host`). `simulate_many` times many
programs of one structure at once, as a search needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from planner.dependencies import Graph, graph_of
from planner.program import Batch, Floats, Program, Structure
from planner.schedules import Table
from planner.shared_host import Sharing, run_shared, slow
from planner.tail import tail_of
from planner.wavefront import delays, ends_of, last_ends, last_ends_of_batch

__all__ = [
    "Batch",
    "Program",
    "Sharing",
    "Structure",
    "Timeline",
    "simulate",
    "simulate_many",
    "slow",
]

Rows = tuple[Floats, ...]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Seconds from the start of the step. Rows are pipeline ranks; times of actions
    [row][position] are made when they are first asked for.
    """

    program: Program
    bucket_end: Floats
    sync_start: Floats
    """Of each virtual stage's reduction."""
    stage_sync_end: Floats
    sync_end: Floats
    """Per rank, of its last reduction."""
    optimizer_end: Floats
    step_s: float
    _ends: Floats | None = field(default=None, repr=False)
    _shared: tuple[Rows, Rows] | None = field(default=None, repr=False)

    @cached_property
    def table(self) -> Table:
        """The actions, in the order of the other rows."""
        return self.program.structure.actions

    @cached_property
    def start(self) -> Rows:
        """When each action starts."""
        if self._shared is not None:
            return self._shared[0]
        graph, ends = self._graph, self._all_ends
        free = np.maximum(ends[graph.before], ends[graph.needs] + self._delay)
        return tuple(free[row] for row in graph.rows)

    @cached_property
    def end(self) -> Rows:
        """When each action ends."""
        if self._shared is not None:
            return self._shared[1]
        ends = self._all_ends[self._graph.first :]
        return tuple(ends[row] for row in self._graph.rows)

    @property
    def _graph(self) -> Graph:
        return graph_of(self.program.structure)

    @cached_property
    def _all_ends(self) -> Floats:
        return ends_of(self.program) if self._ends is None else self._ends

    @property
    def _delay(self) -> Floats:
        delay: Floats = delays(Batch.of([self.program]))[self._graph.kind, 0]
        return delay


def simulate(program: Program, sharing: Sharing | None = None) -> Timeline:
    """Time of one step from standing start.

    Raises `ValueError` for a table whose actions wait for each other.
    """
    if sharing is not None:
        shared = run_shared(program, sharing)
        tail, ends, rows = shared.tail, None, (shared.start, shared.end)
    else:
        last, ends = last_ends(program)
        tail, rows = tail_of(Batch.of([program]), last), None
    return Timeline(
        program=program,
        bucket_end=tail.bucket_end[0],
        sync_start=tail.sync_start[0],
        stage_sync_end=tail.sync_end[0],
        sync_end=tail.lane_end[0],
        optimizer_end=tail.optimizer_end[0],
        step_s=float(tail.optimizer_end.max()),
        _ends=ends,
        _shared=rows,
    )


def simulate_many(programs: Batch | Sequence[Program]) -> Floats:
    """`step_s` of every program, each rank on its own device; programs share their structure."""
    batch = programs if isinstance(programs, Batch) else Batch.of(programs)
    step_s: Floats = tail_of(batch, last_ends_of_batch(batch)).optimizer_end.max(axis=1)
    return step_s
