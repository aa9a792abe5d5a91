"""Numbers between hosts as a file holds them, checked pair by pair: what the link files share.

Between two hosts a rate has to be there, and be one that links have: below 1 kB/s or above
100 TB/s the unit is another than the file says. The diagonal, which most tools fill with anything,
is read from our own form alone; elsewhere, and where that has none, the rate inside a node is
infinite and its latency 0, so that `isfinite` tells what was measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from profiler.errors import UserError
from profiler.links import LATENCY_S, Floats, Links

Cell = float | None
"""None where the file has nothing."""
LOWEST, HIGHEST = 1e3, 1e14
"""Bytes per second of anything called a link."""
LONGEST_S = 10.0
_NOTHING = frozenset(("", "-", "n/a", "na", "nan", "-nan", "none", "null", "x"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Cells [from][to] between `hosts`; `place` gives FILE:LINE of a row."""

    hosts: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    place: Callable[[int], str]


def lines_of(text: str) -> list[str]:
    """Lines as editors count them, without a byte order mark."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")


def cell(word: str, place: str) -> Cell:
    """A number of a text file; None for an empty cell, `nan`, `-` or `n/a`."""
    word = word.strip()
    if word.lower() in _NOTHING:
        return None
    try:
        if "_" in word or not word.isascii():
            raise ValueError
        return float(word)
    except ValueError:
        raise UserError(f"`{word[:40]}` is not a number", place=place) from None


def check_hosts(hosts: Sequence[str], place: str) -> tuple[str, ...]:
    """Names of hosts: some, none of them empty, none twice."""
    if not hosts:
        raise UserError("there are no hosts", place=place)
    seen: set[str] = set()
    for host in hosts:
        if not host.strip():
            raise UserError("a host has no name", place=place)
        if host in seen:
            raise UserError(f"host `{host}` is listed twice", place=place)
        seen.add(host)
    return tuple(hosts)


def links_of(matrix: Matrix, unit: float, source: str) -> Links:
    """Links of rates in `unit` bytes per second, of which neither diagonal nor latency is known."""
    n = len(matrix.hosts)
    latency = np.full((n, n), LATENCY_S)
    np.fill_diagonal(latency, 0.0)
    rates = rates_of(matrix, unit)
    np.fill_diagonal(rates, np.inf)
    return Links(hosts=matrix.hosts, bytes_per_s=rates, latency_s=latency, source=source)


def rates_of(matrix: Matrix, unit: float) -> Floats:
    """Bytes per second, all pairs checked; the diagonal as it stands, nan where it has nothing."""
    cells = _square(matrix)
    with np.errstate(over="ignore", invalid="ignore"):
        rates = cells * unit
        wrong = ~((rates >= LOWEST) & (rates <= HIGHEST))
    np.fill_diagonal(wrong, False)
    if wrong.any():
        i, j = (int(k) for k in np.argwhere(wrong)[0])
        pair = f"from `{matrix.hosts[i]}` to `{matrix.hosts[j]}`"
        raise rate_error(float(cells[i, j]), unit, pair, matrix.place(i))
    return np.asarray(rates)


def rate_error(value: float, unit: float, where: str, place: str) -> UserError:
    """What is wrong with a rate: none there, negative, or none that a link has."""
    if math.isnan(value) or value == 0:
        hint = "measure the pair again, or leave out a host that is down"
        return UserError(f"there is no rate {where}", hint=hint, place=place)
    if value < 0:
        return UserError(f"the rate {where} is negative: {value:g}", place=place)
    hint = "no link has that rate: check the unit"
    return UserError(f"the rate {where} is {value * unit:g} bytes/s", hint=hint, place=place)


def latencies_of(matrix: Matrix) -> Floats:
    """Seconds, all pairs checked; 0 on the diagonal where it has nothing."""
    cells = _square(matrix)
    inside = np.diag(cells).copy()
    inside[np.isnan(inside)] = 0.0
    np.fill_diagonal(cells, inside)
    wrong = ~((cells >= 0) & (cells <= LONGEST_S))
    if wrong.any():
        i, j = (int(k) for k in np.argwhere(wrong)[0])
        pair = f"from `{matrix.hosts[i]}` to `{matrix.hosts[j]}`"
        none = math.isnan(cells[i, j])
        raise UserError(
            f"there is no latency {pair}" if none else f"the latency {pair} is {cells[i, j]:g} s",
            hint=f"latencies are seconds from 0 to {LONGEST_S:g}",
            place=matrix.place(i),
        )
    return cells


def _square(matrix: Matrix) -> Floats:
    n = len(matrix.hosts)
    for i, row in enumerate(matrix.rows[:n]):
        if len(row) != n:
            raise UserError(
                f"the row of `{matrix.hosts[i]}` has {counted(len(row), 'number')}, but there are "
                f"{counted(n, 'host')}",
                place=matrix.place(i),
            )
    if len(matrix.rows) != n:
        raise UserError(
            f"the table has {counted(len(matrix.rows), 'row')} for {counted(n, 'host')}",
            place=matrix.place(min(len(matrix.rows), n) - 1),
        )
    rows = [[math.nan if value is None else value for value in row] for row in matrix.rows]
    return np.array(rows, dtype=np.float64)


def counted(number: int, what: str) -> str:
    """`1 host`, `2 hosts`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
