"""What each action of a step waits for, as index arrays in an order in which they can be computed.

An action waits for the one before it on its rank and for one other at most: F of stage s for F of
stage s - 1, backward of s for backward of s + 1, that of the last stage for its F, W for its I.
Actions are sorted by level, a number that grows along every wait; those of one level do not wait
for each other.

Arrays are built once per structure and kept while they are among the last used
(`_Cache`). GPipe, 1F1B and the interleaved schedules have levels in closed form
(`planner.loop_levels`); others are run once, action by action.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.loop_levels import levels_of
from planner.program import Structure
from planner.schedules import Op, Table

Ints = NDArray[np.intp]
OPS: tuple[Op, ...] = ("F", "B", "I", "W")
"""An action's kind is `OPS.index(op) * num_stages + stage`."""
_F, _B, _I, _W = range(4)
_SMALL = 1 << 15
_CACHED_ACTIONS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Unsorted:
    """Actions in any order; `level` differs between actions of one rank."""

    rank: Ints
    stage: Ints
    op: Ints
    micro_batch: Ints
    level: Ints
    needs: Ints
    """Index of what the action waits for beside its rank; -1: nothing."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Actions by level. End times live in an array of [never, each rank's head, actions]; `before`,
    `needs`, `stage_end` and `rank_end` are positions in it.
    """

    num_ranks: int
    num_stages: int
    rank: Ints
    micro_batch: Ints
    kind: Ints
    before: Ints
    """The action before it on its rank, or the rank's head."""
    needs: Ints
    """0 where it waits for nothing else."""
    levels: tuple[int, ...]
    """First action of each level, and the number of actions."""
    stage_end: Ints
    """Per virtual stage, its last B or W."""
    rank_end: Ints

    @property
    def first(self) -> int:
        """Position of the first action."""
        return 1 + self.num_ranks

    @property
    def lists(self) -> tuple[list[int], list[int], list[int]]:
        """`before`, `needs` and `kind` for a loop in Python; kept where they are short."""
        return self._lists if len(self.kind) <= _SMALL else self._make_lists()

    @cached_property
    def _lists(self) -> tuple[list[int], list[int], list[int]]:
        return self._make_lists()

    def _make_lists(self) -> tuple[list[int], list[int], list[int]]:
        return self.before.tolist(), self.needs.tolist(), self.kind.tolist()

    @cached_property
    def rows(self) -> tuple[Ints, ...]:
        """Per rank, its actions in order, as indices of actions."""
        by_rank = np.argsort(self.rank.astype(np.int16), kind="stable")
        counts = np.bincount(self.rank, minlength=self.num_ranks)
        return tuple(np.split(by_rank, np.cumsum(counts)[:-1]))


def graph_of(structure: Structure) -> Graph:
    """The structure's graph. Raises `ValueError` for a table whose actions wait for each other."""
    graph = _cache.get(structure)
    if graph is None:
        graph = _sorted(_actions(structure), structure.pp, len(structure.owners))
        _cache.put(structure, graph)
    return graph


class _Cache:
    """The graph last used, and those before it that have `_CACHED_ACTIONS` actions with it."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Structure, Graph] = OrderedDict()
        self._held = 0

    def get(self, structure: Structure) -> Graph | None:
        graph = self._graphs.get(structure)
        if graph is not None:
            self._graphs.move_to_end(structure)
        return graph

    def put(self, structure: Structure, graph: Graph) -> None:
        self._graphs[structure] = graph
        self._held += len(graph.kind)
        while self._held > _CACHED_ACTIONS and len(self._graphs) > 1:
            _, old = self._graphs.popitem(last=False)
            self._held -= len(old.kind)

    def clear(self) -> None:
        self._graphs.clear()
        self._held = 0


_cache = _Cache()


def forget_graphs() -> None:
    """Empty the cache, to time a first call."""
    _cache.clear()


def _sorted(actions: Unsorted, pp: int, num_stages: int) -> Graph:
    order = np.argsort(actions.level * pp + actions.rank)
    num, first = len(order), 1 + pp
    position = np.zeros(num + 1, dtype=np.intp)  # the last, reached by -1, is 0: never
    position[order] = np.arange(first, first + num)
    rank, level = actions.rank[order], actions.level[order]
    by_rank = np.argsort(rank.astype(np.int16), kind="stable")
    before = np.empty(num, dtype=np.intp)
    before[by_rank[1:]] = by_rank[:-1] + first
    starts = np.flatnonzero(np.diff(rank[by_rank], prepend=-1))
    before[by_rank[starts]] = 1 + rank[by_rank[starts]]
    op, stage = actions.op[order], actions.stage[order]
    ends = np.flatnonzero((op == _B) | (op == _W))
    stage_end, rank_end = np.zeros(num_stages, dtype=np.intp), np.arange(1, first)
    stage_end[stage[ends]] = ends + first  # of several, the last one stays
    rank_end[rank] = np.arange(first, first + num)
    return Graph(
        num_ranks=pp,
        num_stages=num_stages,
        rank=rank,
        micro_batch=actions.micro_batch[order],
        kind=op * num_stages + stage,
        before=before,
        needs=position[actions.needs[order]],
        levels=(*np.flatnonzero(np.diff(level, prepend=-1)).tolist(), num),
        stage_end=stage_end,
        rank_end=rank_end,
    )


def _actions(structure: Structure) -> Unsorted:
    grids = levels_of(structure)
    if grids is None:
        return _run(structure.actions, structure.num_microbatches)
    offsets = np.cumsum([0, *(grid.level.size for grid in grids)])
    parts: dict[str, list[Ints]] = {}
    for grid, offset in zip(grids, offsets, strict=False):
        fields = {
            "rank": grid.rank,
            "stage": grid.stage,
            "op": np.full_like(grid.rank, OPS.index(grid.op)),
            "micro_batch": grid.micro_batch,
            "level": grid.level,
            "needs": np.where(grid.needs < 0, -1, grid.needs + offset),
        }
        for name, values in fields.items():
            parts.setdefault(name, []).append(values.ravel())
    return Unsorted(**{name: np.concatenate(values) for name, values in parts.items()})


def _run(table: Table, num_microbatches: int) -> Unsorted:
    """A table's actions; their level is the time at which they start where each takes a second."""
    flat = [action for row in table for action in row]
    lengths = [len(row) for row in table]
    stage = np.array([action.stage for action in flat], dtype=np.intp)
    micro_batch = np.array([action.micro_batch for action in flat], dtype=np.intp)
    op = np.array([OPS.index(action.op) for action in flat], dtype=np.intp)
    needs = _needs(stage, op, micro_batch, num_microbatches)
    level = _unit_starts(lengths, needs.tolist())
    check_complete(table, _stops(lengths, level))
    return Unsorted(
        rank=np.repeat(np.arange(len(table)), lengths),
        stage=stage,
        op=op,
        micro_batch=micro_batch,
        level=np.array(level, dtype=np.intp),
        needs=np.where(needs == len(flat), -1, needs),
    )


def _needs(stage: Ints, op: Ints, micro_batch: Ints, num_microbatches: int) -> Ints:
    """Index of what each waits for: their number is nothing, one more what is not in the table."""
    num, last = len(stage), int(stage.max())
    at = np.full((4, last + 1, num_microbatches), num + 1, dtype=np.intp)
    at[op, stage, micro_batch] = np.arange(num)
    at[_B] = np.minimum(at[_B], at[_I])  # backward for the input, of either kind
    behind = np.where(op == _W, stage, np.minimum(stage + 1, last))
    of_stage = np.where(op == _F, stage - 1, behind)
    of_op = np.select([op == _F, op == _W, stage == last], [_F, _I, _F], _B)
    needs = at[of_op, of_stage, micro_batch]
    return np.where((op == _F) & (stage == 0), num, needs)


def _unit_starts(lengths: list[int], needs: list[int]) -> list[int]:
    """When each action starts, in seconds of one each; -1 where it never can."""
    num = len(needs)
    starts = [-1] * num + [-2, -1]  # nothing is over before all starts, what is missing never
    first = [sum(lengths[:rank]) for rank in range(len(lengths))]
    position, stop = list(first), [a + n for a, n in zip(first, lengths, strict=True)]
    moved = True
    while moved:
        moved = False
        for rank, at in enumerate(position):
            start = starts[at - 1] if at > first[rank] else -1
            while at < stop[rank] and starts[needs[at]] != -1:
                start = starts[at] = max(start, starts[needs[at]]) + 1
                at += 1
            moved = moved or at > position[rank]
            position[rank] = at
    return starts[:num]


def _stops(lengths: list[int], level: list[int]) -> list[int]:
    """How many actions of each row can run."""
    stops, first = [], 0
    for length in lengths:
        row = level[first : first + length]
        stops.append(row.index(-1) if -1 in row else length)
        first += length
    return stops


def check_complete(table: Table, position: list[int]) -> None:
    """Raise `ValueError` where a row has stopped before its end."""
    stuck = [str(row[at]) for row, at in zip(table, position, strict=True) if at < len(row)]
    if stuck:
        raise ValueError(f"schedule can never run: {', '.join(stuck)} wait for each other")
