"""Which links the groups of each axis of a layout use, and which ranks talk to each other."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.config import ParallelConfig, Placement
from planner.mesh import Mesh
from profiler.cluster import NodeGroup

Ranks = NDArray[Any]
_MEMBERS: dict[str, tuple[str, ...]] = {
    "tp": ("tp",),
    "cp": ("cp",),
    "ep": ("ep",),
    "etp": ("etp",),
    "shard": ("dp_shard", "cp"),
    "dp_replicate": ("dp_replicate",),
    "dp": ("dp_replicate", "dp_shard"),
    "pp": ("pp",),
}
"""Name of a group -> axes along which its members differ. shard: those that ZeRO shards over."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reach:
    """The groups of one axis on the machine."""

    axis: str
    groups: Ranks
    """[group, member]: global ranks in coordinate order."""
    nodes: int
    """Most nodes that a group touches."""
    domains: int
    """Most domains of fast links that a group touches; 1: it never leaves the fast link."""

    @property
    def size(self) -> int:
        """Ranks of a group."""
        return int(self.groups.shape[1])


def reach_of(config: ParallelConfig, placement: Placement, group: NodeGroup, axis: str) -> Reach:
    """Groups of `axis` (`tp`, `cp`, `ep`, `etp`, `dp`, `shard`, `dp_replicate`, `pp`)."""
    ranks = np.array(placement.ranks or range(config.num_devices))
    groups = ranks[Mesh.of(config).along(*_MEMBERS[axis])]
    return Reach(
        axis=axis,
        groups=groups,
        nodes=_most(groups // group.devices_per_node),
        domains=_most(groups // group.devices_per_domain),
    )


def _most(places: Ranks) -> int:
    """Most different values in a row."""
    ordered = np.sort(places, axis=1)
    return int(np.max(np.sum(np.diff(ordered, axis=1) != 0, axis=1)) + 1)


def talking_pairs(reach: Reach, config: ParallelConfig) -> Ranks:
    """[pair, 2]: who sends to whom in a step. All-to-alls (`ep`, ulysses) pair all members, other
    collectives the neighbours of their ring, the pipeline its neighbours both ways."""
    groups, size = reach.groups, reach.size
    if size == 1:
        return np.empty((0, 2), dtype=np.int64)
    everyone = reach.axis == "ep" or (reach.axis == "cp" and config.cp_method == "ulysses")
    if everyone:
        first, second = np.nonzero(~np.eye(size, dtype=bool))
    else:
        first = np.arange(size)
        second = (first + 1) % size
    if reach.axis == "pp":
        if config.vpp == 1 or config.schedule in ("zbv", "dualpipev"):
            first, second = first[:-1], second[:-1]  # no stage follows on the first rank again
        first, second = np.concatenate([first, second]), np.concatenate([second, first])
    pairs = np.stack([groups[:, first], groups[:, second]], axis=-1).reshape(-1, 2)
    return np.unique(pairs, axis=0)
