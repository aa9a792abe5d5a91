"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table and an empty one behind it."""
    lines = [_row(head), "|" + "---|" * len(head), *(_row(row) for row in rows)]
    return [*lines, ""]


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |"


def _cell(text: str) -> str:
    """In one line; what would end the cell is escaped."""
    return " ".join(text.split()).replace("|", "\\|")
