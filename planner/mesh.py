"""The ranks of a mesh of parallel axes, the groups along each, and which ranks send to which.

Ranks are row-major over the axes, the outermost first. Experts are spread over the ranks of a
pipeline rank as (edp, ep, etp), row-major too (folding, Liu et al. 2025, arXiv:2504.14960). The
order of axes is free: `planner.mapping` takes the user's. `planner.grid` puts the mesh of a plan on
its ranks.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from planner.config import AXIS_ORDER, EXPERT_ORDER, ParallelConfig
from planner.traffic import Traffic
from solvers.mapping_problem import Ints

_PARTS = {"dp": ("dp", "dp_replicate", "dp_shard", "cp"), "shard": ("dp_shard", "cp")}
"""Axes of traffic that run over several of the mesh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Sizes of the axes, outermost first in the order of ranks, and of what the experts' mesh has
    over the same ranks."""

    axes: dict[str, int]
    ep: int = 1
    etp: int = 1

    @classmethod
    def of(cls, config: ParallelConfig) -> "Mesh":
        """Of a plan, in its order."""
        axes = {str(name): int(getattr(config, name)) for name in AXIS_ORDER}
        return cls(axes=axes, ep=config.ep, etp=config.etp)

    @property
    def num_ranks(self) -> int:
        """Of the whole mesh."""
        return prod(self.axes.values())

    def along(self, *axes: str) -> Ints:
        """Groups of ranks that differ along the given axes alone, [groups, ranks]: members in
        coordinate order, groups in that of their first members. The axes are all of the attention
        mesh or all of the experts'; those that the mesh lacks have size 1."""
        names, ranks = list(self.axes), np.arange(self.num_ranks).reshape([*self.axes.values()])
        if axes and set(axes) <= set(EXPERT_ORDER):
            if "pp" in names:
                ranks = np.moveaxis(ranks, names.index("pp"), 0)
            names = ["pp", *EXPERT_ORDER]
            ranks = ranks.reshape(self.axes.get("pp", 1), -1, self.ep, self.etp)
        own = [k for k, name in enumerate(names) if name in axes]
        size = prod(ranks.shape[k] for k in own)
        return np.asarray(np.moveaxis(ranks, own, range(-len(own), 0)).reshape(-1, size))

    def groups(self, axis: str) -> Ints:
        """Ranks of each group along an axis of `Traffic`, as `along`."""
        return self.along(*_PARTS.get(axis, (axis,)))


def hops(axis: Traffic, groups: Ints) -> tuple[Ints, Ints]:
    """(from, to) of all flows of ranks that an axis has at once, by their blocks."""
    if axis.shape == "all_to_all":
        a, b = np.nonzero(~np.eye(groups.shape[1], dtype=np.bool_))
        return groups[:, a].reshape(-1), groups[:, b].reshape(-1)
    next_ = np.roll(groups, -1, axis=1)
    if axis.shape == "chain" and not axis.closed:
        return groups[:, :-1].reshape(-1), next_[:, :-1].reshape(-1)
    return groups.reshape(-1), next_.reshape(-1)
