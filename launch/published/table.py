"""The CSV table of measured runs: which columns there are, and its strict reading.

Cells stay text here; what a row means is for `launch.published.runs`.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.codec import read_text
from profiler.errors import UserError
from profiler.names import nearest, one_of

Cells = dict[str, str]

REQUIRED = (
    "model", "layers", "hidden", "seq_len", "gpu", "n_gpus", "gbs", "mbs", "tp", "pp",
)  # fmt: skip
"""Without these columns no row can be predicted; a cell may be blank."""
MEASURED = ("step_s", "tok_s_gpu", "peak_mem_gib")
"""One at least must be there, else there is nothing to score."""
COLUMNS = (
    "row_id", "source_id", "model", "model_key", "model_kind", "layers", "hidden", "ffn_hidden",
    "heads", "kv_heads", "head_dim", "vocab", "gated", "tied", "attn", "seq_len", "n_experts",
    "topk", "moe_ffn_hidden", "shared_expert_ffn", "gpu", "gpu_mem_gb", "gpus_per_node",
    "intra_link", "inter_link", "n_gpus", "gbs", "mbs", "tp", "pp", "vp", "dp", "cp", "ep", "etp",
    "dp_shard", "seq_parallel", "recompute", "precision", "features", "framework",
    "framework_version", "trusted", "step_s", "tok_s_gpu", "peak_mem_gib", "mem_definition",
    "source", "source_path", "notes",
)  # fmt: skip
"""All columns of the schema."""
FAILED_REQUIRED = ("model_size_b", "n_gpus", "gbs", "mbs", "tp", "pp", "dp")
FAILED_COLUMNS = (*FAILED_REQUIRED, "nodes", "grad_accum", "zero", "also_has_success")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A CSV file: columns in order, and for each row its line number and cells, stripped."""

    columns: tuple[str, ...]
    rows: tuple[tuple[int, Cells], ...]


def read_runs(path: Path) -> Table:
    """The table of measured runs, with the columns that scoring needs."""
    table = read_table(path, REQUIRED)
    if not set(MEASURED) & set(table.columns):
        raise UserError(
            "no column of a measurement", place=str(path), hint=f"one of {_names(MEASURED)}"
        )
    return table


def read_failed(path: Path) -> Table:
    """The table of runs that failed."""
    return read_table(path, FAILED_REQUIRED)


def read_table(path: Path, required: Sequence[str]) -> Table:
    """A CSV file with a header; `UserError` where it is none, is empty or lacks a column."""
    place = str(path)
    text = _text(path).removeprefix("\ufeff")
    if not text.strip():
        raise UserError("the file is empty", place=place, hint=_HEADER_HINT)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = tuple(c.strip() for c in next(reader))
        if len(columns) < 2:
            raise UserError("not a CSV file: its first line is one column", place=place,
                            hint=_HEADER_HINT)  # fmt: skip
        _check_columns(columns, required, place)
        rows = []
        for cells in reader:
            if not any(c.strip() for c in cells):
                continue
            _check_width(cells, columns, f"{place}:{reader.line_num}")
            named = zip(columns, (c.strip() for c in cells), strict=True)
            rows.append((reader.line_num, dict(named)))
    except csv.Error as e:
        raise UserError(f"not CSV: {e}", place=f"{place}:{reader.line_num}") from None
    if not rows:
        raise UserError("no rows below the header", place=place)
    return Table(columns=columns, rows=tuple(rows))


def unknown_columns(columns: Sequence[str], known: Sequence[str] = COLUMNS) -> tuple[str, ...]:
    """Columns that the schema does not have."""
    return tuple(c for c in columns if c not in known)


def check_group(group: Sequence[str], columns: Sequence[str], place: str) -> None:
    """Columns to group by are of the table."""
    for name in group:
        if name not in columns:
            hint = one_of(name, columns, "columns")
            raise UserError(f"no column `{name}` to group by", place=place, hint=hint)


_HEADER_HINT = "the first line of a table of runs names its columns: model,layers,hidden,..."


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except UserError as e:
        raise UserError(e.message, place=e.place, hint=e.hint or "a CSV file is needed") from None


def _check_columns(columns: tuple[str, ...], required: Sequence[str], place: str) -> None:
    twice = sorted({c for c in columns if columns.count(c) > 1})
    if twice:
        raise UserError(f"column `{twice[0]}` is given twice", place=f"{place}:1")
    missing = [c for c in required if c not in columns]
    if not missing:
        return
    spare = unknown_columns(columns, (*COLUMNS, *FAILED_COLUMNS))
    near = {c: nearest(c, spare) for c in missing}
    renames = [f"rename `{match}` to `{c}`" for c, match in near.items() if match]
    word, verb = ("column", "is") if len(missing) == 1 else ("columns", "are")
    raise UserError(
        f"{word} {_names(missing)} {verb} missing",
        place=place,
        hint="; ".join(renames) or f"needed: {', '.join(required)}",
    )


def _check_width(cells: Sequence[str], columns: Sequence[str], place: str) -> None:
    if len(cells) != len(columns):
        raise UserError(
            f"{len(cells)} cells in a table of {len(columns)} columns",
            place=place,
            hint="a cell that holds a comma needs quotes",
        )


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{n}`" for n in names)
