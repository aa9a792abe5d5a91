"""`meshwright show`: everything in a plan, as text."""

import typer

from launch.cli.options import Json, PlanFile
from launch.cli.terminal import bold, say


def run(plan: PlanFile, as_json: Json = False) -> None:
    """Show a plan: layout, memory, where the step goes, what was rejected."""
    from launch.artifact import read_plan
    from launch.cli import render
    from profiler.codec import encode

    content = read_plan(plan)
    if as_json:
        typer.echo(encode(content), nl=False)
        return
    say(bold(render.heading(content)))
    say(f"plan {content.id}\n")
    for line in render.picture(content):
        say(line)
    if content.chosen.estimate is not None:
        say("A step on the mean rank")
        for line in render.split_lines(content.chosen):
            say(line)
        say(f"\n{render.proof(content)}")
    say(f"\n{render.considered(content)}")
    for line in render.rejected_lines(content):
        say(line)
