"""Which rank holds which stage.

Loop: stage = chunk * pp + rank, so that a micro-batch goes round all ranks once per chunk
(Narayanan et al. 2021, arXiv:2104.04473, 2.2). V: rank r holds stages r and 2 * pp - 1 - r, so that
the last stage lies beside the first and its backward starts where its forward ended (Qi et al.
2023, arXiv:2401.10241, section 6).
"""

from planner.config import ScheduleName
from planner.schedules.action import Table

V_SHAPED: frozenset[ScheduleName] = frozenset({"zbv", "dualpipev"})
_ONE_STAGE: frozenset[ScheduleName] = frozenset({"gpipe", "1f1b"})


def allows_vpp(name: ScheduleName, vpp: int) -> bool:
    """Whether the schedule can have `vpp` stages on each rank."""
    if name in V_SHAPED:
        return vpp == 2
    return vpp == 1 if name in _ONE_STAGE else vpp >= 1


def stage_owner(name: ScheduleName, pp: int, vpp: int) -> tuple[int, ...]:
    """Stage -> rank of a named schedule; a table of the user's has `owners`."""
    if name == "table" or not allows_vpp(name, vpp):
        raise ValueError(f"schedule {name} has no shape with {vpp} stages per rank")
    if name in V_SHAPED:
        return (*range(pp), *reversed(range(pp)))
    return tuple(range(pp)) * vpp


def owners(table: Table) -> tuple[int, ...]:
    """Stage -> row of a table that passes `check_table`."""
    row_of = {action.stage: rank for rank, row in enumerate(table) for action in row}
    return tuple(row_of[stage] for stage in range(len(row_of)))
