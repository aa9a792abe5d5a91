"""Pipeline schedules as data: `table_of(name, stages, micro-batches)` gives every rank's actions in
order.

The simulator times the same table that the runtime executes.
"""

import functools
from types import ModuleType

from planner.config import ScheduleName
from planner.schedules import gpipe, one_f_one_b
from planner.schedules.action import Action, Flights, Op, Table

__all__ = ["Action", "Flights", "Op", "Table", "in_flight", "table_of"]

_SCHEDULES: dict[ScheduleName, ModuleType] = {"gpipe": gpipe, "1f1b": one_f_one_b}


@functools.lru_cache(maxsize=64)
def table_of(name: ScheduleName, num_stages: int, num_microbatches: int) -> Table:
    """The schedule's table, one row per pipeline rank."""
    table: Table = _SCHEDULES[name].table(num_stages, num_microbatches)
    return table


def in_flight(name: ScheduleName, num_stages: int, num_microbatches: int) -> Flights:
    """Micro-batches in flight on each rank, by the schedule's formula."""
    flights: Flights = _SCHEDULES[name].in_flight(num_stages, num_microbatches)
    return flights
