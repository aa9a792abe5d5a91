"""`meshwright launch --status RUN` and `--stop RUN`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from launch.cli.terminal import note, say

if TYPE_CHECKING:
    from launch.progress import RunReport
    from planner.plan import Plan


def show(run_dir: Path, *, end_first: bool, as_json: bool) -> None:
    """How a run is doing, after it was ended where that is asked for."""
    from launch.progress import report_of, stop
    from profiler.codec import encode

    if end_first:
        stop(run_dir)
    report = report_of(run_dir)
    if as_json:
        typer.echo(encode(report), nl=False)
        return
    for line in lines_of(report):
        say(line)
    if report.state == "lost":
        note("Its launcher is gone; `--stop` collects what it left")


def note_moves(plan_file: Path, plan: "Plan") -> None:
    """Say where a plan's run has moved the experts that the plan places."""
    from launch.records import LOOKS_NAME

    run_dir, chosen = plan_file.parent, plan.chosen
    if plan_file.name != "plan.json" or not (run_dir / LOOKS_NAME).exists():
        return
    from launch.expert_looks import places_of_run  # with numpy, which plans do without
    from planner.expert_moves import placed_experts

    planned = placed_experts(plan.model, chosen.config, chosen.placement)
    if places_of_run(plan, run_dir)[0] != planned:
        note(
            "The run in this folder has moved its experts: the plan is of where they began; "
            "`verify` compares with where they were"
        )


def lines_of(report: "RunReport") -> list[str]:
    """The report for people."""
    job = f", job {report.job}" if report.job else ""
    why = f": {report.message}" if report.state == "failed" and report.message else ""
    steps = [f"{report.steps_done} of {report.num_steps} steps"]
    if report.last_step_s is not None:
        steps.append(f"the last in {report.last_step_s:.3f} s")
    if report.loss is not None:
        steps.append(f"loss {report.loss:.3f}")
    if report.seconds_left is not None:
        steps.append(f"about {_duration(report.seconds_left)} left")
    if report.num_moves is not None:
        times = "time" if report.num_moves == 1 else "times"
        steps.append(f"experts moved {report.num_moves} {times}")
    return [
        f"{report.plan_id} {report.state}{why}",
        f"on {report.scheduler}{job}, launched from {report.host}",
        ", ".join(steps),
    ]


def _duration(seconds: float) -> str:
    """`42 s`, `12 min`, `3 h 05 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
