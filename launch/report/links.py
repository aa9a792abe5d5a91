"""Who talks to whom over which link: a map per axis."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.cli.render import seconds
from launch.report.html import Html, el, legend, section
from planner.grounds import link_words
from planner.plan import Plan
from planner.reach import reach_of, talking_pairs
from planner.wording import percent, rate

MOST_CELLS = 32
"""Rows and columns of a map."""
_TITLES = {
    "tp": ("tensor parallel", "tensor"),
    "cp": ("context parallel", "context"),
    "ep": ("expert parallel", "expert"),
    "etp": ("expert tensor parallel", None),
    "pp": ("pipeline", "messages"),
    "dp": ("data parallel", "reduction"),
}
"""Axis -> name, term of the step."""


def links_section(plan: Plan) -> Html | None:
    """A map for each axis that communicates; None where no axis does, or nodes are of several
    kinds."""
    if len(plan.cluster.groups) > 1:
        return None  # the maps are of nodes of one kind
    config, group = plan.chosen.config, plan.cluster.uniform
    num = config.num_devices
    per_cell, unit = _cells(num, group.devices_per_node)
    figures = []
    for axis, (name, term) in _TITLES.items():
        reach = reach_of(config, plan.chosen.placement, group, axis)
        if reach.size == 1 or (axis == "etp" and not plan.model.num_moe_layers):
            continue
        pairs = talking_pairs(reach, config)
        far = pairs[:, 0] // group.devices_per_domain != pairs[:, 1] // group.devices_per_domain
        figures.append(
            el(
                "figure",
                _map(
                    pairs // per_cell,
                    far,
                    -(-num // per_cell),
                    group.devices_per_node if per_cell == 1 else 0,
                    f"{name}: who talks to whom",
                ),
                el(
                    "figcaption",
                    el("b", f"{name} {reach.size}"),
                    f" — {link_words(plan, axis)}",
                    _exposed(plan, term),
                ),
            )
        )
    if not figures:
        return None
    share = group.nics_per_node * group.nic.bytes_per_s / group.devices_per_node
    marks = [
        ("f-fast", f"{group.intra.name}, {rate(group.intra.bytes_per_s)} per device"),
        ("f-net", f"{group.nic.name}, {rate(share)} per device when all of a node send"),
    ]
    note = (
        f"A cell is {unit} that sends (row) to another (column), from 0 at the top left; the "
        "colour is the slowest link between them, the strength how many pairs of ranks talk."
    )
    return section(
        "Links", el("div", *figures, class_="maps"), legend(marks), note=note, id_="links"
    )


def _cells(num: int, per_node: int) -> tuple[int, str]:
    """Ranks of a row of the maps, and what that is called."""
    if num <= MOST_CELLS:
        return 1, "a rank"
    nodes = -(-num // per_node)
    together = -(-nodes // MOST_CELLS)
    return together * per_node, "a node" if together == 1 else f"{together} nodes"


def _exposed(plan: Plan, term: str | None) -> str:
    terms, total = plan.chosen.cost.terms, sum(plan.chosen.cost.terms.values())
    if term is None or term not in terms or not total:
        return ""
    return f". Exposed: {seconds(terms[term])}, {percent(terms[term] / total)} of the step"


def _map(cells: NDArray[Any], far: NDArray[Any], size: int, node: int, label: str) -> Html:
    """A square of `size` cells a side; lines every `node` ranks."""
    counts: NDArray[Any] = np.zeros((2, size, size), dtype=np.int64)
    np.add.at(counts, (far.astype(np.int64), cells[:, 0], cells[:, 1]), 1)
    most = int(counts.sum(axis=0).max())
    drawn = []
    for row, column in np.argwhere(counts.sum(axis=0)):
        near, away = int(counts[0, row, column]), int(counts[1, row, column])
        strength = 0.3 + 0.7 * (near + away) / most
        title = f"{row} to {column}: {near} pairs on the fast link, {away} on the network"
        drawn.append(
            el(
                "rect",
                el("title", title),
                x=int(column),
                y=int(row),
                width=1,
                height=1,
                class_="f-net" if away else "f-fast",
                fill_opacity=f"{strength:.2f}",
            )
        )
    lines = range(node, size, node) if node else range(0)
    for k in lines:
        drawn.append(el("line", x1=k, x2=k, y1=0, y2=size, class_="grid"))
        drawn.append(el("line", x1=0, x2=size, y1=k, y2=k, class_="grid"))
    return el("svg", *drawn, viewBox=f"0 0 {size} {size}", role="img", aria_label=label)
