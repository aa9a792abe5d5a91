"""`meshwright verify`: predicted against observed."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.exit import Exit
from launch.cli.options import Json, PlanFile
from launch.cli.terminal import note, say

if TYPE_CHECKING:
    from launch.verify import MemorySplit, Verdict

Tolerance = Annotated[
    float, typer.Option(min=0.0, max=1e6, help="Largest error that passes; 0.1 is 10 %.")
]


def run(
    ctx: typer.Context,
    plan: PlanFile,
    observed: Annotated[
        Path | None,
        typer.Argument(help="observed.json of a run", metavar="[OBSERVED]", show_default=False),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Instead: log of Megatron-LM or torchtitan.", show_default="none"),
    ] = None,
    skip: Annotated[int, typer.Option(min=0, max=10**6, help="First steps of it left out.")] = 2,
    tolerance: Tolerance = 0.1,
    as_json: Json = False,
) -> int:
    """Compare a plan's prediction with its run; exit 4 beyond the tolerance."""
    from launch.artifact import read_observed, read_plan
    from launch.training_log import read_log
    from launch.verify import verify, verify_log
    from profiler.codec import encode

    if (observed is None) == (log is None):
        ctx.fail("Give OBSERVED or --log, one of them.")
    content = read_plan(plan)
    if log is not None:
        run = read_log(log, content, skip)
        verdict = verify_log(content, run, tolerance)
        if run.kind == "torchtitan" and run.peak_bytes:
            note("torchtitan's memory is what its allocator reserved, not what tensors took")
    else:
        assert observed is not None
        seen = read_observed(observed)
        as_run = None
        if content.model.num_moe_layers and seen.plan_id == content.id:
            from launch.expert_looks import stays_of
            from planner.moved_plan import as_run as price_as_run

            as_run = price_as_run(content, stays_of(content, observed.parent, seen))
        verdict = verify(content, seen, tolerance, as_run)
    if as_json:
        typer.echo(encode(verdict), nl=False)
    else:
        print_verdict(verdict)
        if len(verdict.rows) < 3:
            say("Steps of ranks are not split in such a log: no components")
    return Exit.OK if verdict.within else Exit.DIFFERS


def print_verdict(verdict: "Verdict") -> None:
    """The table of a verdict, and the parts of the peak under it."""
    from launch.cli.render import seconds, size

    say(f"     {'':<13}{'predicted':>11}{'observed':>11}{'+-':>10}{'error':>9}")
    for row in verdict.rows:
        words = size if row.unit == "bytes" else seconds
        spread = words(row.spread) if row.spread else ""
        say(
            f" {'✔' if row.within else '✘'}   {row.name:<13}{words(row.predicted):>11}"
            f"{words(row.observed):>11}{spread:>10}{row.error:>+9.1%}"
        )
    say(
        f"\nMedians of {verdict.num_steps} steps; components in % of the step; "
        f"tolerance {verdict.tolerance:.0%}"
    )
    if verdict.moves or verdict.experts == "run":
        for line in textwrap.wrap(_experts_line(verdict), 80):
            say(line)
    if verdict.memory is not None:
        _print_memory(verdict.memory)


def _experts_line(verdict: "Verdict") -> str:
    """For which places of the experts the step is predicted."""
    word = "step" if len(verdict.moves) == 1 else "steps"
    steps = ", ".join(map(str, verdict.moves))
    moved = f"before {word} {steps}" if steps else "before the run"
    if verdict.experts == "run":
        return (
            f"Experts moved {moved}: predicted for where they were, and what was routed there; "
            "memory for the places of the plan"
        )
    return f"Experts moved {moved}: predicted for the places of the plan, where they began"


def _print_memory(memory: "MemorySplit") -> None:
    """Where the peak comes from, in the columns of the table above."""
    from launch.cli.render import size

    where = f" (pp {memory.coordinate['pp']})" if "pp" in memory.coordinate else ""
    say(f"\nPeak of rank {memory.rank}{where}, the fullest, in % of it:\n")
    for row in memory.rows:
        say(
            f"     {row.name:<13}{size(row.predicted_bytes):>11}{size(row.observed_bytes):>11}"
            f"{'':>10}{row.error:>+9.1%}"
        )
    say("\nActivations with workspace and what is gathered: the rest of the peak")
