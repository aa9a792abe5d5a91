"""Runs as jobs of Kubernetes: a manifest that kubectl creates, watched by it, deleted by it.

The folder of runs lies on a volume that the pods mount at the same path, so plan, recipe and
records are where the runtime looks for them, and progress is read from the ranks' records. Which
machine a pod lands on is the cluster's choice.
"""

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launch.scheduler import local
from launch.scheduler.base import Ended, Job, OnLine, SchedulerName
from launch.scheduler.command_line import run_quietly
from launch.scheduler.kube_manifest import Manifest, PodOptions, manifest_text
from launch.steps import NewSteps
from planner.plan import Plan
from profiler.errors import UserError

FILE_NAME = "job.yaml"
POLL_S = 2.0
_SILENT_S = 300.0
"""How long kubectl may fail, as it does while the API server restarts."""
_COMPLETE = ("Complete", "Completed", "Succeeded")
_FAILED = ("Failed",)
"""Condition types by which PyTorchJob, JobSet and TrainJob tell their ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """The cluster that kubectl speaks to."""

    manifest: Manifest
    pods: PodOptions
    name: SchedulerName = "kubernetes"

    def ready(self, plan: Plan, runs: Path) -> Self:
        """Whether there is a kubectl; the manifest says the rest."""
        if shutil.which("kubectl") is None:
            raise UserError(
                "there is no `kubectl` here",
                hint="`--prepare` writes the manifest into the run's folder",
                kind="failed",
            )
        return self

    def files(self, job: Job) -> dict[str, str]:
        """job.yaml"""
        name = job.run_dir.name if job.program is None else job.plan.id
        return {FILE_NAME: manifest_text(self.manifest, job, self.pods, name)}

    def run(self, job: Job, on_line: OnLine, on_job: OnLine) -> Ended:
        """Create and wait."""
        name = f"{self.pods.namespace}/{self.manifest}/{job.run_dir.name}"
        with local.signals_interrupt():
            done = run_quietly("kubectl", "create", "-f", str(job.run_dir / FILE_NAME))
            if done.returncode != 0:
                said = [line for line in done.stderr.splitlines() if line.strip()][-1:]
                raise UserError(
                    f"kubectl did not create the job: {''.join(said)}",
                    hint=f"`kubectl create -f {job.run_dir / FILE_NAME}` shows all it says",
                    kind="failed",
                )
            try:
                on_job(name)
                return _watch(name, job, on_line)
            except BaseException:
                cancel(name)
                raise


def _watch(name: str, job: Job, on_line: OnLine) -> Ended:
    """Until the job has ended; a line for each step that all ranks have taken."""
    steps = NewSteps(job.run_dir, job.plan.chosen.config.num_devices)
    while (state := state_of(name)) in ACTIVE:
        for line in steps.lines():
            on_line(line)
        time.sleep(POLL_S)
    for line in steps.lines():
        on_line(line)
    if state == "complete":
        return Ended(code=0)
    if state is None:
        raise KeyboardInterrupt  # deleted, by whomever
    own = name.rpartition("/")[2]
    why = why_in(_got(name).stdout)
    return Ended(code=1, fault=f"job {own} failed{f': {why}' if why else ''}")


ACTIVE = ("pending", "running")
"""States of `state_of` in which a job has not ended."""


def state_of(name: str) -> str | None:
    """pending, running, complete or failed, of a job by its NAMESPACE/KIND/NAME; None where there
    is none. `UserError` where kubectl fails for minutes."""
    deadline = time.monotonic() + _SILENT_S
    while True:
        done = _got(name)
        if done.returncode == 0:
            return state_in(done.stdout)
        if time.monotonic() > deadline:
            raise UserError(f"kubectl fails: {done.stderr.strip()[:300]}", kind="failed")
        time.sleep(5 * POLL_S)


def _got(name: str) -> "subprocess.CompletedProcess[str]":
    return run_quietly("kubectl", "get", *_words(name), "--ignore-not-found", "--output=json")


def why_in(text: str) -> str:
    """What a job says of its failure, as `kubectl get --output=json` prints it; may be empty."""
    status = json.loads(text).get("status") or {} if text.strip() else {}
    said = [c.get("message") or "" for c in status.get("conditions") or () if c["type"] in _FAILED]
    return said[-1].strip().rstrip(".") if said else ""


def state_in(text: str) -> str | None:
    """State of a job as `kubectl get --output=json` prints it; None where it prints nothing."""
    if not text.strip():
        return None
    status = json.loads(text).get("status") or {}
    true = {c["type"] for c in status.get("conditions") or () if c.get("status") == "True"}
    if true.intersection(_COMPLETE):
        return "complete"
    if true.intersection(_FAILED):
        return "failed"
    active = sum(
        int(part.get("active") or 0)
        for key in ("replicatedJobsStatus", "jobsStatus")
        for part in status.get(key) or ()
    )
    return "running" if active or "Running" in true else "pending"


def cancel(name: str) -> None:
    """Delete a job and what belongs to it, and wait until it is gone; `UserError` where that
    fails."""
    names = [name]
    if "/trainjob/" in name:
        names.append(name.replace("/trainjob/", "/trainingruntime/"))
    for each in names:
        done = run_quietly("kubectl", "delete", *_words(each), "--ignore-not-found", "--wait")
        if done.returncode != 0:
            raise UserError(
                f"kubectl does not delete the job: {done.stderr.strip()[:300]}", kind="failed"
            )


def _words(name: str) -> list[str]:
    """Arguments of kubectl that name a job."""
    namespace, kind, own = name.split("/")
    return [kind, own, *([f"--namespace={namespace}"] if namespace else [])]
