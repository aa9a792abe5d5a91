"""What is uneven and what belongs together in recorded routing, layer by layer.

With n tokens that choose k of e experts, c[e] choices of an expert and p[e] = c[e] / sum(c):

    load          max(c) / mean(c); coefficient of variation std(c) / mean(c); entropy of p, bits
    co-activation N[a, b] tokens choose both a and b. Were they independent but for being two
                  different experts, the pairs would be E[a, b] = u[a] u[b] with the same sums over
                  rows (quasi-independence, Goodman 1968, JASA 63:1091). Lift is N / E; bits are the
                  information sum(N log2(N / E)) / sum(N), less its bias (free cells) / (2 sum(N))
    next layer    mutual information of an expert of a token in this layer and one in the next,
                  plug-in estimate of the pairs' frequencies less its bias. For k = 1 that is
                  (e - 1)^2 / (2 n ln 2) (Miller 1955, "Note on the bias of information estimates");
                  sets of k experts vary less: (e - k)(e' - k') / (2 n k k' ln 2), of experts that
                  were chosen at all
    drift         total variation distance sum|p - p'| / 2 of the first window of time and the last,
                  beside its expectation were all windows alike: sum over experts of
                  sqrt(v[e] / (2 pi)), v = q(1 - q)(1/n + 1/n') / k^2 the variance of p - p' where
                  q = k p of the tokens take e. Neighbours are alike, so real noise is larger

Counts alone say load and drift. Tokens are taken to be independent throughout.
"""

import math

import numpy as np
from numpy.typing import NDArray

from profiler.codec import record
from profiler.routing.pairs import joint_counts, pair_counts, quasi_independent
from profiler.routing.trace import DROPPED, Counts, Routing, RoutingCounts, RoutingTrace

Floats = NDArray[np.float64]
WINDOWS = 8
"""Of time, into which a trace is divided."""
TINY = 1e-300


@record
class Pair:
    """The two experts of a layer that tokens choose together and that say most by it."""

    first: int
    second: int
    lift: float
    """Times as often as independent choices would."""
    share: float
    """Of the layer's tokens."""


@record
class LayerStatistics:
    """Of one MoE layer, from 0; None where only counts are known, or there is no next layer."""

    layer: int
    max_over_mean: float
    variation: float
    """Coefficient of variation of the experts' loads."""
    entropy_bits: float
    unused: int
    """Experts without a choice."""
    drift: float | None
    """Total variation distance of first and last window, 0 to 1; None with one window."""
    drift_noise: float | None
    """What sampling alone would make of it."""
    pair: Pair | None
    pair_bits: float | None
    next_bits: float | None


@record
class RoutingStatistics:
    """Content of `meshwright experts show --json`."""

    format_version: str = "1.0"
    kind: str = "routing-statistics"
    model: str
    num_tokens: int | None
    """None where only counts are known."""
    num_experts: int
    top_k: int | None
    dropped_share: float
    """Of the tokens' choices."""
    windows: int
    most_bits: float
    """Entropy of an even load."""
    layers: tuple[LayerStatistics, ...]


def statistics_of(routing: Routing, *, windows: int = WINDOWS) -> RoutingStatistics:
    """Statistics of all layers; `windows` of time divide a trace."""
    if isinstance(routing, RoutingCounts):
        each, tokens, k = routing.windows, None, None
        dropped = 0.0
    else:
        each, tokens, k = routing.windows(windows), routing.num_tokens, routing.ids.shape[2]
        dropped = float((routing.ids == DROPPED).mean())
    layers = tuple(_layer(routing, each[:, i], i, k or 1) for i in range(routing.num_layers))
    return RoutingStatistics(
        model=routing.model, num_tokens=tokens, num_experts=routing.num_experts, top_k=k,
        dropped_share=dropped, windows=len(each), most_bits=math.log2(routing.num_experts),
        layers=layers,
    )  # fmt: skip


def _layer(routing: Routing, windows: Counts, layer: int, k: int) -> LayerStatistics:
    """Of one layer, whose counts are `windows` [windows, experts]."""
    drift, noise = drift_of(windows, k)
    pair, pair_bits, next_bits = None, None, None
    if isinstance(routing, RoutingTrace):
        pair, pair_bits = _together(routing, layer)
        if layer + 1 < routing.num_layers:
            next_bits = next_layer_bits(routing, layer)
    load = windows.sum(axis=0).astype(np.float64)
    mean = float(load.mean()) or 1.0
    return LayerStatistics(
        layer=layer, max_over_mean=float(load.max()) / mean, variation=float(load.std()) / mean,
        entropy_bits=entropy_bits(load), unused=int((load == 0).sum()), drift=drift,
        drift_noise=noise, pair=pair, pair_bits=pair_bits, next_bits=next_bits,
    )  # fmt: skip


def entropy_bits(weights: Floats) -> float:
    """Entropy of weights divided by their sum; 0 where there are none."""
    total = float(weights.sum())
    if not total:
        return 0.0
    p = weights[weights > 0] / total
    return float(-(p * np.log2(p)).sum()) + 0.0


def drift_of(windows: Counts, k: int) -> tuple[float | None, float | None]:
    """Distance of the first and the last window [windows, experts] and its expected noise, as in
    the module's description; None without two windows that hold something."""
    used = windows[windows.any(axis=1)].astype(np.float64)
    if len(used) < 2:
        return None, None
    first, last = used[0], used[-1]
    distance = float(np.abs(first / first.sum() - last / last.sum()).sum()) / 2
    q = np.minimum(1.0, k * (first + last) / (first.sum() + last.sum()))
    variance = q * (1 - q) * (1 / first.sum() + 1 / last.sum()) / k
    return distance, float(np.sqrt(2 * variance / math.pi).sum()) / 2


def _together(trace: RoutingTrace, layer: int) -> tuple[Pair | None, float | None]:
    """The pair that says most, N log2(N / E), and the information of all pairs."""
    counts = pair_counts(trace.ids[:, layer], trace.num_experts)
    total = float(counts.sum()) / 2
    if not total:
        return None, None
    expected = quasi_independent(counts)
    rows = np.triu_indices(trace.num_experts, 1)
    seen, likely = counts[rows], expected[rows]
    information = np.where(
        seen > 0, seen * np.log2(np.maximum(seen, 1) / np.maximum(likely, TINY)), 0
    )
    bits = float(information.sum()) / total
    used = int((counts.sum(axis=1) > 0).sum())
    free = max(0, used * (used - 1) // 2 - used)
    bits -= free / (2 * total * math.log(2))
    best = int(information.argmax())
    pair = Pair(
        first=int(rows[0][best]), second=int(rows[1][best]),
        lift=float(seen[best] / max(likely[best], TINY)),
        share=float(seen[best]) / trace.num_tokens,
    )  # fmt: skip
    return pair, bits


def next_layer_bits(trace: RoutingTrace, layer: int) -> float:
    """Mutual information of the experts in `layer` and in the one after it, bias taken off."""
    here, there = trace.ids[:, layer], trace.ids[:, layer + 1]
    joint = joint_counts(here, there, trace.num_experts)
    total = float(joint.sum())
    if not total:
        return 0.0
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    plug_in = entropy_bits(rows) + entropy_bits(columns) - entropy_bits(joint.ravel())
    k, k_next = (float((part != DROPPED).sum()) / len(part) for part in (here, there))
    free = max(0.0, int((rows > 0).sum()) - k) * max(0.0, int((columns > 0).sum()) - k_next)
    return plug_in - free / (2 * total * math.log(2))
