"""Names that a user mistyped: the known one that is nearest, and the hint that says so.

Nearness is that of `difflib.get_close_matches`, whose cost grows with the square of the length:
only the first `MOST` letters count.
"""

import difflib
from collections.abc import Iterable

MOST = 100


def nearest(text: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like a text, case aside; None where none is near. `cutoff`: least
    likeness, 1 where all letters are the same."""
    by_lower = {name.lower()[:MOST]: name for name in known}
    found = difflib.get_close_matches(text[:MOST].lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def did_you_mean(text: str, known: Iterable[str]) -> str | None:
    """The hint, where one is near."""
    near = nearest(text, known)
    return f"did you mean `{near}`?" if near else None


def one_of(text: str, known: Iterable[str], listed: str = "one of") -> str:
    """The hint: the nearest, else all of them behind `listed`."""
    names = tuple(known)
    heading = listed if listed == "one of" else f"{listed}:"
    return did_you_mean(text, names) or f"{heading} {', '.join(names)}"
