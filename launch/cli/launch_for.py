"""`launch --for`: a plan in another framework's words, printed or written to a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from launch.cli.terminal import note

if TYPE_CHECKING:
    from launch.framework.emitters import Written
    from launch.recipe import Recipe
    from launch.scheduler.base import Scheduler


def emit(
    plan: Path, name: str, how: "Recipe", scheduler: "Scheduler", out: Path | None, *, as_json: bool
) -> None:
    """Print what the framework is given, or write it to `out`; starts nothing."""
    from launch.artifact import read_plan, write_atomic
    from launch.framework.emitters import framework_of, write
    from profiler.codec import canonical

    framework = framework_of(name)
    folder = (out or Path()).absolute()
    started_by = None if scheduler.name == "local" else scheduler
    written = write(framework, read_plan(plan), how, folder, started_by)
    if out is not None:
        for file, text in written.files.items():
            write_atomic(folder / file, text)
    if as_json:
        typer.echo(canonical(_document(written, folder, scheduler.name)), nl=False)
    elif out is None:
        typer.echo("".join(_titled(written.files)), nl=False)
        _say_how(written)
    else:
        typer.echo("".join(f"{folder / file}\n" for file in written.files), nl=False)
        _say_how(written)


def _titled(files: dict[str, str]) -> list[str]:
    """The texts; of several, each under its name."""
    if len(files) == 1:
        return list(files.values())
    return [f"==> {name} <==\n{text}\n" for name, text in files.items()]


def _say_how(written: "Written") -> None:
    """What is still to be done by hand, on stderr."""
    for need in written.emitted.needs:
        default = f" [{need.default}]" if need.default else ""
        note(f"Set {need.name}: {need.meaning}{default}")
    for sentence in written.emitted.differs:
        note(f"Other than in the plan: {sentence}")
    note(f"Start it{written.where}:\n    " + written.command.replace("\n", "\n    "))


def _document(written: "Written", folder: Path, scheduler: str) -> dict[str, object]:
    return {
        "format_version": "1.0",
        "kind": "command",
        "framework": written.framework,
        "release": written.emitted.title,
        "scheduler": scheduler,
        "folder": str(folder),
        "files": written.files,
        "command": written.command,
        "needs": {need.name: need.meaning for need in written.emitted.needs},
        "differs": list(written.emitted.differs),
    }
