"""`meshwright show`: everything in a plan, as text or as a page."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import Json, PlanFile
from launch.cli.run_state import note_moves
from launch.cli.terminal import bold, note, say

if TYPE_CHECKING:
    from planner.plan import Plan


def run(
    plan: PlanFile,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Only: the step, a row per pipeline rank.")
    ] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Only: memory of each stage.")] = False,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Only: the best of step time against memory.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all of it as one HTML page.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a plan: layout, memory, where the step goes, what was rejected."""
    from launch.artifact import read_plan
    from profiler.codec import encode

    content = read_plan(plan)
    note_moves(plan, content)
    if report is not None:
        _write(content, report)
    if as_json:
        typer.echo(encode(content), nl=False)
    elif timeline or memory or pareto:
        _sections(content, timeline, memory, pareto)
    elif report is None:
        _all(content)


def _all(plan: "Plan") -> None:
    from launch.cli import render

    say(bold(render.heading(plan)))
    say(f"plan {plan.id}\n")
    for line in render.picture(plan):
        say(line)
    if plan.chosen.estimate is not None:
        say("A step on the mean rank")
        for line in render.split_lines(plan.chosen):
            say(line)
        say(f"\n{render.proof(plan)}")
    say(f"\n{render.considered(plan)}")
    for line in render.rejected_lines(plan):
        say(line)


def _sections(plan: "Plan", timeline: bool, memory: bool, pareto: bool) -> None:
    """The parts asked for, in a fixed order."""
    from launch.cli import render, sections, timeline_text
    from planner.explain import timeline_of

    parts = []
    _ = plan.chosen.cost  # all parts speak of the estimate
    if timeline:
        width = shutil.get_terminal_size().columns
        parts.append(timeline_text.timeline_lines(timeline_of(plan), width))
    if memory:
        parts.append(sections.memory_lines(plan))
    if pareto:
        parts.append(sections.frontier_lines(plan))
    say(bold(render.heading(plan)))
    say(f"{plan.chosen.config.label} {plan.chosen.config.schedule}")
    for lines in parts:
        say()
        for line in lines:
            say(line)


def _write(plan: "Plan", path: Path) -> None:
    """The page, whole or not at all."""
    from launch.artifact import is_folder, write_atomic
    from launch.report.page import page_of
    from profiler.errors import UserError

    if is_folder(path):
        raise UserError("it is a folder", hint="name a file like `plan.html`", place=str(path))
    if not is_folder(path.parent):
        raise UserError(f"no such folder: `{path.parent}`", hint="make it, or name another")
    write_atomic(path, page_of(plan))
    note(f"Saved the report to: `{path}`")
