"""On which nodes of a cluster the ranks of a layout are, and on which groups its stages."""

from bisect import bisect_left
from itertools import accumulate, pairwise

from planner.config import ParallelConfig, Placement
from profiler.cluster import ClusterSpec, NodeGroup


def starts_of(cluster: ClusterSpec) -> tuple[int, ...]:
    """First device of each group, in the cluster's order, and one past the last."""
    starts = [0]
    for group in cluster.groups:
        starts.append(starts[-1] + group.num_nodes * group.devices_per_node)
    return tuple(starts)


def nodes_of_ranks(
    cluster: ClusterSpec, config: ParallelConfig, placement: Placement
) -> tuple[int, ...]:
    """Node of each global rank, counted through all groups of the cluster.

    Where the placement names devices, a coordinate's rank is on its device; else rank r is on
    device r.
    """
    node_of = [
        first + device // group.devices_per_node
        for group, first in zip(cluster.groups, _first_nodes(cluster), strict=True)
        for device in range(group.num_nodes * group.devices_per_node)
    ]
    ranks = placement.ranks or range(config.num_devices)
    device_of = dict(zip(ranks, placement.devices or ranks, strict=True))
    return tuple(node_of[device_of[rank]] for rank in range(config.num_devices))


def _first_nodes(cluster: ClusterSpec) -> list[int]:
    return list(accumulate((g.num_nodes for g in cluster.groups[:-1]), initial=0))


def groups_of_ranks(
    cluster: ClusterSpec, config: ParallelConfig, placement: Placement
) -> tuple[tuple[int, ...], ...]:
    """Per pipeline rank, the positions of the groups that its devices are of, ascending."""
    if len(cluster.groups) == 1:
        return ((0,),) * config.pp
    starts, each = starts_of(cluster), config.stage_ranks
    devices = placement.devices or range(config.num_devices)
    kinds = []
    for rank in range(config.pp):
        own = devices[rank * each : (rank + 1) * each]
        low, high = min(own), max(own)
        kinds.append(
            tuple(
                g
                for g in range(len(cluster.groups))
                if low < starts[g + 1]
                and high >= starts[g]
                and any(starts[g] <= d < starts[g + 1] for d in own)
            )
        )
    return tuple(kinds)


def kinds_of_ranks(
    cluster: ClusterSpec, config: ParallelConfig, placement: Placement
) -> tuple[NodeGroup, ...]:
    """Per pipeline rank, the group of its devices; of several that with least memory."""
    return tuple(
        min((cluster.groups[g] for g in own), key=lambda group: group.device.memory_bytes)
        for own in groups_of_ranks(cluster, config, placement)
    )


def used_of_groups(
    cluster: ClusterSpec, config: ParallelConfig, placement: Placement
) -> tuple[int, ...]:
    """Devices of each group that work."""
    starts = starts_of(cluster)
    devices = sorted(placement.devices or range(config.num_devices))
    ends = [bisect_left(devices, start) for start in starts]
    return tuple(b - a for a, b in pairwise(ends))


def capacities_of(
    cluster: ClusterSpec, config: ParallelConfig, placement: Placement
) -> tuple[int, ...]:
    """Memory of a device of each pipeline rank, bytes."""
    kinds = kinds_of_ranks(cluster, config, placement)
    return tuple(group.device.memory_bytes for group in kinds)
