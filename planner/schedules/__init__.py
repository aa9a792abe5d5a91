"""Pipeline schedules as data: `table_of(name, stages, micro-batches)` gives every rank's actions in
order.

The simulator times the same table that the runtime executes.
"""

import functools
from collections.abc import Callable

from planner.config import ScheduleName
from planner.schedules import gpipe, one_f_one_b
from planner.schedules.action import Action, Op, Table

__all__ = ["Action", "Op", "Table", "in_flight", "table_of"]

_TABLES: dict[ScheduleName, Callable[[int, int], Table]] = {
    "gpipe": gpipe.table,
    "1f1b": one_f_one_b.table,
}


@functools.lru_cache(maxsize=256)
def table_of(name: ScheduleName, num_stages: int, num_microbatches: int) -> Table:
    """The schedule's table, one row per pipeline rank."""
    return _TABLES[name](num_stages, num_microbatches)


def in_flight(row: tuple[Action, ...]) -> tuple[int, int]:
    """Most micro-batches whose forward is done and whose backward is not: (up to the rank's first
    backward, from its end on). Before the first backward a rank holds no gradients."""
    now, before, after, begun = 0, 0, 0, False
    for action in row:
        now += {"F": 1, "B": -1, "I": 0, "W": -1}[action.op]
        if action.op != "F":
            begun = True
        if begun:
            after = max(after, now)
        else:
            before = max(before, now)
    return before, after
