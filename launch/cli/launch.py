"""`meshwright launch`: run a plan on this machine with the reference runtime."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import Json, PlanFile
from launch.cli.terminal import note, say

FIELDS = {"lr": "learning_rate", "clip": "clip_norm"}
"""Option -> field of the recipe, where their names differ."""


def run(
    ctx: typer.Context,
    plan: PlanFile,
    recipe: Annotated[
        Path | None,
        typer.Option(help="YAML of what to train with; options below win.", show_default="none"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Text, a token per byte, or tokens (.npy, .bin).",
            show_default="sonnets of Shakespeare",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=10**7, help="Timed optimizer steps.")] = 10,
    warmup: Annotated[int, typer.Option(min=2, max=10**7, help="Steps before them.")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of weights and data order.")] = 0,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate of AdamW.")] = 3e-4,
    clip: Annotated[float, typer.Option(min=0.0, help="Largest gradient norm; 0: any.")] = 0.0,
    checkpoint_every: Annotated[
        int, typer.Option(min=0, max=10**7, help="Steps per checkpoint; 0: none.")
    ] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Hugging Face folder to start from.", show_default="random")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Run or checkpoint to go on from.", show_default="none"),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, max=1000, help="Restarts after a failed rank.")
    ] = 0,
    trace: Annotated[
        bool, typer.Option("--trace/--no-trace", help="Write a Chrome trace.")
    ] = False,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command, do nothing.")
    ] = False,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Make the run's folder, print the command.")
    ] = False,
    any_host: Annotated[
        bool, typer.Option("--any-host", help="Also where the profile is not of.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a plan: writes runs/<plan-id>/ and trains in it."""
    from launch.apply import check_here, checked, launch, make_run_dir
    from launch.artifact import read_plan
    from launch.framework.native import check_runnable, command
    from launch.recipe import read_recipe, recipe_of
    from profiler.codec import canonical, encode, to_plain

    content = read_plan(plan)
    flags = {
        "data": str(data.absolute()) if data else "",
        "steps": steps,
        "warmup": warmup,
        "seed": seed,
        "lr": lr,
        "clip": clip,
        "checkpoint_every": checkpoint_every,
        "weights": str(weights.absolute()) if weights else "",
        "resume": str(resume.absolute()) if resume else "",
        "max_restarts": max_restarts,
        "trace": trace,
    }
    # What was typed wins over the file; a default does not.
    typed = {k for k in flags if getattr(ctx.get_parameter_source(k), "name", "") != "DEFAULT"}
    changes = {FIELDS.get(k, k): v for k, v in flags.items() if k in typed}
    how = read_recipe(recipe, changes) if recipe else recipe_of(changes)
    if dry_run or prepare:
        check_runnable(content)
        if prepare:
            how = checked(content, how)
        folder = runs.absolute() / content.id if dry_run else make_run_dir(content, how, runs)
        what = command(content, folder, how)
        document = {
            "format_version": "1.0",
            "kind": "command",
            "argv": list(what.argv),
            "env": dict(what.env),
            "recipe": to_plain(how),
            "run_dir": str(folder),
        }
        typer.echo(canonical(document) if as_json else f"{what.text}\n", nl=False)
        if "$HEAD_NODE" in what.text:
            note("Start it on every node, with HEAD_NODE set to the first one's name")
        return
    check_here(content, any_host=any_host)

    def on_line(line: str) -> None:
        if line.startswith(("step ", "goes on after ", "warning: ")):
            note(line)

    run_dir, observed = launch(content, runs, how, on_line)
    if as_json:
        typer.echo(encode(observed), nl=False)
        return
    shown = run_dir.relative_to(Path.cwd()) if run_dir.is_relative_to(Path.cwd()) else run_dir
    losses = observed.losses
    if losses:
        say(f"\nLoss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
    if observed.diverged_at is not None:
        say(f"The loss or a gradient is no number from step {observed.diverged_at} on")
    if content.chosen.estimate is None:
        say(f"\nWhat was observed: `{shown}/observed.json`")
    else:
        say(f"\nTo compare it with the plan:\n    meshwright verify {plan} {shown}/observed.json")
