"""Host lists as Slurm writes them: `tux[0-3,12],gpu[01-08]x[1-2],login`.

A comma outside brackets ends a name; brackets hold numbers and ranges, whose zeros in front are
kept; several brackets in a name stand for all their combinations (slurm.schedmd.com/topology.html).
"""

import itertools
import re

from profiler.errors import UserError

LIMIT = 1_000_000
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


def expand(text: str, place: str) -> tuple[str, ...]:
    """Names of a host list, in its order."""
    names: list[str] = []
    for word in _words(text, place):
        parts = re.split(r"\[([^\[\]]*)\]", word)
        if any(c in "".join(parts[::2]) for c in "[]"):
            raise _wrong(text, "its brackets do not match", place)
        choices = [
            [part] if k % 2 == 0 else _numbers(part, text, place) for k, part in enumerate(parts)
        ]
        count = 1
        for choice in choices:
            count *= len(choice)
        if len(names) + count > LIMIT:
            raise _wrong(text, f"it has more than {LIMIT} names", place)
        names.extend("".join(choice) for choice in itertools.product(*choices))
    return tuple(names)


def _words(text: str, place: str) -> list[str]:
    """Split at the commas outside brackets."""
    words, inside = [""], False
    for piece in re.split(r"([\[\],])", text):
        inside = piece == "[" or (inside and piece != "]")
        if piece == "," and not inside:
            words.append("")
        else:
            words[-1] += piece
    if not all(words):
        raise _wrong(text, "a name is empty", place)
    return words


def _numbers(ranges: str, text: str, place: str) -> list[str]:
    out: list[str] = []
    for word in ranges.split(","):
        match = _RANGE.fullmatch(word)
        if match is None:
            raise _wrong(text, f"`{word[:40]}` is no number and no range", place)
        low, high = match[1], match[2] or match[1]
        if int(high) < int(low):
            raise _wrong(text, f"the range `{word}` is empty", place)
        if int(high) - int(low) >= LIMIT - len(out):
            raise _wrong(text, f"it has more than {LIMIT} names", place)
        out.extend(str(k).zfill(len(low)) for k in range(int(low), int(high) + 1))
    return out


def _wrong(text: str, why: str, place: str) -> UserError:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return UserError(f"`{shown}` is no list of names: {why}", place=place)
