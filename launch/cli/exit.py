"""Exit codes of every command."""

from enum import IntEnum

from profiler.errors import ErrorKind


class Exit(IntEnum):
    """What the shell sees."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOTHING_FITS = 3
    DIFFERS = 4
    STALE = 5
    BUG = 70
    INTERRUPTED = 130


OF_KIND: dict[ErrorKind, Exit] = {
    "invalid": Exit.FAILED,
    "failed": Exit.FAILED,
    "infeasible": Exit.NOTHING_FITS,
    "stale": Exit.STALE,
    "interrupted": Exit.INTERRUPTED,
}

TEXT = (
    "Exit codes: 0 ok, 1 bad input or failure, 2 usage, 3 nothing fits, 4 differs, "
    "5 stale plan, 70 bug, 130 interrupted."
)
