"""Runs on this machine: torchrun, watched."""

import collections
import importlib.util
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launch.faults import first_fault
from launch.framework.native import agents_of, command
from launch.scheduler import local
from launch.scheduler.base import LOG_NAME, TAIL_LINES, Ended, Job, OnLine, SchedulerName
from launch.scheduler.gpus import num_gpus
from planner.plan import Plan
from profiler.errors import UserError

_HINT = "plan for this machine: `meshwright profile`, then `meshwright plan --profile`"


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleNode:
    """The machine that `launch` runs on."""

    any_host: bool = False
    """Also where the profile was not measured."""
    name: SchedulerName = "local"

    def ready(self, plan: Plan, runs: Path) -> Self:
        """Stale where this machine is not what the plan was made for."""
        agents = agents_of(plan)
        if len(agents) > 1:
            raise UserError(
                f"plan `{plan.id}` is for {len(agents)} nodes; `launch` runs on one",
                hint="`--on ssh --hosts FILE` and `--on slurm` run on several; `--prepare` makes "
                "the run's folder and prints the command to start on each node",
                kind="stale",
            )
        _check_devices(plan, agents[0].num_ranks)
        made_on, here = plan.profile.environment, socket.gethostname()
        cores = len(os.sched_getaffinity(0))
        if (
            made_on.host
            and not self.any_host
            and (made_on.host, made_on.num_cores) != (here, cores)
        ):
            raise UserError(
                f"plan `{plan.id}` is stale: its profile is of host `{made_on.host}` with "
                f"{made_on.num_cores} cores, this is `{here}` with {cores}",
                hint=f"{_HINT}; or pass `--any-host` to run it all the same",
                kind="stale",
            )
        check_torch()
        return self

    def files(self, job: Job) -> dict[str, str]:
        """command.sh"""
        what = command(job.plan, job.run_dir, job.recipe)
        return {"command.sh": f"#!/bin/sh\nexec env {what.text}\n"}

    def run(self, job: Job, on_line: OnLine, on_job: OnLine) -> Ended:
        """torchrun, to its end."""
        tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)

        def see(line: str) -> None:
            tail.append(line)
            on_line(line)

        what = command(job.plan, job.run_dir, job.recipe)
        code = local.run(what, job.run_dir / LOG_NAME, see)
        return Ended(code=code, fault="" if code == 0 else first_fault(tail))


def _check_devices(plan: Plan, num_ranks: int) -> None:
    device = plan.cluster.groups[0].device
    found = num_gpus()
    if not device.is_host and found < num_ranks:
        raise UserError(
            f"plan `{plan.id}` is stale: it was made for {num_ranks} x {device.name}, "
            f"this machine has {found} GPUs",
            hint=_HINT,
            kind="stale",
        )


def check_torch() -> None:
    """Raise `UserError` where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "this needs torch, which is not installed",
            hint="pip install 'meshwright[run]'",
            kind="failed",
        )
