"""Cells of a row as numbers and words; a blank cell is None."""

import re

from launch.published.table import Cells

_NUMBER = re.compile(r"~?\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmM]?)")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([mMbBtT])\b")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


class UnusableRowError(Exception):
    """The row cannot be predicted: `WHAT` or `WHAT: DETAILS`."""


def number(cells: Cells, name: str) -> float | None:
    """The first number of a cell (`~250k` is 250,000)."""
    found = _NUMBER.match(cells.get(name, ""))
    return float(found[1]) * _UNITS[found[2].lower()] if found else None


def count(cells: Cells, name: str, default: int | None = None) -> int:
    """A whole number above 0; raises where it is blank and has no default, or is no such number."""
    value = number(cells, name)
    if value is None:
        if default is None:
            raise UnusableRowError(f"no `{name}`")
        return default
    if value < 1 or value != int(value):
        raise UnusableRowError(f"`{name}` is no whole number above 0: {cells[name][:20]}")
    return int(value)


def yes(cells: Cells, name: str) -> bool | None:
    """`y` or `n`, in any case."""
    return {"y": True, "n": False}.get(cells.get(name, "").lower())


def size_in(name: str) -> float | None:
    """Parameters that a model's name states: `GPT 20B` -> 20e9."""
    found = _SIZE.search(name)
    return float(found[1]) * _UNITS[found[2].lower()] if found else None


def plain(text: str) -> str:
    """Letters and digits alone, lower case, to compare names by."""
    return re.sub(r"[^a-z0-9]", "", text.lower())
