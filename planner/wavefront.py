"""End of every action of a step on ranks that each have their own device: the longest path.

    end = max(end of the action before on the rank, end of what it waits for + message) + own time

Sends do not hold up the sender. One program is run action by action in plain Python, at about a
tenth of a microsecond each. Many programs of one structure are run level by level in numpy, all
side by side, at some microseconds per level; so is one whose levels are wide.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from planner.dependencies import Graph, graph_of
from planner.program import Batch, Floats, Program

_ACTION_S, _LEVEL_S, _CELL_S = 0.12e-6, 6e-6, 6e-9
"""One action in Python; one level, and one action of one program, in numpy."""
_MOST_CELLS = 1 << 21
"""Actions times programs that are run at once."""


class LastEnds(NamedTuple):
    """What the tail of a step waits for, [program, virtual stage] and [program, rank]."""

    stage: Floats
    """End of the last B or W of each virtual stage."""
    rank: Floats
    """End of the last action of each rank."""


def ends_of(program: Program) -> Floats:
    """Ends of a program's actions, at the positions of its `Graph`."""
    graph = graph_of(program.structure)
    if _prefers_levels(graph, 1):
        return _run_levels(graph, Batch.of([program]))[:, 0]
    none = (0.0,) * program.num_stages
    to_forward = (0.0, *program.send_forward_s[:-1])
    to_backward = (*program.send_backward_s[1:], 0.0)
    work = [*program.forward_s, *program.backward_s, *program.input_s, *program.weight_s]
    delay = [*to_forward, *to_backward, *to_backward, *none]
    return np.array(_run(graph, work, delay, program.heads))


def last_ends(program: Program) -> tuple[LastEnds, Floats | None]:
    """Of one program, with the ends of all its actions where they had to be found."""
    if _is_closed(program.num_stages, program.structure.pp):
        busy = (program.forward_s[0], program.backward_s[0])
        end = np.array([[program.heads[0] + program.num_microbatches * sum(busy)]])
        return LastEnds(end, end), None
    graph, ends = graph_of(program.structure), ends_of(program)
    return LastEnds(ends[graph.stage_end][None], ends[graph.rank_end][None]), ends


def last_ends_of_batch(batch: Batch) -> LastEnds:
    """Of many programs."""
    num, num_stages = batch.forward_s.shape
    if _is_closed(num_stages, batch.structure.pp):
        busy = batch.forward_s + (batch.input_s + batch.weight_s)
        end = batch.head_s + batch.structure.num_microbatches * busy
        return LastEnds(end, end)
    graph = graph_of(batch.structure)
    stage, rank = np.empty((num, num_stages)), np.empty((num, graph.num_ranks))
    for part in _parts(graph, num):
        ends = _run_levels(graph, batch.part(part))
        stage[part], rank[part] = ends[graph.stage_end].T, ends[graph.rank_end].T
    return LastEnds(stage, rank)


def _is_closed(num_stages: int, pp: int) -> bool:
    """A rank alone with one stage never waits, in whatever order."""
    return pp == num_stages == 1


def _prefers_levels(graph: Graph, num_programs: int) -> bool:
    """Where numpy is the faster of the two."""
    num, levels = len(graph.kind), len(graph.levels)
    return levels * _LEVEL_S + num * num_programs * _CELL_S < num * num_programs * _ACTION_S


def _parts(graph: Graph, num_programs: int) -> Iterator[slice]:
    size = max(1, _MOST_CELLS // len(graph.kind))
    for first in range(0, num_programs, size):
        yield slice(first, min(first + size, num_programs))


def _run(
    graph: Graph, work: list[float], delay: list[float], heads: tuple[float, ...]
) -> list[float]:
    ends = [-np.inf, *heads]
    add = ends.append
    for before, needs, kind in zip(*graph.lists, strict=True):
        free, ready = ends[before], ends[needs] + delay[kind]
        add((free if free > ready else ready) + work[kind])
    return ends


def _run_levels(graph: Graph, batch: Batch) -> Floats:
    """[position, program]."""
    work, delay = _work(batch)[graph.kind], delays(batch)[graph.kind]
    first, num = graph.first, len(batch.forward_s)
    ends = np.empty((first + len(graph.kind), num))
    ends[0], ends[1:first] = -np.inf, batch.head_s.T
    widest = int(np.diff(graph.levels).max())
    ready, free = np.empty((widest, num)), np.empty((widest, num))
    begin = 0
    for end in graph.levels[1:]:
        a, b = ready[: end - begin], free[: end - begin]
        ends.take(graph.needs[begin:end], axis=0, out=a, mode="clip")
        a += delay[begin:end]
        ends.take(graph.before[begin:end], axis=0, out=b, mode="clip")
        np.maximum(a, b, out=a)
        np.add(a, work[begin:end], out=ends[first + begin : first + end])
        begin = end
    return ends


def _work(batch: Batch) -> Floats:
    """[kind, program]: seconds of an action."""
    backward = batch.input_s + batch.weight_s
    parts = (batch.forward_s, backward, batch.input_s, batch.weight_s)
    return np.ascontiguousarray(np.concatenate(parts, axis=1).T)


def delays(batch: Batch) -> Floats:
    """[kind, program]: seconds from the end of what an action waits for until it is there."""
    none = np.zeros_like(batch.forward_s)
    to_forward, to_backward = none.copy(), none.copy()
    to_forward[:, 1:] = batch.send_forward_s[:, :-1]
    to_backward[:, :-1] = batch.send_backward_s[:, 1:]
    parts = (to_forward, to_backward, to_backward, none)
    return np.ascontiguousarray(np.concatenate(parts, axis=1).T)
