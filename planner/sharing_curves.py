"""How ranks of one host slow each other, from the profile's points."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from planner.config import ParallelConfig
from planner.shared_host import Sharing, slow
from profiler.cluster import NodeGroup
from profiler.profile import Profile

Curves = dict[int, tuple[float, ...]]


def sharing_curves(profile: Profile) -> Curves:
    """Tensor-parallel degree -> slow-down for 1, 2, ... active ranks, never decreasing: measured
    points joined by straight lines. Degrees with a single point say nothing and are left out."""
    points: dict[int, dict[int, float]] = defaultdict(dict)
    for entry in profile.sharing:
        points[entry.tp][entry.active] = entry.slowdown
    curves = {}
    for tp, measured in points.items():
        known = sorted({tp: 1.0, **measured}.items())
        if len(known) > 1 or tp == 1:
            active = np.arange(1, known[-1][0] + 1)
            values = np.interp(active, [k for k, _ in known], [v for _, v in known])
            curves[tp] = tuple(float(v) for v in np.maximum.accumulate(values))
    return curves


def _relative(curve: tuple[float, ...], ranks: int) -> tuple[float, ...]:
    """A curve relative to `ranks` active instead of one."""
    base = slow(curve, ranks)
    return tuple(max(1.0, value / base) for value in curve)


def sharing_of(
    curves: Curves, config: ParallelConfig, node: NodeGroup, nodes: Sequence[int] | None
) -> Sharing | None:
    """Who shares cores with whom, with the host of each coordinate (None: in order, all links
    alike); None where the profile has no slow-down of single ranks, and links are alike."""
    if 1 not in curves:
        if nodes is None:
            return None
        curves = {1: (1.0,) * node.devices_per_node}
    on = [[0] * node.num_nodes for _ in range(config.pp)]
    for number in range(config.num_devices):
        host = nodes[number] if nodes else number // node.devices_per_node
        on[number // config.stage_ranks][host] += 1
    return Sharing(
        slowdown=curves.get(config.tp) or _relative(curves[1], config.tp),
        sync_slowdown=_relative(curves[1], config.dp_replicate),
        ranks_on_host=tuple(tuple(row) for row in on),
        in_turn=nodes is not None,
    )
