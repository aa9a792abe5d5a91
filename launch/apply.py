"""Write a run's folder, run the plan in it, and collect what was measured.

`runs/<plan-id>/` appears whole (built beside and renamed) and is never deleted; a second run of the
same plan gets `<plan-id>-2`. It holds plan.json, recipe.json, command.sh, status.json, run.log,
ranks/*.jsonl and, at the end, whatever the end, observed.json with the steps that all ranks
finished; with `record_routing` also routing.npz.
"""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn

from launch.artifact import is_folder, read_plan, write_atomic
from launch.checkpoints import find_checkpoint, step_of
from launch.collect import OBSERVED_NAME, collect
from launch.framework.native import check_runnable
from launch.observed import Observed, State
from launch.recipe import FILE_NAME, Recipe
from launch.routing_parts import save_joined
from launch.scheduler.base import Job, Scheduler
from launch.status import Status, status_of_us, write_status
from launch.tokens import open_tokens
from launch.trace import write_trace
from planner.plan import Plan
from profiler.codec import encode, replace
from profiler.config_json import first_difference
from profiler.errors import UserError
from profiler.huggingface import FILE_NAME as CONFIG_NAME
from profiler.huggingface import read_model
from profiler.model import ModelSpec

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def checked(plan: Plan, recipe: Recipe) -> Recipe:
    """The recipe with the checkpoint to resume from named, whatever its run writes meanwhile.

    Raises `UserError` where the workers could not read the data, begin with the weights or the
    checkpoint, or move experts.
    """
    open_tokens(recipe.data_file, plan.model, plan.job)
    if recipe.rebalance_experts_every and plan.chosen.config.ep == 1:
        which = "every rank has all of them (ep 1)" if plan.model.num_experts else "there are none"
        raise UserError(
            f"experts cannot be moved: {which}",
            hint="leave `rebalance_experts_every` out, or plan with ep 2 or more",
            place=f"plan {plan.id}",
        )
    if recipe.record_routing and not plan.model.num_moe_layers:
        raise UserError(
            f"{plan.model.name} has no experts whose routing could be recorded",
            hint="leave `record_routing` out",
        )
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


def launch(
    plan: Plan, runs: Path, recipe: Recipe, scheduler: Scheduler, on_line: Callable[[str], None]
) -> tuple[Path, Observed]:
    """Run the plan to the end; returns the run's folder and what was observed.

    Raises `UserError`: `failed` where a rank failed, `interrupted` after Ctrl-C; in both cases the
    folder says so and holds the finished steps.
    """
    check_runnable(plan)
    scheduler.files(Job(plan=plan, recipe=recipe, run_dir=runs.absolute() / plan.id))  # can it?
    scheduler = scheduler.ready(plan, runs)
    recipe = checked(plan, recipe)
    job = Job(plan=plan, recipe=recipe, run_dir=make_run_dir(plan, recipe, runs))
    for name, text in scheduler.files(job).items():
        write_atomic(job.run_dir / name, text)
    status = status_of_us(plan.id, scheduler.name, recipe.total_steps)
    write_status(job.run_dir, status)

    def on_job(name: str) -> None:
        nonlocal status
        status = replace(status, job=name)
        write_status(job.run_dir, status)

    try:
        ended = scheduler.run(job, on_line, on_job)
    except KeyboardInterrupt:
        _fail(job, status, "interrupted", "stopped")
    except UserError as e:
        finish(plan, job.run_dir, status, "failed", e.message)
        raise
    if ended.code != 0:
        _fail(job, status, "failed", ended.fault or f"status {ended.code}")
    observed = collect(plan, job.run_dir, "complete")
    if observed is None or observed.steps_done < recipe.total_steps:
        _fail(job, status, "failed", "ranks ended without all their steps")
    write_atomic(job.run_dir / OBSERVED_NAME, encode(observed))
    save_joined(plan, job.run_dir, complete=True)
    if recipe.trace:
        write_trace(job.run_dir)
    write_status(job.run_dir, replace(status, state="complete", steps_done=observed.steps_done))
    return job.run_dir, observed


def finish(plan: Plan, run_dir: Path, status: Status, state: State, why: str) -> Status:
    """Keep what there is of a run that ended; its last status."""
    observed = None
    with contextlib.suppress(UserError):  # records that cannot be read do not hide what ended it
        observed = collect(plan, run_dir, state)
    done = observed.steps_done if observed else 0
    status = replace(status, state=state, steps_done=done, message=why)
    with contextlib.suppress(UserError):  # on a full disk what ended the run matters more
        write_status(run_dir, status)
        if observed:
            write_atomic(run_dir / OBSERVED_NAME, encode(observed))
        save_joined(plan, run_dir, complete=state == "complete")
    return status


def _fail(job: Job, status: Status, state: Literal["interrupted", "failed"], why: str) -> NoReturn:
    done = finish(job.plan, job.run_dir, status, state, why).steps_done
    word = "was stopped" if state == "interrupted" else f"failed: {why}"
    raise UserError(
        f"the run {word} after {done} of {status.num_steps} steps",
        hint=f"`{job.run_dir}` holds its log and the finished steps",
        kind=state,
    )
