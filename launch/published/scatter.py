"""Predicted against measured as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.picture import check_picture, save_picture
from launch.published.cells import brief
from planner.scored import Scored

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAND = 0.2
"""Half width of the band around equality; 0.2 is +-20 %."""
_MARKERS = "o^sDv"
_GREY = 7
"""Its place among the colours; grey is for rows that are not trusted."""


def draw(rows: Sequence[Scored], path: Path, *, memory: bool = False) -> None:
    """Scatter of step time, and of peak memory where `memory`: log-log, a colour per source.

    Rows that are not trusted are small and grey. Same rows, same picture.
    """
    from matplotlib.figure import Figure

    check_picture(path)
    ran = sorted((r for r in rows if not r.failed), key=lambda r: (r.source, r.row_id, r.label))
    panels = [("step time, s", [(r, r.measured_step_s, r.predicted_step_s) for r in ran])]
    if memory:
        panels.append(
            ("peak memory, GiB", [(r, r.measured_peak_gib, r.predicted_peak_gib) for r in ran])
        )
    sources = sorted({r.source for r in ran if r.trusted})
    figure = Figure(figsize=(6 * len(panels) + 4.8, 6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, points) in zip(axes, panels, strict=True):
        known = [(r, m, p) for r, m, p in points if m is not None and p is not None]
        _panel(ax, title, known, sources)
    handles = {
        label: handle
        for ax in axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="outside right upper", fontsize=8, frameon=False
    )
    save_picture(figure, path)


def _panel(
    ax: "Axes", title: str, points: Sequence[tuple[Scored, float, float]], sources: Sequence[str]
) -> None:
    from matplotlib import colormaps

    colours = [c for n, c in enumerate(colormaps["tab10"].colors) if n != _GREY]  # type: ignore[attr-defined]
    apart = [(m, p) for r, m, p in points if not r.trusted]
    if apart:
        x, y = zip(*apart, strict=True)
        ax.scatter(x, y, s=8, c="0.75", marker=".", label="not trusted")
    for number, source in enumerate(sources):
        mine = [(m, p) for r, m, p in points if r.trusted and r.source == source]
        if mine:
            x, y = zip(*mine, strict=True)
            ax.scatter(
                x,
                y,
                s=18,
                alpha=0.75,
                linewidths=0,
                color=colours[number % len(colours)],
                marker=_MARKERS[number // len(colours) % len(_MARKERS)],
                label=brief(source),
            )
    values = [v for _, m, p in points for v in (m, p)] or [1.0, 10.0]
    low, high = min(values) / 1.3, max(values) * 1.3
    ends = (low, high)
    ax.plot(ends, ends, color="0.2", linewidth=1, label="equal")
    for n, factor in enumerate((1 - BAND, 1 + BAND)):
        ax.plot(ends, [x * factor for x in ends], color="0.2", linewidth=0.8, linestyle="--",
                label="_" if n else f"+-{BAND:.0%}")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    ax.set(title=f"{title}: {len(points):,} rows", xlabel="measured", ylabel="predicted")
    ax.grid(visible=True, which="major", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
