"""Write a run's folder, run the plan in it, and collect what was measured.

`runs/<plan-id>/` appears whole (built beside and renamed) and is never deleted; a second run of the
same plan gets `<plan-id>-2`. It holds plan.json, command.sh, status.json, run.log, ranks/*.jsonl
and, at the end, whatever the end, observed.json with the steps that all ranks finished.
"""

import importlib.util
import os
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn

from launch.artifact import write_atomic
from launch.collect import collect
from launch.framework.native import TrainOptions, check_runnable, command
from launch.observed import Observed, State
from launch.scheduler import local
from planner.plan import Plan
from profiler.codec import encode, record
from profiler.errors import ErrorKind, UserError


@record
class Status:
    """Content of `status.json`."""

    kind: Literal["status"] = "status"
    plan_id: str
    state: Literal["running", "complete", "interrupted", "failed"]
    pid: int
    num_steps: int
    steps_done: int
    message: str = ""


def check_here(plan: Plan, *, any_host: bool) -> None:
    """Raise `UserError` (stale) where this machine is not what the plan was made for."""
    check_runnable(plan)
    node = plan.cluster.uniform
    hint = "plan for this machine: `meshwright profile`, then `meshwright plan --profile`"
    if node.num_nodes > 1:
        raise UserError(
            f"plan `{plan.id}` is for {node.num_nodes} nodes; `launch` runs on one",
            hint="`--dry-run` prints the command to start on each node",
            kind="stale",
        )
    if not node.device.is_host:
        found = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        if found < node.devices_per_node:
            raise UserError(
                f"plan `{plan.id}` is stale: it was made for {node.devices_per_node} x "
                f"{node.device.name}, this machine has {found} GPUs",
                hint=hint,
                kind="stale",
            )
    made_on, here = plan.profile.environment, socket.gethostname()
    if made_on.host and not any_host and (made_on.host, made_on.num_cores) != (here, _cores()):
        raise UserError(
            f"plan `{plan.id}` is stale: its profile is of host `{made_on.host}` with "
            f"{made_on.num_cores} cores, this is `{here}` with {_cores()}",
            hint=f"{hint}; or pass `--any-host` to run it all the same",
            kind="stale",
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def check_data(plan: Plan, data: Path) -> None:
    """Raise `UserError` where the text cannot fill one sequence."""
    try:
        size = data.stat().st_size if data.is_file() else -1
    except OSError:
        size = -1
    if size < 0:
        raise UserError(f"no such text file: `{data}`", hint="give one with `--data FILE`")
    if size <= plan.job.seq_len:
        raise UserError(
            f"{size} bytes of text do not fill one sequence of {plan.job.seq_len} + 1 tokens",
            place=str(data),
            hint="give a longer file with `--data FILE`",
        )


def make_run_dir(plan: Plan, runs: Path) -> Path:
    """A new folder for a run of the plan, with the plan in it."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=runs, prefix=f".{plan.id}."))
        fresh.chmod(0o755)
        (fresh / "ranks").mkdir()
        (fresh / "plan.json").write_text(encode(plan), encoding="utf-8")
        for attempt in range(1, 10_000):
            target = runs / (plan.id if attempt == 1 else f"{plan.id}-{attempt}")
            if target.exists():
                continue
            try:
                fresh.rename(target)
            except OSError:
                if target.exists():  # someone else was first
                    continue
                raise
            return target.resolve()
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise UserError(f"cannot make a run folder: {reason}", place=str(runs)) from None
    raise UserError(f"`{runs}` holds 9,999 runs of plan `{plan.id}`", hint="pass another `--runs`")


def check_torch() -> None:
    """Raise `UserError` where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "this needs torch, which is not installed",
            hint="pip install 'meshwright[run]'",
            kind="failed",
        )


def launch(
    plan: Plan, runs: Path, options: TrainOptions, on_line: Callable[[str], None]
) -> tuple[Path, Observed]:
    """Run the plan here to the end; returns the run's folder and what was observed.

    Raises `UserError`: `failed` where a rank failed, `interrupted` after Ctrl-C; in both cases the
    folder says so and holds the finished steps.
    """
    check_torch()
    check_data(plan, options.data)
    run_dir = make_run_dir(plan, runs)
    what = command(plan, run_dir, options)
    write_atomic(run_dir / "command.sh", f"#!/bin/sh\nexec env {what.text}\n")
    _status(run_dir, plan, options, "running", 0)
    log = run_dir / "run.log"
    try:
        code = local.run(what, log, on_line)
    except KeyboardInterrupt:
        _finish(run_dir, plan, options, "interrupted", "interrupted", "stopped")
    if code != 0:
        _finish(run_dir, plan, options, "failed", "failed", _first_error(log) or f"status {code}")
    observed = collect(plan, run_dir, "complete")
    if observed is None or len(observed.losses) < options.total_steps:
        _finish(run_dir, plan, options, "failed", "failed", "ranks ended without all their steps")
    write_atomic(run_dir / "observed.json", encode(observed))
    _status(run_dir, plan, options, "complete", len(observed.losses))
    return run_dir, observed


def _status(
    run_dir: Path,
    plan: Plan,
    options: TrainOptions,
    state: Literal["running", "complete", "interrupted", "failed"],
    done: int,
    message: str = "",
) -> None:
    status = Status(
        plan_id=plan.id,
        state=state,
        pid=os.getpid(),
        num_steps=options.total_steps,
        steps_done=done,
        message=message,
    )
    write_atomic(run_dir / "status.json", encode(status))


def _finish(
    run_dir: Path,
    plan: Plan,
    options: TrainOptions,
    state: State,
    kind: ErrorKind,
    message: str,
) -> NoReturn:
    """Keep what there is of a run that did not end well, and raise."""
    observed = collect(plan, run_dir, state)
    done = len(observed.losses) if observed else 0
    if observed:
        write_atomic(run_dir / "observed.json", encode(observed))
    assert state != "complete"
    _status(run_dir, plan, options, state, done, message)
    word = "was stopped" if state == "interrupted" else f"failed: {message}"
    raise UserError(
        f"the run {word} after {done} of {options.total_steps} steps",
        hint=f"`{run_dir}` holds its log and the finished steps",
        kind=kind,
    )


_ERROR = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception)\b.*|error: .*)$")


def _first_error(log: Path) -> str:
    """The first exception that a rank printed: later ones are peers that lost it."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            match = _ERROR.match(line.strip())
            if match:
                return match[1][:300]
    return ""
