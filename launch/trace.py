"""What the ranks of a run did, as a trace that Perfetto and chrome://tracing show.

Trace Event Format (Google, "Trace Event Format", object form): a process is a rank, its threads are
the step, its compute actions, the waits for collectives of each axis, the sums of gradients, and
the optimizer. Complete events (`ph` X), with `ts` and `dur` in micro-seconds from the earliest
moment shown. Ranks of one host share a clock; those of others are shifted by an unknown amount.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.artifact import write_atomic
from launch.records import Header, Step, attempt_of, rank_files, read_rank_file
from profiler.errors import UserError

FILE_NAME = "trace.json"
MAX_STEPS = 50
"""How many of the last steps `write_trace` shows: viewers take some million events."""
Event = dict[str, Any]
_SHORT = {"dp_replicate": "dp", "dp_shard": "shard"}
"""Axes as labels of layouts call them."""
_THREADS = ("step", "compute", "sync", "optimizer")
"""Numbered from 0; axes follow in the order of their names."""


def trace_of(ranks: list[tuple[Header, list[Step]]]) -> dict[str, Any]:
    """Trace of (header, steps) of each rank. Collectives that nobody waited for are left out."""
    moments = [row["start"] for _, rows in ranks for row in rows]
    zero = min(moments, default=0.0)
    axes = sorted({c[0] for _, rows in ranks for row in rows for c in row["collectives"]})
    tids = {axis: tid for tid, axis in enumerate(axes, start=len(_THREADS))}
    events: list[Event] = []
    for header, rows in ranks:
        events += _names(header, axes)
        for row in rows:
            events += _events(header["rank"], row, tids, zero)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _names(header: Header, axes: list[str]) -> list[Event]:
    """Metadata events: what the rank and its threads are called, and their order."""
    rank = header["rank"]
    place = " ".join(f"{_SHORT.get(a, a)}{at}" for a, at in header["coordinate"].items())
    process: Event = {"ph": "M", "pid": rank, "tid": 0}
    names = [*_THREADS, *(f"wait {axis}" for axis in axes)]
    return [
        process | {"name": "process_name", "args": {"name": f"rank {rank} {place}".rstrip()}},
        process | {"name": "process_sort_index", "args": {"sort_index": rank}},
        *(
            {"ph": "M", "pid": rank, "tid": tid, "name": "thread_name", "args": {"name": name}}
            for tid, name in enumerate(names)
        ),
        *(
            {"ph": "M", "pid": rank, "tid": tid, "name": "thread_sort_index",
             "args": {"sort_index": tid}}
            for tid in range(len(names))
        ),
    ]  # fmt: skip


def _events(rank: int, row: Step, tids: dict[str, int], zero: float) -> Iterator[Event]:
    def event(tid: int, name: str, start: float, end: float, **args: Any) -> Event:
        return {
            "ph": "X", "pid": rank, "tid": tid, "name": name,
            "ts": round((start - zero) * 1e6, 3), "dur": round(max(0.0, end - start) * 1e6, 3),
            "args": args,
        }  # fmt: skip

    step, loss = row["step"], row["loss"]
    about: dict[str, Any] = {"warmup": bool(row["warmup"]), "attempt": attempt_of(row)}
    if loss is not None:
        about["loss"] = loss if math.isfinite(loss) else str(loss)  # JSON knows no NaN
    yield event(0, f"step {step}", row["start"], row["end"], **about)
    for op, stage, micro_batch, start, end in row["actions"]:
        # As in tables of schedules: stage, operation, micro-batch.
        yield event(1, f"{stage}{op}{micro_batch}", start, end, step=step)
    yield event(2, "sync", *row["sync"], step=step)
    yield event(3, "optimizer", *row["optimizer"], step=step)
    for axis, k, issued, start, end in row["collectives"]:
        if start is not None:
            ahead = round((start - issued) * 1e6, 3)
            yield event(tids[axis], f"{axis} {k}", start, end, step=step, issued_us_before=ahead)


def write_trace(run_dir: Path, *, max_steps: int = MAX_STEPS) -> Path:
    """Write RUN/trace.json of the last `max_steps` steps of each rank; returns its path.

    Raises `UserError` where the records cannot be read.
    """
    read = [read_rank_file(p) for p in rank_files(run_dir)]
    try:
        trace = trace_of([(header, rows[-max_steps:]) for header, rows in read if header])
        text = json.dumps(trace, separators=(",", ":"), allow_nan=False)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as e:
        raise UserError(f"the ranks' records cannot be read: {e!r}", place=str(run_dir)) from None
    path = run_dir / FILE_NAME
    write_atomic(path, text + "\n")
    return path
