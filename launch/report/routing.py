"""Recorded routing as a picture: where the load is, what a layer tells of the next, what drifts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.picture import check_picture, save_picture

if TYPE_CHECKING:
    from profiler.routing.statistics import RoutingStatistics
    from profiler.routing.trace import Routing

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#c2570c", "#8a94a0"


def draw(routing: "Routing", found: "RoutingStatistics", path: Path) -> None:
    """Load of each expert over the mean, sorted within its layer, and lines per layer. Same
    routing, same picture."""
    from matplotlib.figure import Figure

    check_picture(path)
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1.0))
    left, right = halves
    _loads(left, routing)
    upper, lower = right.subplots(2, 1, sharex=True)
    _information(upper, found)
    _drift(lower, found)
    lower.set_xlabel("MoE layer")
    size = "counts" if found.num_tokens is None else f"{found.num_tokens:,} tokens"
    figure.suptitle(f"{found.model or 'Routing'}: {size}, {found.num_experts} experts")
    save_picture(figure, path)


def _loads(figure: Any, routing: "Routing") -> None:
    counts = routing.counts().astype(np.float64)
    mean = np.maximum(counts.mean(axis=1, keepdims=True), 1e-12)
    load = -np.sort(-counts / mean, axis=1)
    ax = figure.subplots()
    # linear to twice the mean, where most experts are; a few far above share the darkest colour
    shown = ax.imshow(
        load, aspect="auto", cmap="Blues", vmin=0, vmax=max(2.0, float(np.quantile(load, 0.99))),
        interpolation="nearest",
    )  # fmt: skip
    ax.set(title="Load of experts over the layer's mean", xlabel="experts, busiest first",
           ylabel="MoE layer")  # fmt: skip
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.xaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(shown, ax=ax, extend="max", shrink=0.85)


def _information(ax: Any, found: "RoutingStatistics") -> None:
    pairs = [(x.layer, x.pair_bits) for x in found.layers if x.pair_bits is not None]
    nexts = [(x.layer, x.next_bits) for x in found.layers if x.next_bits is not None]
    for points, colour, marker, label in (
        (pairs, _BLUE, "o", "chosen together"), (nexts, _ORANGE, "s", "with the next layer")
    ):  # fmt: skip
        if points:
            x, y = zip(*points, strict=True)
            ax.plot(x, y, marker=marker, ms=3.5, lw=1.2, color=colour, label=label)
    ax.set(title="Information, bits", ylim=(0, None))
    ax.xaxis.get_major_locator().set_params(integer=True)
    _dress(ax, bool(pairs or nexts), "one window of counts says nothing of tokens")


def _drift(ax: Any, found: "RoutingStatistics") -> None:
    rows = [(x.layer, x.drift, x.drift_noise) for x in found.layers if x.drift is not None]
    if rows:
        x, drift, noise = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
        ax.plot(x, 100 * drift, marker="o", ms=3.5, lw=1.2, color=_BLUE, label="seen")
        ax.plot(x, 100 * noise, lw=1.2, ls="--", color=_GREY, label="by chance")
    ax.set(title=f"Drift of the load, first to last of {found.windows} windows, %", ylim=(0, None))
    _dress(ax, bool(rows), "one window of time")


def _dress(ax: Any, has_lines: bool, why_not: str) -> None:
    ax.grid(visible=True, color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if has_lines:
        ax.legend(fontsize=8, frameon=False)
    else:
        ax.text(0.5, 0.5, why_not, ha="center", va="center", transform=ax.transAxes, color="0.4")
