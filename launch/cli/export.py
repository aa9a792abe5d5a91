"""`meshwright export`: a run's weights for everyone else."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import Json
from launch.cli.terminal import note, say


def run(
    run_dir: Annotated[
        Path,
        typer.Argument(help="runs/<plan-id>, or a checkpoint in it", metavar="RUN"),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.", show_default=False)],
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    as_json: Json = False,
) -> None:
    """Write a run's weights as Hugging Face safetensors."""
    from launch.artifact import is_folder, read_plan
    from launch.checkpoints import find_checkpoint, step_of
    from launch.scheduler.single_node import check_torch
    from profiler.codec import canonical
    from profiler.errors import UserError

    if precision not in ("bf16", "fp32"):
        raise UserError(f"weights are not written in `{precision}`", hint="bf16 or fp32")
    run_dir = run_dir.absolute()
    if not is_folder(run_dir):
        raise UserError(f"no such folder: `{run_dir}`", hint="give the folder of a run")
    check_torch()
    checkpoint = find_checkpoint(run_dir)
    plan = read_plan(checkpoint.parent.parent / "plan.json")
    from launch.runtime.export import export

    export(checkpoint, plan.model, out, precision)
    if as_json:
        document = {
            "format_version": "1.0",
            "kind": "export",
            "folder": str(out),
            "checkpoint": str(checkpoint),
            "step": step_of(checkpoint),
        }
        typer.echo(canonical(document), nl=False)
        return
    note(f"Saved the weights after step {step_of(checkpoint) - 1} to: `{out}`")
    say(f'To load them:\n    AutoModelForCausalLM.from_pretrained("{out}")')
