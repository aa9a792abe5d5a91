"""Cells of a row as numbers and words; a blank cell is None, one that is no number is an error."""

import re
from collections.abc import Iterable

from launch.published.table import Cells
from profiler import names

_NUMBER = re.compile(
    r"[~≈]?\s*([0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([kKmMbB]?)(?=$|[\s(;])"
)
_SIZE = re.compile(r"(?<![0-9.])([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*([mMbBtT])\b")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_BLANK = ("", "-", "n/a", "na", "none", "null", "?", "unknown")
_WORDS = {
    **dict.fromkeys(("y", "yes", "true", "1", "on"), True),
    **dict.fromkeys(("n", "no", "false", "0", "off"), False),
}
_LIMITS = {"gbs": 10**7, "layers": 10**4, "pp": 10**4, "vp": 10**4}
LARGEST = 10**9
"""No count of a run is above."""


class UnusableRowError(Exception):
    """The row cannot be predicted: `WHAT` or `WHAT: DETAILS`."""


def shown(text: str, length: int = 30) -> str:
    """The first characters of a cell, those that cannot be printed escaped."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:length])
    return plain if len(text) <= length else f"{plain}..."


def number(cells: Cells, name: str) -> float | None:
    """The number of a cell (`~250k (stated)` is 250,000); raises where it holds something else."""
    text = cells.get(name, "").strip()
    if text.lower() in _BLANK:
        return None
    found = _NUMBER.match(text)
    if not found:
        raise UnusableRowError(f"`{name}` is no number: {shown(text)}")
    value = float(found[1].replace(",", "")) * _UNITS[found[2].lower()]
    if value > LARGEST * 1e6:
        raise UnusableRowError(f"`{name}` is too large: {shown(text)}")
    return value


def measured(cells: Cells, name: str) -> float | None:
    """A measurement; raises where it is not above 0."""
    value = number(cells, name)
    if value is not None and value < 1e-12:
        raise UnusableRowError(f"`{name}` is not above 0: {shown(cells[name])}")
    return value


def count(cells: Cells, name: str, default: int | None = None) -> int:
    """A whole number above 0; raises where it is blank and has no default, or is no such number."""
    value = number(cells, name)
    if value is None:
        if default is None:
            raise UnusableRowError(f"no `{name}`")
        return default
    if value < 1 or value != int(value):
        raise UnusableRowError(f"`{name}` is no whole number above 0: {shown(cells[name])}")
    if value > _LIMITS.get(name, LARGEST):
        raise UnusableRowError(f"`{name}` is too large: {shown(cells[name])}")
    return int(value)


def yes(cells: Cells, name: str) -> bool | None:
    """`y` or `n`, in any case; raises where it is another word."""
    text = cells.get(name, "").strip().lower()
    if text in _BLANK:
        return None
    if text not in _WORDS:
        raise UnusableRowError(f"`{name}` is neither y nor n: {shown(text)}")
    return _WORDS[text]


def size_in(name: str) -> float | None:
    """Parameters that a model's name states: `GPT 20B` -> 20e9."""
    found = _SIZE.search(name)
    return float(found[1]) * _UNITS[found[2].lower()] if found else None


def plain(text: str) -> str:
    """Letters and digits alone, lower case, to compare names by."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def nearest(text: str, known: Iterable[str]) -> str:
    """`, nearest is NAME`, or nothing where none is near."""
    by_plain = {plain(name): name for name in known}
    found = names.nearest(plain(text), by_plain, cutoff=0.5)
    return f", nearest is `{by_plain[found]}`" if found else ""


def extends(text: str, name: str) -> bool:
    """Whether a plain text is a plain name with something behind it that is no further digit of its
    last number: `h100pcie` extends `h100`, `a1000` does not extend `a100`."""
    rest = text[len(name) :]
    return text.startswith(name) and not (name[-1:].isdigit() and rest[:1].isdigit())


def brief(source: str) -> str:
    """A source's name up to the details of where it was found, of at most 60 characters."""
    name = re.split(r"[,;]| \(measured", source, maxsplit=1)[0]
    return name if len(name) <= 60 else f"{name[:58]}.."
