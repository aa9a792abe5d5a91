"""Step time against peak memory: the frontier, the alternatives, the chosen layout."""

import math

from launch.cli.render import GIB, seconds, size, versus
from launch.report.html import Html, el, legend, section, share, table
from planner.plan import Candidate, Plan

_HEIGHT = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.14, 0.97, 20, 36


def pareto(plan: Plan) -> Html | None:
    """The scatter and its table; None in a plan without a frontier."""
    if not plan.frontier:
        return None
    frontier = {_name(c): c for c in plan.frontier}
    others = {_name(c): c for c in plan.alternatives if c.estimate is not None}
    points = [*frontier.values(), *(c for name, c in others.items() if name not in frontier)]
    if _name(plan.chosen) not in frontier:
        points.append(plan.chosen)
    rows = [
        [number, el("span", _name(c), class_="mono"), seconds(c.cost.step_s),
         size(c.cost.peak_bytes), "chosen" if c.config == plan.chosen.config else versus(plan, c)]
        for number, c in enumerate(plan.frontier, 1)
    ]  # fmt: skip
    here = [_name(c) for c in plan.frontier]
    place = here.index(_name(plan.chosen)) if _name(plan.chosen) in here else -1
    marks = [("f-attention", "on the frontier"), ("hollow", "alternative"), ("ring", "chosen")]
    return section(
        "Time against memory",
        _chart(points, len(frontier), plan.chosen),
        legend(marks),
        el("h3", "The frontier"),
        table([">", "layout", ">step", ">peak", ">vs chosen"], rows, chosen=place),
        note="No layout of the frontier is beaten in both step time and peak memory. "
        "Left is faster, low is smaller.",
        id_="pareto",
    )


def _name(candidate: Candidate) -> str:
    return f"{candidate.config.label} {candidate.config.schedule}"


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or high * 0.05
    return max(0.0, low - margin), high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers in the range."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    spacing = next(unit * times for times in (1, 2, 2.5, 5, 10) if unit * times >= rough)
    first = math.ceil(low / spacing)
    return [k * spacing for k in range(first, math.floor(high / spacing) + 1)]


def _chart(points: list[Candidate], num_frontier: int, chosen: Candidate) -> Html:
    """Points in a frame with round ticks."""
    x = _range([c.cost.step_s for c in points])
    y = _range([float(c.cost.peak_bytes) for c in points])

    def across(value: float) -> float:
        return _LEFT + (value - x[0]) / (x[1] - x[0]) * (_RIGHT - _LEFT)

    def down(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y[0]) / (y[1] - y[0]) * (_HEIGHT - _BOTTOM - _TOP)

    drawn = []
    for peak in _ticks(y[0] / GIB, y[1] / GIB):
        level = down(peak * GIB)
        drawn += [
            el("line", x1=share(_LEFT), x2=share(_RIGHT), y1=level, y2=level, class_="axis"),
            el("text", f"{peak:g} GiB", x=0, y=level + 4),
        ]
    for time in _ticks(*x):
        at = share(across(time))
        drawn.append(el("text", seconds(time), x=at, y=_HEIGHT - 18, text_anchor="middle"))
    drawn.append(
        el("text", "step", x=share((_LEFT + _RIGHT) / 2), y=_HEIGHT - 3, text_anchor="middle")
    )
    for number, c in reversed(list(enumerate(points, 1))):
        at, level = share(across(c.cost.step_s)), down(float(c.cost.peak_bytes))
        title = f"{_name(c)}: {seconds(c.cost.step_s)}, {size(c.cost.peak_bytes)}"
        on = number <= num_frontier
        if c.config == chosen.config:
            drawn.append(el("circle", cx=at, cy=level, r=10, class_="halo"))
        drawn.append(
            el(
                "circle",
                el("title", title),
                cx=at,
                cy=level,
                r=6 if on else 4.5,
                class_="dot" if on else "dot other",
            )
        )
        if on and num_frontier <= 30:
            drawn.append(el("text", number, x=at, y=level - 13, text_anchor="middle"))
    label = "step time against peak memory"
    return el("svg", *drawn, height=_HEIGHT, role="img", aria_label=label)
