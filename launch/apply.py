"""Write a run's folder, run the plan in it, and collect what was measured.

`runs/<plan-id>/` appears whole (built beside and renamed) and is never deleted; a second run of the
same plan gets `<plan-id>-2`. It holds plan.json, recipe.json, command.sh, status.json, run.log,
ranks/*.jsonl and, at the end, whatever the end, observed.json with the steps that all ranks
finished.
"""

import collections
import contextlib
import importlib.util
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn

from launch.artifact import is_folder, read_plan, write_atomic
from launch.checkpoints import find_checkpoint, step_of
from launch.collect import OBSERVED_NAME, STATUS_NAME, collect
from launch.faults import first_fault
from launch.framework.native import check_runnable, command, nodes_of
from launch.observed import Observed, State
from launch.recipe import FILE_NAME, Recipe
from launch.scheduler import local
from launch.tokens import open_tokens
from launch.trace import write_trace
from planner.plan import Plan
from profiler.codec import encode, record, replace
from profiler.config_json import first_difference
from profiler.errors import ErrorKind, UserError
from profiler.huggingface import FILE_NAME as CONFIG_NAME
from profiler.huggingface import read_model
from profiler.model import ModelSpec

TAIL_LINES = 10_000
"""Of a run's output, kept for finding what ended it."""
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


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
    node, (num_nodes, per_node) = plan.cluster.uniform, nodes_of(plan)
    hint = "plan for this machine: `meshwright profile`, then `meshwright plan --profile`"
    if num_nodes > 1:
        raise UserError(
            f"plan `{plan.id}` is for {num_nodes} nodes; `launch` runs on one",
            hint="`--prepare` makes the run's folder and prints the command to start on each node",
            kind="stale",
        )
    if not node.device.is_host:
        found = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        if found < per_node:
            raise UserError(
                f"plan `{plan.id}` is stale: it was made for {per_node} x "
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


def checked(plan: Plan, recipe: Recipe) -> Recipe:
    """The recipe with the checkpoint to resume from named, whatever its run writes meanwhile.

    Raises `UserError` where the workers could not read the data, or begin with the weights or the
    checkpoint.
    """
    open_tokens(recipe.data_file, plan.model, plan.job)
    if recipe.weights_folder is not None:
        _check_weights(plan, recipe.weights_folder)
    if recipe.resume_folder is None:
        return recipe
    found = find_checkpoint(recipe.resume_folder)
    if step_of(found) >= recipe.total_steps:
        raise UserError(
            f"the checkpoint has {step_of(found)} steps behind it, and the run ends after "
            f"{recipe.total_steps}",
            hint="raise `--steps`: steps count from the beginning of the training",
            place=recipe.resume,
        )
    made_by = found.parent.parent / "plan.json"
    if made_by.is_file():
        _check_model(plan, read_plan(made_by).model, made_by, "resume with a plan of this model")
    return replace(recipe, resume=str(found.absolute()))


def _check_model(plan: Plan, found: ModelSpec, place: Path, hint: str) -> None:
    """Raise `UserError` where the plan's model is another one."""
    field = first_difference(plan.model, found)
    if field is not None:
        raise UserError(
            f"`{field}` is {getattr(found, field)} here and {getattr(plan.model, field)} "
            f"in the model of plan `{plan.id}`",
            hint=hint,
            place=str(place),
        )


def _check_weights(plan: Plan, folder: Path) -> None:
    """Raise `UserError` where the folder does not hold weights of the plan's model."""
    if not is_folder(folder):
        raise UserError(
            f"no such folder: `{folder}`",
            hint="give a Hugging Face model folder with `--weights FOLDER`",
        )
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise UserError(
            f"the folder holds no `{WEIGHT_FILES[0]}` and no `{WEIGHT_FILES[1]}`",
            hint="weights are read from safetensors files alone",
            place=str(folder),
        )
    config = folder / CONFIG_NAME
    if config.is_file():
        hint = f"plan with this model: `meshwright plan -m {folder}`"
        _check_model(plan, read_model(config), config, hint)


def make_run_dir(plan: Plan, recipe: Recipe, runs: Path) -> Path:
    """A new folder for a run of the plan, with the plan and the recipe in it."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=runs, prefix=f".{plan.id}."))
        fresh.chmod(0o755)
        (fresh / "ranks").mkdir()
        (fresh / "plan.json").write_text(encode(plan), encoding="utf-8")
        (fresh / FILE_NAME).write_text(encode(recipe), encoding="utf-8")
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
    plan: Plan, runs: Path, recipe: Recipe, on_line: Callable[[str], None]
) -> tuple[Path, Observed]:
    """Run the plan here to the end; returns the run's folder and what was observed.

    Raises `UserError`: `failed` where a rank failed, `interrupted` after Ctrl-C; in both cases the
    folder says so and holds the finished steps.
    """
    check_torch()
    recipe = checked(plan, recipe)
    run_dir = make_run_dir(plan, recipe, runs)
    what = command(plan, run_dir, recipe)
    write_atomic(run_dir / "command.sh", f"#!/bin/sh\nexec env {what.text}\n")
    _status(run_dir, plan, recipe, "running", 0)
    log = run_dir / "run.log"
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)

    def see(line: str) -> None:
        tail.append(line)
        on_line(line)

    try:
        code = local.run(what, log, see)
    except KeyboardInterrupt:
        _finish(run_dir, plan, recipe, "interrupted", "interrupted", "stopped")
    if code != 0:
        _finish(run_dir, plan, recipe, "failed", "failed", first_fault(tail) or f"status {code}")
    observed = collect(plan, run_dir, "complete")
    if observed is None or observed.steps_done < recipe.total_steps:
        _finish(run_dir, plan, recipe, "failed", "failed", "ranks ended without all their steps")
    write_atomic(run_dir / OBSERVED_NAME, encode(observed))
    if recipe.trace:
        write_trace(run_dir)
    _status(run_dir, plan, recipe, "complete", observed.steps_done)
    return run_dir, observed


def _status(
    run_dir: Path,
    plan: Plan,
    recipe: Recipe,
    state: Literal["running", "complete", "interrupted", "failed"],
    done: int,
    message: str = "",
) -> None:
    status = Status(
        plan_id=plan.id,
        state=state,
        pid=os.getpid(),
        num_steps=recipe.total_steps,
        steps_done=done,
        message=message,
    )
    write_atomic(run_dir / STATUS_NAME, encode(status))


def _finish(
    run_dir: Path,
    plan: Plan,
    recipe: Recipe,
    state: State,
    kind: ErrorKind,
    message: str,
) -> NoReturn:
    """Keep what there is of a run that did not end well, and raise."""
    observed = None
    with contextlib.suppress(UserError):  # records that cannot be read do not hide what ended it
        observed = collect(plan, run_dir, state)
    done = observed.steps_done if observed else 0
    assert state != "complete"
    with contextlib.suppress(UserError):  # on a full disk what ended the run matters more
        _status(run_dir, plan, recipe, state, done, message)
        if observed:
            write_atomic(run_dir / OBSERVED_NAME, encode(observed))
    word = "was stopped" if state == "interrupted" else f"failed: {message}"
    raise UserError(
        f"the run {word} after {done} of {recipe.total_steps} steps",
        hint=f"`{run_dir}` holds its log and the finished steps",
        kind=kind,
    )
