"""`meshwright why`: the reasons for a plan, and what another layout would cost."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.options import Json, PlanFile, parse_axes
from launch.cli.run_state import note_moves
from launch.cli.terminal import bold, say

if TYPE_CHECKING:
    from planner.plan import Plan
    from planner.whynot import Answer


def run(
    plan: PlanFile,
    instead: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="AXES", help="Why not these? tp=4,pp=2."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Why a plan has its layout, and why not another."""
    from launch.artifact import read_plan

    content = read_plan(plan)
    note_moves(plan, content)
    if instead:
        _print_answer(content, instead, as_json)
    else:
        _print_reasons(content, as_json)


def _print_reasons(plan: "Plan", as_json: bool) -> None:
    from launch.cli import render, why_text
    from planner.explain import explain

    explained = explain(plan)
    if as_json:
        _print_json("why", plan, explained)
        return
    say(bold(render.heading(plan)))
    say(f"{plan.chosen.config.label} {plan.chosen.config.schedule}\n")
    for line in why_text.reason_lines(explained):
        say(line)


def _print_answer(plan: "Plan", instead: list[str], as_json: bool) -> None:
    from launch.cli import why_text
    from planner.explain import compare
    from planner.whynot import why_not

    answer = why_not(plan, parse_axes(instead, "--not"))
    if as_json:
        known = answer.best is not None and plan.chosen.estimate is not None
        terms = compare(plan.chosen, answer.best) if known and answer.best else {}
        _print_json("why-not", plan, answer, outcome=_outcome(plan, answer), terms=terms)
        return
    for line in why_text.answer_lines(plan, answer):
        say(line)


def _outcome(plan: "Plan", answer: "Answer") -> str:
    """`chosen`, `slower`, `faster`, `equal`, `impossible`, or `unknown` beside a plan without an
    estimate."""
    if answer.best is None:
        return "impossible"
    if answer.best.config == plan.chosen.config:
        return "chosen"
    if plan.chosen.estimate is None:
        return "unknown"
    ours, theirs = plan.chosen.cost.step_s, answer.best.cost.step_s
    return "equal" if ours == theirs else "slower" if theirs > ours else "faster"


def _print_json(kind: str, plan: "Plan", content: object, **more: Any) -> None:
    from profiler.codec import canonical, to_plain

    document = {"format_version": "1.0", "kind": kind, "plan": plan.id}
    typer.echo(canonical(document | to_plain(content) | to_plain(more)), nl=False)
