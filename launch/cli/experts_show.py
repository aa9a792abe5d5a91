"""`meshwright experts show`: load, co-activation, next layers and drift of recorded routing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.experts_import import Experts, Keys, Trace, split_keys
from launch.cli.options import Json
from launch.cli.terminal import bold, note, say

if TYPE_CHECKING:
    from profiler.routing.statistics import LayerStatistics, RoutingStatistics

MOST_LAYERS = 24
"""Lines of the table; of more layers the most uneven ones are shown."""


def run(
    trace: Trace,
    keys: Keys = None,
    experts: Experts = None,
    windows: Annotated[
        int, typer.Option(min=2, max=1000, help="Windows of time for the drift.")
    ] = 8,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw it: .png, .svg or .pdf.", metavar="FILE", show_default="none"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show recorded routing: load, co-activation, next layers, drift."""
    if picture:
        from launch.picture import check_picture

        check_picture(picture)
    from launch.routing_files import read_any_routing
    from profiler.codec import encode
    from profiler.routing.readers import Wanted
    from profiler.routing.statistics import statistics_of

    wanted = Wanted(num_experts=experts, keys=split_keys(keys))
    routing = read_any_routing(trace, wanted)
    found = statistics_of(routing, windows=windows)
    if as_json:
        typer.echo(encode(found), nl=False)
    else:
        for line in table(found):
            say(line)
    if picture:
        from launch.report.routing import draw

        draw(routing, found, picture)
        note(f"Saved the picture to: `{picture}`")


def table(found: "RoutingStatistics") -> list[str]:
    """Lines of 80 columns."""
    size = "counts" if found.num_tokens is None else f"{found.num_tokens:,} tokens"
    top = "" if found.top_k is None else f", top {found.top_k}"
    head = f"{found.model or 'routing'}: {size}, {len(found.layers)} MoE layers of "
    lines = [bold(f"{head}{found.num_experts} experts{top}")]
    if found.dropped_share:
        lines.append(f"{found.dropped_share:.1%} of the choices were dropped")
    lines += ["", f"{'':7}{'load':^30}{'chosen together':^20}{'next':>8}{'drift':>7}{'by':>8}",
              f"{'layer':>5}{'max/mean':>11}{'cv':>6}{'bits':>7}{'idle':>6}"
              f"{'pair':>10}{'lift':>6}{'bits':>6}{'bits':>8}{'%':>7}{'chance':>8}"]  # fmt: skip
    shown = sorted(found.layers, key=lambda layer: -layer.max_over_mean)
    shown = sorted(shown[:MOST_LAYERS], key=lambda layer: layer.layer)
    lines += [_row(str(layer.layer), layer) for layer in shown]
    left = len(found.layers) - len(shown)
    if left:
        lines.append(f"{left} layers with less uneven load are not shown")
    return [*lines, "", *_summary(found)]


def _row(name: str, layer: "LayerStatistics") -> str:
    pair = "-" if layer.pair is None else f"{layer.pair.first}+{layer.pair.second}"
    lift = "-" if layer.pair is None else f"{layer.pair.lift:.1f}"
    return (
        f"{name:>5}{layer.max_over_mean:>11.2f}{layer.variation:>6.2f}{layer.entropy_bits:>7.2f}"
        f"{layer.unused:>6}{pair:>10}{lift:>6}{_bits(layer.pair_bits, 6)}"
        f"{_bits(layer.next_bits, 8)}{_percent(layer.drift, 7)}{_percent(layer.drift_noise, 8)}"
    )


def _bits(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.2f}"


def _percent(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{100 * value:>{width}.1f}"


def _summary(found: "RoutingStatistics") -> list[str]:
    """What the columns come to, in words."""
    import statistics

    loads = [layer.max_over_mean for layer in found.layers]
    worst = max(found.layers, key=lambda layer: layer.max_over_mean)
    lines = [
        f"Load: the busiest expert of a layer has {statistics.median(loads):.2f} times the mean in "
        "the median",
        f"  and {worst.max_over_mean:.2f} times in layer {worst.layer}; an even load has "
        f"{found.most_bits:.2f} bits",
    ]
    next_bits = [layer.next_bits for layer in found.layers if layer.next_bits is not None]
    if next_bits:
        lines.append(
            f"Next: an expert tells {statistics.median(next_bits):.2f} bits of the next layer's in "
            "the median"
        )
    drifts = [x.drift / x.drift_noise for x in found.layers
              if x.drift is not None and x.drift_noise]  # fmt: skip
    if drifts:
        ratio = statistics.median(drifts)
        lines.append(
            f"Drift: first and last of {found.windows} windows differ by {ratio:.1f} times what "
            "chance would"
        )
    return lines
