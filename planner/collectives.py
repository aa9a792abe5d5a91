"""Time of transfers between ranks, from the profile's curves.

A measured curve of the same operation, group size and scope is used as it is, linear between its
sizes (time is latency + bytes / bandwidth to good approximation, so linear interpolation keeps the
form). Where there is none, a ring over n ranks with k of them in each node (Thakur, Rabenseifner,
Gropp 2005):

    all-gather, reduce-scatter: (n - 1) * latency + (n - 1)/n * bytes / rate
    all-reduce:                 twice that

latency is the mean hop's; rate is the slowest hop's. A hop between nodes runs at the group's share
of the node's NICs while all sibling groups of the axis talk at once: nics * nic_rate * k /
devices_per_node, never faster than a hop inside the node where the ring also passes inside nodes.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.cluster import NodeGroup
from profiler.errors import UserError
from profiler.profile import Profile, Scope, Source, TransferOp

_RINGS: dict[TransferOp, float] = {
    "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0, "all_reduce": 2.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """Shape of a communication group: `size` ranks, `per_node` of them in each node."""

    size: int
    per_node: int

    @property
    def scope(self) -> Scope | None:
        """node, cluster (one rank per node), or None where the group is a mixture."""
        if self.size <= self.per_node:
            return "node"
        return "cluster" if self.per_node == 1 else None


def group_of(size: int, stride: int, devices_per_node: int) -> Group:
    """Group of `size` ranks, `stride` apart, in consecutive nodes of `devices_per_node` ranks.

    Where nodes hold unequal numbers of them, the fewest, which is the slowest NIC share.
    """
    per_node: dict[int, int] = defaultdict(int)
    for i in range(size):
        per_node[i * stride // devices_per_node] += 1
    return Group(size=size, per_node=min(per_node.values()))


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds over bytes, both ascending; straight lines between, the last line's slope beyond."""

    num_bytes: NDArray[np.float64]
    seconds: NDArray[np.float64]
    source: Source

    def at(self, num_bytes: float) -> float:
        """Seconds for one transfer; never less than the smallest measured."""
        if len(self.num_bytes) == 1 or num_bytes <= self.num_bytes[-1]:
            return float(np.interp(num_bytes, self.num_bytes, self.seconds))
        slope = (self.seconds[-1] - self.seconds[-2]) / (self.num_bytes[-1] - self.num_bytes[-2])
        return float(self.seconds[-1] + max(slope, 0.0) * (num_bytes - self.num_bytes[-1]))

    @property
    def latency_s(self) -> float:
        """Time of the smallest transfer."""
        return float(self.seconds[0])

    @property
    def bytes_per_s(self) -> float:
        """Rate between the smallest and the largest transfer."""
        span = float(self.seconds[-1] - self.seconds[0])
        return float(self.num_bytes[-1] - self.num_bytes[0]) / span if span > 0 else np.inf


class Links:
    """All transfer curves of a profile, ready for look-up."""

    def __init__(self, profile: Profile) -> None:
        self.node: NodeGroup = profile.cluster.uniform
        points: dict[tuple[TransferOp, int, Scope], dict[int, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )
        sources: dict[tuple[TransferOp, int, Scope], Source] = {}
        for entry in profile.transfers:
            key = (entry.op, len(entry.ranks), entry.scope)
            points[key][entry.num_bytes].append(entry.time.median_s)
            sources[key] = entry.source
        self._curves = {
            key: Curve(
                num_bytes=np.array(sorted(sizes), dtype=np.float64),
                seconds=np.array([np.median(sizes[b]) for b in sorted(sizes)]),
                source=sources[key],
            )
            for key, sizes in points.items()
        }

    def p2p(self, num_bytes: float, *, same_node: bool) -> tuple[float, Source]:
        """One message per device at the same time, all devices of a node sending: (seconds,
        source).
        """
        curve = self._p2p_curve("node" if same_node else "cluster")
        if same_node:
            return curve.at(num_bytes), curve.source
        crowd = max(1.0, self.node.devices_per_node / self.node.nics_per_node)
        return curve.latency_s + (curve.at(num_bytes) - curve.latency_s) * crowd, curve.source

    def collective(self, op: TransferOp, num_bytes: float, group: Group) -> tuple[float, Source]:
        """One collective of a group, all sibling groups of its axis at once: (seconds, source)."""
        if group.size == 1 or num_bytes == 0:
            return 0.0, "analytic"
        scope = group.scope
        if scope is not None and (curve := self._curves.get((op, group.size, scope))) is not None:
            return curve.at(num_bytes), curve.source
        return self._ring(op, num_bytes, group), "analytic"

    def measured(self, op: TransferOp, size: int, scope: Scope) -> Curve | None:
        """What was measured of a group of `size` ranks; None where nothing was."""
        return self._curves.get((op, size, scope))

    def byte_s(self, op: TransferOp, group: Group) -> float:
        """Seconds per byte of a measured collective, its smallest size's time apart; 0 where it was
        not measured."""
        curve = self._curves.get((op, group.size, "node")) if group.scope == "node" else None
        return 1 / curve.bytes_per_s if curve else 0.0

    def inside(self) -> tuple[float, float]:
        """(bytes/s, latency in s) of messages inside a node."""
        curve = self._p2p_curve("node")
        return curve.bytes_per_s, curve.latency_s

    def _p2p_curve(self, scope: Scope) -> Curve:
        curve = self._curves.get(("p2p", 2, scope))
        if curve is None:
            where = "inside a node" if scope == "node" else "between nodes"
            raise UserError(
                f"the profile has no point-to-point times {where}",
                hint="profile again",
                kind="stale",
            )
        return curve

    def _ring(self, op: TransferOp, num_bytes: float, group: Group) -> float:
        rates, latencies = [], []
        nodes = -(-group.size // group.per_node)
        if group.per_node > 1:
            inside = self._p2p_curve("node")
            rates.append(inside.bytes_per_s)
            latencies += [inside.latency_s] * (group.size - nodes)
        if nodes > 1:
            between = self._p2p_curve("cluster")
            share = self.node.nics_per_node * group.per_node / self.node.devices_per_node
            rates.append(between.bytes_per_s * share)
            latencies += [between.latency_s] * nodes
        passes = _RINGS[op] * (group.size - 1)
        return passes * (float(np.mean(latencies)) + num_bytes / group.size / min(rates))
