"""Pipeline schedules as data: `table_of(name, ranks, micro-batches, stages per rank)` gives every
rank's actions in order.

The simulator times the same table that the runtime executes. Every schedule works for any number of
micro-batches, also for fewer than there are stages.
"""

import functools
from types import ModuleType

from planner.config import ScheduleName
from planner.schedules import dualpipev, gpipe, interleaved, one_f_one_b, zbv, zero_bubble
from planner.schedules.action import Action, Flights, Op, Table
from planner.schedules.check import check_table, format_table, parse_table, peak_in_flight
from planner.schedules.shape import allows_vpp, owners, stage_owner

__all__ = [
    "SPLIT_BACKWARD",
    "Action",
    "Flights",
    "Op",
    "Table",
    "allows_vpp",
    "check_table",
    "format_table",
    "in_flight",
    "owners",
    "parse_table",
    "peak_in_flight",
    "stage_owner",
    "table_of",
]

_LOOPS: dict[ScheduleName, ModuleType] = {"interleaved": interleaved, "zero_bubble": zero_bubble}
_FIXED: dict[ScheduleName, ModuleType] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "zbv": zbv,
    "dualpipev": dualpipev,
}

SPLIT_BACKWARD: frozenset[ScheduleName] = frozenset({"zero_bubble", "zbv", "dualpipev"})
"""Schedules with I and W. A table of the user's may have them as well."""


@functools.lru_cache(maxsize=64)
def table_of(name: ScheduleName, pp: int, num_microbatches: int, vpp: int = 1) -> Table:
    """The schedule's table, one row per pipeline rank; `ValueError` where it has none."""
    _check(name, vpp)
    table: Table
    if name in _LOOPS:
        table = _LOOPS[name].table(pp, num_microbatches, vpp)
    else:
        table = _FIXED[name].table(pp, num_microbatches)
    return table


@functools.lru_cache(maxsize=1024)
def in_flight(name: ScheduleName, pp: int, num_microbatches: int, vpp: int = 1) -> Flights:
    """Stage-micro-batches in flight on each rank: by the schedule's formula where it has one, else
    counted from its table. See `peak_in_flight`.
    """
    _check(name, vpp)
    flights: Flights | None
    if name in _LOOPS:
        flights = _LOOPS[name].in_flight(pp, num_microbatches, vpp)
    else:
        flights = _FIXED[name].in_flight(pp, num_microbatches)
    return flights or peak_in_flight(table_of(name, pp, num_microbatches, vpp))


def _check(name: ScheduleName, vpp: int) -> None:
    if name == "table":
        raise ValueError("schedule `table` has the user's table")
    if not allows_vpp(name, vpp):
        raise ValueError(f"schedule {name} cannot have {vpp} stages per rank")
