"""Runs as jobs of Slurm: submitted, watched by squeue, followed by their log, cancelled by scancel.

Nothing is asked of Slurm's accounting. A job that squeue no longer knows has ended; its script has
then written its status beside the log, unless it was killed.
"""

import collections
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launch.faults import first_fault
from launch.framework.native import check_alike, nodes_of
from launch.scheduler import local
from launch.scheduler.base import LOG_NAME, TAIL_LINES, Ended, Job, OnLine, SchedulerName
from launch.scheduler.command_line import run_quietly
from launch.scheduler.follow import Follower
from launch.scheduler.hosts import Host, hosts_of_plan
from launch.scheduler.slurm_script import (
    STATUS_NAME,
    ScriptOptions,
    batch_script,
    check_options,
)
from planner.plan import Plan
from profiler.codec import replace
from profiler.errors import UserError

SCRIPT_NAME = "job.sh"
POLL_S = 1.0
_SILENT_S = 300.0
"""How long squeue may fail, as it does while slurmctld restarts."""
_END_S = 60.0
ACTIVE = (
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING"),
    *("STAGE_OUT", "RESIZING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"),
    "SPECIAL_EXIT",
)
"""States of squeue(1) in which a job has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """The cluster that sbatch submits to."""

    script: ScriptOptions
    hosts: tuple[Host, ...] = ()
    """In the order of the cluster's nodes; empty: those of the plan's links, else Slurm's choice
    and order."""
    hosts_file: str = ""
    name: SchedulerName = "slurm"

    def ready(self, plan: Plan, runs: Path) -> Self:
        """Whether there is a Slurm; the script says the rest."""
        check_options(self.script.options)
        if shutil.which("sbatch") is None:
            raise UserError(
                "there is no `sbatch` here",
                hint="launch on a machine that submits to Slurm; `--prepare` writes the script",
                kind="failed",
            )
        return self

    def files(self, job: Job) -> dict[str, str]:
        """job.sh"""
        check_options(self.script.options)
        return {SCRIPT_NAME: batch_script(job, self._script(job.plan))}

    def run(self, job: Job, on_line: OnLine, on_job: OnLine) -> Ended:
        """Submit and wait."""
        with local.signals_interrupt():
            name = _slurm("sbatch", "--parsable", str(job.run_dir / SCRIPT_NAME)).strip()
            number = name.partition(";")[0]
            try:
                on_job(number)
                return _watch(number, job.run_dir, on_line)
            except BaseException:
                cancel(number)
                raise

    def _script(self, plan: Plan) -> ScriptOptions:
        links = plan.profile.links
        hosts = self.hosts or tuple(Host(name=name) for name in (links.hosts if links else ()))
        if not hosts:
            check_alike(plan, "Slurm", "`--hosts FILE` names the cluster's nodes, in its order")
            return self.script
        nodes = nodes_of(plan)
        wanted = [(node, nodes.count(node)) for node in nodes]
        names = tuple(h.address for h in hosts_of_plan(hosts, plan, wanted, self.hosts_file))
        return replace(self.script, hosts=names)


def _watch(number: str, run_dir: Path, on_line: OnLine) -> Ended:
    """Until the job has ended; its log goes to `on_line` as it grows."""
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)

    def see(line: str) -> None:
        tail.append(line)
        on_line(line)

    follower = Follower(run_dir / LOG_NAME, see)
    seen = state = ""
    while (state := state_of(number) or "") in ACTIVE:
        follower.poll()
        if state != seen and state in ("PENDING", "CONFIGURING"):
            on_line(f"warning: job {number} waits for its nodes ({state.lower()})")
        seen = state
        time.sleep(POLL_S)
    follower.poll(last=True)
    if state == "CANCELLED":
        raise KeyboardInterrupt  # by whomever
    status = run_dir / STATUS_NAME
    code = int(status.read_text(encoding="ascii")) if status.is_file() else 1
    if code == 0:
        return Ended(code=0)
    return Ended(code=code, fault=first_fault(tail) or _said_by_slurm(number, state, run_dir))


def _said_by_slurm(number: str, state: str, run_dir: Path) -> str:
    """What is known of a job that printed no reason; may be empty."""
    if not (run_dir / LOG_NAME).exists():
        return f"job {number} wrote no log; do its nodes see `{run_dir}`?"
    return "" if state in ("", "FAILED", "COMPLETED") else f"job {number} ended as {state}"


def state_of(number: str) -> str | None:
    """State of a job as squeue calls it; None once it is not known any more.

    `UserError` where squeue fails for minutes.
    """
    deadline = time.monotonic() + _SILENT_S
    while True:
        done = run_quietly(
            "squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}"
        )
        if done.returncode == 0:
            return done.stdout.strip() or None
        if "Invalid job id" in done.stderr:
            return None
        if time.monotonic() > deadline:
            raise UserError(f"squeue fails: {done.stderr.strip()[:300]}", kind="failed")
        time.sleep(5 * POLL_S)


def cancel(number: str) -> None:
    """End a job and wait until it has; what has ended already is no error, what goes on is."""
    done = run_quietly("scancel", number)
    deadline = time.monotonic() + _END_S
    while (state_of(number) or "") in ACTIVE:
        if done.returncode != 0 or time.monotonic() > deadline:
            why = done.stderr.strip()[:300] or f"it has not ended after {_END_S:.0f} s"
            raise UserError(f"job {number} cannot be cancelled: {why}", kind="failed")
        time.sleep(0.2)


def _slurm(*argv: str) -> str:
    """What a command of Slurm printed; `UserError` with what it said where it failed."""
    done = run_quietly(*argv)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        why = said[-1].removeprefix(f"{argv[0]}: ").removeprefix("error: ") if said else ""
        raise UserError(f"{argv[0]} refused the job: {why}", kind="failed")
    return done.stdout
