"""Matrix of rates as CSV: a header row of hosts, then a row per host, from the row to the column.

    # unit: Gbit/s
    ,node1,node2
    node1,,193.1
    node2,188.7,

Separated by commas, semicolons or tabs. Rates are GB/s (1e9 bytes/s) without a comment that says
another unit. The first cell of the header may be empty, a word, or missing; the rows may come in
any order; the diagonal is not read.
"""

import csv

from profiler.errors import UserError
from profiler.link_files.table import (
    Cell,
    Matrix,
    cell,
    check_hosts,
    counted,
    lines_of,
    links_of,
)
from profiler.links import Links
from profiler.names import did_you_mean

UNITS = {
    "GB/s": 1e9, "MB/s": 1e6, "bytes/s": 1.0, "B/s": 1.0, "Gbit/s": 1e9 / 8, "Gb/s": 1e9 / 8,
    "Gbps": 1e9 / 8, "Mbit/s": 1e6 / 8, "GiB/s": 2.0**30, "MiB/s": 2.0**20,
}  # fmt: skip
SEPARATORS = ",;\t"
Rows = list[tuple[int, list[str]]]
"""Line and cells of each row."""


def is_csv(text: str) -> bool:
    """Whether the first line that is no comment has several cells."""
    first = next((s for s in lines_of(text) if s.strip() and not s.lstrip().startswith("#")), "")
    return any(separator in first for separator in SEPARATORS)


def links_of_csv(text: str, place: str) -> Links:
    """Links of a CSV text; `UserError` with the line."""
    unit, rows = 1e9, []
    separator = ""
    for line, words in enumerate(lines_of(text), start=1):
        at = f"{place}:{line}"
        if words.lstrip().startswith("#"):
            unit = _unit(words, at) or unit
        elif words.strip():
            separator = separator or max(SEPARATORS, key=words.count)
            rows.append((line, _cells(words, separator, at)))
    hosts = _hosts(rows, place)
    table, lines = _table(rows, hosts, place)
    return links_of(
        Matrix(hosts=hosts, rows=table, place=lambda i: f"{place}:{lines[i]}"), unit, place
    )


def _unit(comment: str, at: str) -> float | None:
    key, colon, word = comment.lstrip("# \t").partition(":")
    if not colon or key.strip().lower() != "unit":
        return None
    if word.strip() not in UNITS:
        hint = f"known units: {', '.join(UNITS)}"
        raise UserError(f"unknown unit `{word.strip()[:40]}`", hint=hint, place=at)
    return UNITS[word.strip()]


def _cells(words: str, separator: str, at: str) -> list[str]:
    try:
        return [word.strip() for word in next(csv.reader([words], delimiter=separator))]
    except csv.Error as e:
        raise UserError(f"not CSV: {e}", place=at) from None


def _hosts(rows: Rows, place: str) -> tuple[str, ...]:
    """Of the header, whose first cell is a host only where the rows are longer than it."""
    line, header = rows[0]
    while header and not header[-1]:
        header.pop()
    corner = bool(header) and not header[0]
    if not corner and len(rows) > 1:
        corner = len(rows[1][1]) <= len(header)
    hosts = header[1:] if corner else header
    if len(rows) < 2:
        hint = "a header of hosts is followed by a row per host: its name, then the rates"
        raise UserError("there are no rows of rates", hint=hint, place=f"{place}:{line}")
    return check_hosts(hosts, f"{place}:{line}")


def _table(rows: Rows, hosts: tuple[str, ...], place: str) -> tuple[list[list[Cell]], list[int]]:
    """Cells and line of each host, in the order of the header."""
    table: dict[str, list[Cell]] = {}
    lines: dict[str, int] = {}
    for line, words in rows[1:]:
        at, name = f"{place}:{line}", words[0]
        if name not in hosts:
            raise UserError(
                f"the row of `{name[:60]}` is of no host of the header",
                hint=did_you_mean(name, hosts) or "a row begins with the name of its host",
                place=at,
            )
        if name in table:
            raise UserError(f"host `{name}` has two rows", place=at)
        while len(words) > len(hosts) + 1 and not words[-1]:
            words.pop()
        if len(words) != len(hosts) + 1:
            raise UserError(
                f"the row of `{name}` has {counted(len(words) - 1, 'number')}, but there are "
                f"{counted(len(hosts), 'host')}",
                place=at,
            )
        own = hosts.index(name)
        table[name] = [None if j == own else cell(w, at) for j, w in enumerate(words[1:])]
        lines[name] = line
    lacking = next((host for host in hosts if host not in table), None)
    if lacking is not None:
        raise UserError(f"host `{lacking}` has no row", place=f"{place}:{rows[-1][0]}")
    return [table[host] for host in hosts], [lines[host] for host in hosts]
