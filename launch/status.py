"""`status.json` of a run: who runs it, where, and how far it is known to have come.

The launcher writes it when the run begins, when the scheduler has named it, and at its end. A
launcher that died cannot write: that it did is seen from its process, which is known by its id and
the moment it started (proc(5), field 22 of /proc/PID/stat), since ids are used again.
"""

import os
import socket
from pathlib import Path
from typing import Literal

from launch.artifact import write_atomic
from launch.collect import STATUS_NAME
from launch.scheduler.base import SchedulerName
from profiler.codec import decode_artifact, encode, read_text, record
from profiler.errors import UserError

FORMAT_VERSION = "1.0"
RunState = Literal["running", "complete", "interrupted", "failed"]


@record
class Status:
    """Content of `status.json`."""

    format_version: str = FORMAT_VERSION
    kind: Literal["status"] = "status"
    plan_id: str
    state: RunState
    scheduler: SchedulerName = "local"
    job: str = ""
    """By what the scheduler knows the run; empty where it has no name for it."""
    host: str = ""
    """Where the launcher runs."""
    pid: int
    started: int = 0
    """When the launcher's process did, in clock ticks since its host booted."""
    num_steps: int
    steps_done: int
    message: str = ""


def status_of_us(
    plan_id: str, scheduler: SchedulerName, num_steps: int, state: RunState = "running"
) -> Status:
    """A run that this process has begun."""
    return Status(
        plan_id=plan_id,
        state=state,
        scheduler=scheduler,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=started_at(os.getpid()) or 0,
        num_steps=num_steps,
        steps_done=0,
    )


def read_status(run_dir: Path) -> Status:
    """Status of a run; `UserError` where the folder is not one of a run that was launched."""
    path = run_dir / STATUS_NAME
    if not path.is_file():
        if (run_dir / "plan.json").is_file():
            raise UserError(
                "the run has no status: no launcher has started it",
                hint="`meshwright launch` writes it, `--prepare` does not",
                place=str(run_dir),
            )
        raise UserError(
            "it is not a run's folder", hint="give one like runs/p-...", place=str(run_dir)
        )
    text = read_text(path)
    status, _ = decode_artifact(Status, text, str(path), kind="status", version=FORMAT_VERSION)
    return status


def write_status(run_dir: Path, status: Status) -> None:
    """Replace the status of a run."""
    write_atomic(run_dir / STATUS_NAME, encode(status))


def started_at(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since the boot; None where there is
    none, or only a dead one that nobody waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name, in brackets, may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def launcher_lives(status: Status) -> bool | None:
    """Whether the process that launched the run is still there; None where it was started on
    another host, and we cannot see."""
    if status.host != socket.gethostname():
        return None
    return started_at(status.pid) == status.started
