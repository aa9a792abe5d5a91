"""How far a run has come, from its folder: what is needed to say what going on costs."""

import json
import statistics
from pathlib import Path

from launch.artifact import is_folder, read_observed, read_plan
from launch.checkpoints import checkpoint_root, complete_checkpoints, step_of
from launch.collect import OBSERVED_NAME, collect
from launch.recipe import FILE_NAME, Recipe, read_recipe
from launch.records import rank_files, read_rank_file
from planner.holdings import Holdings
from planner.plan import Plan
from planner.ways import Situation
from planner.where import nodes_of_devices
from profiler.codec import replace
from profiler.errors import UserError


def situation_of(run_dir: Path, plan: Plan) -> Situation:
    """What the folder of a run of `plan` says: steps, checkpoints, their times.

    The newest complete checkpoint counts; whether its files are sound is looked at by `--resume`.
    Raises `UserError` where there is no such folder, or it is of another plan.
    """
    if not is_folder(run_dir):
        raise UserError(f"no such folder: `{run_dir}`", hint="give a run's, like runs/<plan-id>")
    found = read_plan(run_dir / "plan.json")
    if found.id != plan.id:
        raise UserError(
            f"the run is of plan `{found.id}`, not of `{plan.id}`",
            hint=f"replan from its own: `--from {run_dir / 'plan.json'}`",
            place=str(run_dir),
            kind="stale",
        )
    recipe = read_recipe(run_dir / FILE_NAME)
    checkpoint = _checkpoint_step(run_dir, recipe)
    known = Situation(
        steps_done=checkpoint or 0,
        checkpoint_step=checkpoint,
        checkpoint_every=recipe.checkpoint_every or None,
        total_steps=recipe.total_steps,
        startup_s=_startup_s(run_dir),
    )
    path = run_dir / OBSERVED_NAME
    observed = read_observed(path) if path.is_file() else collect(plan, run_dir, "failed")
    if observed is None:
        return known
    periods = [step.step_s for step in observed.steps]
    return replace(
        known,
        steps_done=max(observed.steps_done, known.steps_done or 0),
        step_s=statistics.median(periods) if periods else None,
    )


def hosts_of(run_dir: Path, plan: Plan) -> tuple[str, ...]:
    """Host of each node of the plan's cluster, as the ranks of a run wrote it; empty: unknown."""
    node_of = nodes_of_devices(plan.cluster)
    hosts = [""] * (node_of[-1] + 1)
    chosen = plan.chosen
    devices = Holdings(plan.model, chosen.config, chosen.placement).devices
    for path, device in zip(rank_files(run_dir), devices, strict=False):
        hosts[node_of[device]] = str(read_rank_file(path)[0].get("host", ""))
    return tuple(hosts)


def _checkpoint_step(run_dir: Path, recipe: Recipe) -> int | None:
    """Of the run's newest complete checkpoint, else of the one that it began with."""
    own = complete_checkpoints(checkpoint_root(run_dir))
    begun = recipe.resume_folder
    if own:
        return step_of(own[0])
    return step_of(begun) if begun is not None and begun.is_dir() else None


def _startup_s(run_dir: Path) -> float | None:
    """From the start of torchrun to the slowest rank's first step."""
    try:
        headers = [read_rank_file(path)[0] for path in rank_files(run_dir)]
    except (OSError, ValueError, json.JSONDecodeError):
        return None
    found = [h.get("startup_s") for h in headers]
    return max((s for s in found if isinstance(s, float) and s > 0), default=None)
