"""Bars of the report: memory by stage, the step by term."""

from collections.abc import Iterable

from launch.cli.render import seconds, size
from launch.cli.sections import PART_WORDS, part_bytes
from launch.report.html import Html, el, legend, section, share, table
from planner.explain import shares
from planner.plan import Candidate, Plan
from planner.spans import shown_ranks
from planner.where import capacities_of, kinds_of_ranks
from planner.wording import gib, percent

_MOST_STAGES = 32
_MOST_LAYOUTS = 6
TERM_WORDS = {
    "matrix": "products with weights",
    "attention": "scores and values",
    "stream": "element-wise passes",
    "host": "waiting for kernels to start",
    "recompute": "forward run again",
    "tensor": "exposed tensor-parallel collectives",
    "context": "exposed context-parallel exchange",
    "expert": "exposed exchange of tokens among experts",
    "messages": "exposed messages between stages",
    "bubble": "waiting in the pipeline",
    "reduction": "exposed reduction of gradients, gathering of weights",
    "update": "optimizer",
    "base": "once per step",
    "compute": "blocks, recomputation, optimizer",
    "p2p": "waiting for a message that was sent",
    "collective": "waiting in collectives",
    "idle": "waiting for work",
}


def bar(parts: Iterable[tuple[str, float, str]], *, limit: float | None = None) -> Html:
    """A stacked bar: (name of the colour, share of the width, tooltip); a line at `limit`."""
    drawn, at = [el("rect", width="100%", height=20, rx=2, class_="track")], 0.0
    for name, width, title in parts:
        if width > 0:
            drawn.append(
                el(
                    "rect",
                    el("title", title),
                    x=share(at),
                    width=share(width),
                    height=20,
                    class_=f"f-{name}",
                )
            )
        at += width
    if limit is not None:
        drawn.append(el("line", x1=share(limit), x2=share(limit), y1=0, y2=20, class_="limit"))
    return el("svg", *drawn, height=20, role="img", aria_hidden="true")


def memory(plan: Plan) -> Html:
    """Memory of each stage by part, against the device's."""
    stages = [s.memory for s in plan.chosen.cost.stages]
    rooms = capacities_of(plan.cluster, plan.chosen.config, plan.chosen.placement)
    usable = 1 - plan.job.memory_reserve
    scale = max(*rooms, *(m.total_bytes for m in stages))
    rows, before = [], -1
    shown = shown_ranks(len(stages), _MOST_STAGES)
    for number in shown:
        if number > before + 1:
            rows.append(el("p", f"{number - before - 1} stages between", class_="note"))
        before = number
        total, capacity = stages[number].total_bytes, rooms[number]
        parts = [
            (name, value / scale, f"{PART_WORDS[name]} {size(value)}")
            for name, value in part_bytes(stages[number]).items()
        ]
        words = f"{size(total)} · {total / capacity:.0%}"
        rows.append(
            el(
                "div",
                el("span", f"stage {number}"),
                bar(parts, limit=usable * capacity / scale),
                el("span", words, class_="end"),
                class_="row",
            )
        )
    used = {name for m in stages for name, value in part_bytes(m).items() if value}
    marks = [(f"f-{name}", words) for name, words in PART_WORDS.items() if name in used]
    limits = " or ".join(dict.fromkeys(gib(usable * room) for room in sorted(set(rooms))))
    note = (
        f"Peak of one device of each stage. The full width is {gib(scale)}; the line is the limit "
        f"of {limits}, which keeps {plan.job.memory_reserve:.0%} free."
    )
    return section(
        "Memory",
        el("div", *rows, class_="memory"),
        legend([*marks, ("dash", "limit")]),
        el("h3", "In numbers"),
        _memory_table(plan, shown),
        note=note,
        id_="memory",
    )


def _memory_table(plan: Plan, shown: Iterable[int]) -> Html:
    """The bars in numbers; of unlike nodes, with the kind that a stage is on."""
    chosen = plan.chosen
    kinds = kinds_of_ranks(plan.cluster, chosen.config, chosen.placement)
    unlike = len({kind.device.name for kind in kinds}) > 1
    cells = []
    for number in shown:
        memory, kind = chosen.cost.stages[number].memory, kinds[number].device
        cells.append([
            f"{number} on {kind.name}" if unlike else number,
            *(gib(value) for value in part_bytes(memory).values()),
            gib(memory.total_bytes),
            gib(kind.memory_bytes - memory.total_bytes),
        ])  # fmt: skip
    heads = ["stage", *(f">{word}" for word in PART_WORDS.values()), ">total", ">free"]
    return table(heads, cells)


def step(plan: Plan) -> Html:
    """Where the step goes, of the chosen layout and of the alternatives."""
    chosen, e = plan.chosen, plan.chosen.cost
    layouts = [c for c in (chosen, *plan.alternatives) if c.estimate is not None][:_MOST_LAYOUTS]
    longest = max(c.cost.step_s for c in layouts)
    rows = [_layout_row(c, longest) for c in layouts]
    parts = shares(chosen)
    cells = [
        [el("span", el("i", class_=f"swatch f-{name}"), name), seconds(part * e.step_s),
         percent(part), TERM_WORDS[name]]
        for name, part in parts.items() if part
    ]  # fmt: skip
    return section(
        "Where the step goes",
        el("div", *rows, class_="split"),
        el("h3", f"The chosen layout, {seconds(e.step_s)}"),
        table(["term", ">time", ">share", "what it is"], cells),
        note="Time by term; the bars of all layouts have one scale.",
        id_="step",
    )


def _layout_row(candidate: Candidate, longest: float) -> Html:
    step_s = candidate.cost.step_s
    parts = [
        (name, part * step_s / longest, f"{name} {seconds(part * step_s)}, {percent(part)}")
        for name, part in shares(candidate).items()
    ]
    name = f"{candidate.config.label} {candidate.config.schedule}"
    words = el("span", seconds(step_s), class_="end")
    return el("div", el("span", name), bar(parts), words, class_="row")
