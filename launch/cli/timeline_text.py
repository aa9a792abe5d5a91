"""A simulated step as rows of characters, one per pipeline rank. Pure.

Reads without colour: a forward is the last digit of its micro-batch, a backward a shade that begins
with that digit where there is room, other work a letter, waiting a dot. Each column shows what the
rank does for most of its time.
"""

import numpy as np

from launch.cli.render import seconds
from planner.simulate import Timeline
from planner.spans import KINDS, Kind, Span, busy_share, shown_ranks, spans_of, windows

_GLYPHS: dict[Kind, str] = {
    "gather": "g",
    "B": "▒",
    "I": "▓",
    "W": "░",
    "copy": "c",
    "reduce": "r",
    "update": "u",
}
_LABEL = 9
_SHARE = 6
_MOST_ROWS = 16
_FORWARD = 2.0
"""Columns of a forward in the pictures of start and end."""
_NAMED = 2.5
"""Columns from which on a backward begins with its micro-batch's digit."""
_WHOLE = ("", "whole step")


def timeline_lines(timeline: Timeline, width: int) -> list[str]:
    """The step; where a forward is narrower than a column also its start and its end, larger."""
    columns = max(20, min(width, 240) - _LABEL - _SHARE)
    num_ranks = len(timeline.table)
    shown = shown_ranks(num_ranks, _MOST_ROWS)
    spans = {rank: spans_of(timeline, rank) for rank in shown}
    lines = []
    for title, begin, end in windows(timeline, columns / _FORWARD):
        lines.append(_title(title, begin, end))
        for row, rank in enumerate(shown):
            if row and rank != shown[row - 1] + 1:
                lines.append(f"...{' ' * (_LABEL - 3)}{rank - shown[row - 1] - 1} ranks between")
            share = f"{busy_share(timeline, rank):>6.0%}" if title in _WHOLE else ""
            lines.append(f"rank {rank:<4}{_row(spans[rank], begin, end, columns)}{share}")
        lines.append("")
    return lines + _legend({span.kind for row in spans.values() for span in row})


def _title(title: str, begin: float, end: float) -> str:
    length = seconds(end - begin)
    return {
        "": f"One step, {length} from left to right; in % the share at work",
        "whole step": f"Whole step, {length}; in % the share at work",
        "start": f"Its first {length}",
        "end": f"Its last {length}",
    }[title]


def _row(spans: tuple[Span, ...], begin: float, end: float, columns: int) -> str:
    """What fills most of each column."""
    edges = np.linspace(begin, end, columns + 1)
    most = np.zeros(columns)
    busy = np.zeros(columns)
    row = ["·"] * columns
    scale = columns / (end - begin) if end > begin else 0.0
    for span in spans:
        if span.end <= begin or span.start >= end:
            continue
        first = max(0, int((span.start - begin) * scale) - 1)
        last = min(columns, int((span.end - begin) * scale) + 2)
        overlap = np.minimum(span.end, edges[first + 1 : last + 1]) - np.maximum(
            span.start, edges[first:last]
        )
        for k in np.flatnonzero(overlap > 0):
            place = first + int(k)
            busy[place] += overlap[k]
            if overlap[k] > most[place]:
                most[place] = overlap[k]
                begins = place == _first_column(span, begin, scale)
                row[place] = _glyph(span, begins and (span.end - span.start) * scale >= _NAMED)
    idle = (end - begin) / columns - busy
    return "".join("·" if waits else glyph for glyph, waits in zip(row, idle > busy, strict=True))


def _first_column(span: Span, begin: float, scale: float) -> int:
    """The first column that is mostly the span's."""
    return round((span.start - begin) * scale)


def _glyph(span: Span, names: bool) -> str:
    if span.kind == "F" or (names and span.micro_batch >= 0):
        return str(span.micro_batch % 10)
    return _GLYPHS[span.kind]


def _legend(kinds: set[Kind]) -> list[str]:
    parts = ["0-9 forward, by the last digit of its micro-batch; others begin with theirs"]
    parts += [f"{glyph} {KINDS[kind]}" for kind, glyph in _GLYPHS.items() if kind in kinds]
    parts.append("· waiting")
    lines = [""]
    for part in parts:
        if len(lines[-1]) + len(part) + 2 > 80:
            lines.append("")
        lines[-1] += f"{'  ' if lines[-1] else ''}{part}"
    return lines
