"""The simulated step as a chart: a row per pipeline rank, time from left to right."""

from launch.cli.render import seconds
from launch.report.html import Html, el, join, legend, section, share
from planner.simulate import Timeline
from planner.spans import (
    KINDS,
    Span,
    busy_share,
    num_actions,
    shown_ranks,
    spans_of,
    windows,
)

_MOST_ROWS = 24
_MOST_RECTANGLES = 2500
_BINS = 100
_RESOLVED = 60.0
"""Forwards that fill the width of a picture of the start or the end."""
_HEIGHT = 18
_LABELLED, _LABELLED_NARROW = 0.017, 0.05
"""Width from which on a piece carries its micro-batch's number, on wide and on narrow screens."""


def timeline_section(timeline: Timeline) -> Html:
    """The step; where it has too many actions to tell apart, also its start and its end."""
    shown = shown_ranks(len(timeline.table), _MOST_ROWS)
    spans = {rank: spans_of(timeline, rank) for rank in shown}
    many = num_actions(timeline) > _MOST_RECTANGLES or len(spans[shown[0]]) > 2 * _RESOLVED
    parts = windows(timeline, _RESOLVED) if many else [("", 0.0, timeline.step_s)]
    charts = [_chart(timeline, spans, title, begin, end) for title, begin, end in parts]
    kinds = {span.kind for row in spans.values() for span in row}
    marks = [(_colour(kind), words) for kind, words in KINDS.items() if kind in kinds]
    note = (
        f"One step of {seconds(timeline.step_s)} as simulated, a row per pipeline rank; numbers "
        "are micro-batches, the percentage is the share of the step at work."
    )
    if len(shown) < len(timeline.table):
        note += f" The first and the last {_MOST_ROWS // 2} of {len(timeline.table)} ranks."
    return section(
        "Timeline", *charts, legend([*marks, ("f-idle", "waiting")]), note=note, id_="timeline"
    )


def _colour(kind: str) -> str:
    return "f-update-span" if kind == "update" else f"f-{kind}"


def _chart(
    timeline: Timeline,
    spans: dict[int, tuple[Span, ...]],
    title: str,
    begin: float,
    end: float,
) -> Html:
    """Rows of one window of time."""
    whole = title in ("", "whole step")
    rows = []
    for rank, row in spans.items():
        drawn = _binned(row, end) if title == "whole step" else _pieces(row, begin, end)
        words = f"{busy_share(timeline, rank):.0%}" if whole else ""
        track = el("rect", width="100%", height=_HEIGHT, class_="f-idle", opacity=0.45)
        svg = el("svg", track, *drawn, height=_HEIGHT, role="img", aria_label=f"rank {rank}")
        rows.append(
            el(
                "div",
                el("span", f"rank {rank}"),
                svg,
                el("span", words, class_="end"),
                class_="row",
            )
        )
    names = {"whole step": "Whole step", "start": "Start", "end": "End"}
    more = "; the height is the share at work" if title == "whole step" else ""
    head = [el("h3", f"{names[title]}, {seconds(end - begin)}{more}")] if title else []
    return join([*head, *rows, _axis(begin, end)])


def _pieces(row: tuple[Span, ...], begin: float, end: float) -> list[Html]:
    """A rectangle for each piece of work, with the number of its micro-batch where it fits."""
    drawn = []
    length = end - begin
    for span in row:
        left, right = max(span.start, begin), min(span.end, end)
        if right <= left:
            continue
        at, width = (left - begin) / length, (right - left) / length
        number = f" of micro-batch {span.micro_batch}" if span.micro_batch >= 0 else ""
        title = f"{KINDS[span.kind]}{number}: {seconds(span.start)} to {seconds(span.end)}"
        drawn.append(
            el(
                "rect",
                el("title", title),
                x=share(at),
                width=share(max(0.0, width - 0.0008)),
                height=_HEIGHT,
                class_=_colour(span.kind),
            )
        )
        if span.micro_batch >= 0 and width >= _LABELLED:
            narrow = width < _LABELLED_NARROW
            drawn.append(
                el(
                    "text",
                    span.micro_batch,
                    x=share(at + width / 2),
                    y=_HEIGHT - 5.5,
                    class_="on wide" if narrow else "on",
                )
            )
    return drawn


def _binned(row: tuple[Span, ...], end: float) -> list[Html]:
    """Work in equal slices of time, each as high as the share of it at work."""
    busy = [0.0] * _BINS
    for span in row:
        first, last = span.start / end * _BINS, span.end / end * _BINS
        for k in range(int(first), min(_BINS, int(last) + 1)):
            busy[k] += max(0.0, min(last, k + 1) - max(first, k))
    drawn, k = [], 0
    heights = [round(min(1.0, value) * _HEIGHT) for value in busy]
    while k < _BINS:
        run = k
        while run < _BINS and heights[run] == heights[k]:
            run += 1
        if heights[k]:
            drawn.append(
                el(
                    "rect",
                    x=share(k / _BINS),
                    width=share((run - k) / _BINS),
                    y=_HEIGHT - heights[k],
                    height=heights[k],
                    class_="f-work",
                )
            )
        k = run
    return drawn


def _axis(begin: float, end: float) -> Html:
    """Times under the rows."""
    ticks = []
    for k in range(5):
        anchor = "start" if k == 0 else "end" if k == 4 else "middle"
        ticks.append(
            el(
                "text",
                seconds(begin + (end - begin) * k / 4),
                x=share(k / 4),
                y=12,
                text_anchor=anchor,
                class_="wide" if k in (1, 3) else None,
            )
        )
    svg = el("svg", *ticks, height=16, aria_hidden="true")
    return el("div", el("span"), svg, el("span"), class_="row")
