"""What meshes take and hold on each kind of node, as arrays; and what devices count in a score."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from planner.layouts import Ints, Layouts
from planner.mixed_costs import MixedCosts
from planner.plan import SearchOptions
from planner.timing.inputs import split_of
from planner.timing.quantities import Array, Num


@dataclass(frozen=True, slots=True, eq=False)
class Rates:
    """Of meshes on one kind: seconds of a mean layer, of the head, of a message between nodes."""

    layer: Array
    dense: Array
    moe: Array
    head: Array
    send: Array
    fixed_bytes: Array
    layer_bytes: Array
    """Of a layer, without what is in flight."""
    flight_bytes: Array
    """Of a layer and a micro-batch in flight."""


def rates_of(costs: MixedCosts, layouts: Layouts) -> list[Rates]:
    """Of each kind, in the cluster's order."""
    split, n = split_of(layouts, costs.job), len(layouts)
    kinds = costs.model.blocks
    num_moe = kinds.count("moe") + kinds.count("mtp")
    num_dense = kinds.count("dense")
    deep = dataclasses.replace(layouts, pp=np.full(n, 3, dtype=np.int32))

    def held(layers: float) -> tuple[Array, Array]:
        peaks = costs.peaks(deep, np.full((3, n), layers), one_micro_batch=True)
        parts = (peaks.weights, peaks.grads, peaks.optimizer, peaks.buffers, peaks.transient)
        still = sum(np.broadcast_to(part, (3, n))[1] for part in parts)
        return np.asarray(still), np.broadcast_to(peaks.activations, (3, n))[1]

    (still_1, kept_1), (still_2, kept_2) = held(1.0), held(2.0)
    each = still_2 - still_1
    found = []
    for kind in costs.kinds:
        step, head = costs.times(kind, split)
        dense, moe = (
            np.broadcast_to(np.asarray(x.forward_s + x.input_s + x.weight_s), (n,))
            for x in (step.dense, step.moe)
        )
        send = costs.send_s(split, kind, kind, float("inf"))
        found.append(
            Rates(
                layer=(num_dense * dense + num_moe * moe) / (num_dense + num_moe),
                dense=dense,
                moe=moe,
                head=np.broadcast_to(np.asarray(sum(head)), (n,)),
                send=np.broadcast_to(np.asarray(send), (n,)),
                fixed_bytes=still_1 - each,
                layer_bytes=each,
                flight_bytes=kept_2 - kept_1,
            )
        )
    return found


def price_weights(costs: MixedCosts, options: SearchOptions) -> list[float]:
    """Of each group, the factor that a device has in a score; all 0: devices have none."""
    if options.objective != "cost":
        return [0.0] * len(costs.kinds)
    prices = [kind.group.price_per_hour for kind in costs.kinds]
    return [float(p) for p in prices if p] if all(prices) else [1.0] * len(prices)


def price_of_counts(weights: list[float], counts: Ints, size: Num) -> Num:
    """Factor of a step in its score."""
    return counts @ np.array(weights) * size if any(weights) else 1.0
