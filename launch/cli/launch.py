"""`meshwright launch`: run a plan on this machine with the reference runtime."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import Json, PlanFile
from launch.cli.terminal import note, say


def default_data() -> Path:
    """The text that comes with the project: beside the runtime in a wheel, else in `examples/`."""
    root = Path(__file__).resolve().parent.parent
    packed = root / "runtime" / "sonnets.txt"
    return packed if packed.exists() else root.parent / "examples" / "text" / "sonnets.txt"


def run(
    plan: PlanFile,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Text to train on, a token per byte.", show_default="sonnets of Shakespeare"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=10**7, help="Timed optimizer steps.")] = 10,
    warmup: Annotated[int, typer.Option(min=2, max=10**7, help="Steps before them.")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of weights and data order.")] = 0,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate of AdamW.")] = 1e-3,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command, do nothing.")
    ] = False,
    any_host: Annotated[
        bool, typer.Option("--any-host", help="Also where the profile is not of.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a plan: writes runs/<plan-id>/ and trains in it."""
    from launch.apply import check_here, launch
    from launch.artifact import read_plan
    from launch.framework.native import TrainOptions, check_runnable, command
    from profiler.codec import canonical, encode

    content = read_plan(plan)
    options = TrainOptions(
        data=(data or default_data()).absolute(),
        num_steps=steps,
        num_warmup=warmup,
        seed=seed,
        learning_rate=lr,
    )
    if dry_run:
        check_runnable(content)
        what = command(content, runs.absolute() / content.id, options)
        document = {
            "format_version": "1.0",
            "kind": "command",
            "argv": list(what.argv),
            "env": dict(what.env),
        }
        typer.echo(canonical(document) if as_json else f"{what.text}\n", nl=False)
        return
    check_here(content, any_host=any_host)

    def on_line(line: str) -> None:
        if line.startswith("step "):
            note(line)

    run_dir, observed = launch(content, runs, options, on_line)
    if as_json:
        typer.echo(encode(observed), nl=False)
        return
    shown = run_dir.relative_to(Path.cwd()) if run_dir.is_relative_to(Path.cwd()) else run_dir
    losses = observed.losses
    say(f"\nLoss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
    say(f"\nTo compare it with the plan:\n    meshwright verify {plan} {shown}/observed.json")
