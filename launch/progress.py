"""How a run is doing, and how it is ended: `launch --status` and `launch --stop`.

What a run has done is read from its ranks' records, whoever runs it. Whether it still runs is
known by its launcher's process, or by the scheduler that runs it without one. A launcher that is
gone wrote no end: such a run is `lost`, and stopping it collects what there is.
"""

import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from launch.apply import finish
from launch.artifact import read_plan
from launch.records import attempt_of
from launch.scheduler import kubernetes, slurm
from launch.scheduler.base import SchedulerName
from launch.status import Status, launcher_lives, read_status
from launch.steps import last_steps, steps_done
from profiler.codec import record
from profiler.errors import UserError
from profiler.model import NotNegative
from profiler.profile import Seconds

STOP_S = 90.0
"""How long a launcher may take to end its ranks and collect."""
_LAST = 20
"""Steps by which the time that is left is judged."""
_POLL_S = 0.1
StateNow = Literal["pending", "running", "lost", "complete", "interrupted", "failed"]


@record
class RunReport:
    """What `--status --json` prints."""

    format_version: str = "1.0"
    kind: Literal["run"] = "run"
    plan_id: str
    run_dir: str
    state: StateNow
    """pending: waits for nodes. lost: its launcher is gone without a word, and nothing runs."""
    scheduler: SchedulerName
    job: str
    host: str
    """Where its launcher runs, or ran."""
    num_steps: NotNegative
    steps_done: NotNegative
    """By all ranks."""
    last_step_s: Seconds | None
    loss: float | None
    seconds_left: Seconds | None
    """None where the run does not go on, or has no step behind it to judge by."""
    message: str
    """Why it ended."""
    num_moves: NotNegative | None = None
    """How often experts have changed their places; None where the run does not look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """How a scheduler that needs no launcher is asked about its job."""

    state_of: Callable[[str], str | None]
    active: tuple[str, ...]
    waiting: tuple[str, ...]
    cancel: Callable[[str], None]


WATCHED: dict[SchedulerName, Watched] = {
    "slurm": Watched(
        state_of=slurm.state_of,
        active=slurm.ACTIVE,
        waiting=("PENDING", "CONFIGURING"),
        cancel=slurm.cancel,
    ),
    "kubernetes": Watched(
        state_of=kubernetes.state_of,
        active=kubernetes.ACTIVE,
        waiting=("pending",),
        cancel=kubernetes.cancel,
    ),
}


def report_of(run_dir: Path) -> RunReport:
    """How a run is doing now; writes nothing."""
    status = read_status(run_dir)
    rows = last_steps(run_dir)
    done = steps_done(rows, read_plan(run_dir / "plan.json").chosen.config.num_devices)
    slowest = min(rows, key=lambda own: own[-1]["step"] if own else -1, default=[])
    periods = [
        b["end"] - a["end"]
        for a, b in pairwise(slowest[-_LAST:])
        if b["step"] == a["step"] + 1 and attempt_of(a) == attempt_of(b)
    ]
    state = state_now(status)
    goes_on = state == "running" and periods
    done = done if state in ("running", "pending", "lost") else status.steps_done
    losses = {row["step"]: row["loss"] for own in rows for row in own if row["loss"] is not None}
    return RunReport(
        plan_id=status.plan_id,
        run_dir=str(run_dir.absolute()),
        state=state,
        scheduler=status.scheduler,
        job=status.job,
        host=status.host,
        num_steps=status.num_steps,
        steps_done=done,
        last_step_s=periods[-1] if periods else None,
        loss=losses.get(done - 1),
        seconds_left=statistics.median(periods) * (status.num_steps - done) if goes_on else None,
        message=status.message,
        num_moves=slowest[-1].get("num_moves") if slowest else None,
    )


def state_now(status: Status) -> StateNow:
    """The state that the launcher wrote, or what became of it since."""
    if status.state != "running":
        return status.state
    watched = WATCHED.get(status.scheduler)
    if watched is not None and status.job:
        found = watched.state_of(status.job)
        if found in watched.waiting:
            return "pending"
        if found in watched.active:
            return "running"
    # On another host it may live: that it does not is for that host to say.
    return "lost" if launcher_lives(status) is False else "running"


def stop(run_dir: Path) -> None:
    """End a run wherever it runs, and collect; a run that has ended stays as it is.

    Raises `UserError` where it cannot be ended from here.
    """
    status = read_status(run_dir)
    if status.state != "running":
        return
    watched = WATCHED.get(status.scheduler)
    lives = launcher_lives(status)
    if lives:
        _end_launcher(status)
    elif watched is not None and status.job:
        watched.cancel(status.job)
        if lives is None:
            _wait_for_word(run_dir)
    elif lives is None:
        raise UserError(
            f"the run's launcher is on host `{status.host}`",
            hint="run the same command there",
            kind="failed",
        )
    left = read_status(run_dir)
    if left.state == "running":  # nobody wrote its end
        whole = report_of(run_dir).steps_done >= left.num_steps
        plan = read_plan(run_dir / "plan.json")
        if whole:
            finish(plan, run_dir, left, "complete", "")
        else:
            finish(plan, run_dir, left, "interrupted", "stopped")


def _end_launcher(status: Status) -> None:
    """SIGTERM, and wait; only the process that launched the run, never one with its number."""
    try:
        handle = os.pidfd_open(status.pid)
    except OSError:
        return
    try:
        if not launcher_lives(status):
            return
        signal.pidfd_send_signal(handle, signal.SIGTERM)
    except PermissionError:
        raise UserError(
            f"the run's launcher, process {status.pid}, is another user's", kind="failed"
        ) from None
    finally:
        os.close(handle)
    deadline = time.monotonic() + STOP_S
    while launcher_lives(status):
        if time.monotonic() > deadline:
            raise UserError(
                f"the run's launcher, process {status.pid}, did not end within {STOP_S:.0f} s",
                kind="failed",
            )
        time.sleep(_POLL_S)


def _wait_for_word(run_dir: Path, seconds: float = 10.0) -> None:
    """Until a launcher on another host has written the end, if there is one."""
    deadline = time.monotonic() + seconds
    while read_status(run_dir).state == "running" and time.monotonic() < deadline:
        time.sleep(_POLL_S)
