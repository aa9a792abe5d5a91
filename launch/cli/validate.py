"""`meshwright validate`: predictions against a table of measured runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import Json
from launch.cli.terminal import Progress, note, say, warn
from profiler.errors import UserError

if TYPE_CHECKING:
    from planner.scoring import Unmodelled

RunsFile = Annotated[
    Path, typer.Argument(help="CSV of measured runs", metavar="RUNS", show_default=False)
]
FORMAT_VERSION = "1.0"


def run(
    runs: RunsFile,
    memory: Annotated[bool, typer.Option("--memory", help="Memory per source too.")] = False,
    group: Annotated[str, typer.Option(help="Columns to group rows by.")] = "model,n_gpus",
    plot: Annotated[
        Path | None, typer.Option(help="Draw predicted against measured: .png, .svg or .pdf.")
    ] = None,
    failed: Annotated[Path | None, typer.Option(help="CSV of runs that failed.")] = None,
    as_json: Json = False,
) -> None:
    """Predict measured runs and say how wrong the predictions are."""
    columns = _group_columns(group)
    _check_files(runs, failed, columns)
    if plot:
        from launch.picture import check_picture

        check_picture(plot)
    from launch.cli.score_text import report
    from launch.published.runs import read_and_predict
    from planner.scoring import score
    from profiler.codec import canonical, to_plain

    progress = Progress()
    try:
        rows, left_out, notes = read_and_predict(runs, columns, failed, progress)
    finally:
        progress.close()
    for text in notes:
        note(text)
    if all(r.failed for r in rows):
        raise _nothing_predicted(left_out, runs)
    result = score(rows, left_out)
    if as_json:
        header = {"format_version": FORMAT_VERSION, "kind": "score", "group": list(columns)}
        typer.echo(canonical({**header, **to_plain(result)}), nl=False)
    else:
        say("\n".join(report(result, columns, memory=memory)))
    if plot:
        from launch.published.scatter import draw

        draw(rows, plot, memory=memory)
        note(f"Saved the plot to: `{plot}`")


def _group_columns(text: str) -> tuple[str, ...]:
    columns = tuple(part.strip() for part in text.split(","))
    if not all(columns) or len(set(columns)) != len(columns):
        raise UserError(
            f"`--group {text}` is not a list of columns", hint="like model,n_gpus, each once"
        )
    return columns


def _check_files(runs: Path, failed: Path | None, columns: tuple[str, ...]) -> None:
    """What is wrong with the tables as such is said before any work."""
    from launch.published.table import COLUMNS, check_group, read_failed, read_runs, unknown_columns

    table = read_runs(runs)
    check_group(columns, table.columns, str(runs))
    unknown = unknown_columns(table.columns, (*COLUMNS, *columns))
    if unknown:
        names = ", ".join(f"`{c}`" for c in unknown)
        warn(f"{runs}: columns that are not known are not used: {names}")
    if failed:
        read_failed(failed)


def _nothing_predicted(left_out: "list[Unmodelled]", runs: Path) -> UserError:
    from launch.cli.score_text import unmodelled
    from planner.scoring import grouped

    lines = unmodelled(grouped((u.reason, u.row_id) for u in left_out))
    return UserError(
        "no row of the table can be predicted", place=str(runs), details=tuple(lines[1:]),
        hint="a row needs the model's shape, the GPU and the layout",
    )  # fmt: skip
