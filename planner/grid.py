"""Which ranks form which group: the two meshes of a layout on the ranks that a plan gives them.

With axes (pp, dp_replicate, dp_shard, cp, tp) of sizes (P, R, S, C, T), the logical number of a
coordinate is row-major, `(((p*R + r)*S + s)*C + c)*T + t`, and its rank is
`placement.ranks[number]`. The expert coordinate (edp, ep, etp) of a rank is row-major over the
ranks of its pipeline rank, numbered without the pp axis. Groups are those of `planner.mesh`, listed
in coordinate order, which is the order their rings go round.
"""

from math import prod
from typing import TypeVar

import numpy as np

from planner.config import Axis, ExpertAxis, ParallelConfig, Placement
from planner.mesh import Mesh

DATA_AXES: tuple[Axis, ...] = ("dp_replicate", "dp_shard", "cp")
"""Ranks along these hold equal weights (or shards of them) and see other tokens."""
AnyAxis = Axis | ExpertAxis
A = TypeVar("A", bound=str)
Group = tuple[int, ...]


class Grid:
    """Coordinates and groups of all ranks of a layout."""

    def __init__(self, config: ParallelConfig, placement: Placement) -> None:
        self.sizes: dict[Axis, int] = {
            "pp": config.pp,
            "dp_replicate": config.dp_replicate,
            "dp_shard": config.dp_shard,
            "cp": config.cp,
            "tp": config.tp,
        }
        """Size of each axis, outermost first."""
        self.expert_sizes: dict[ExpertAxis, int] = {
            "edp": config.edp,
            "ep": config.ep,
            "etp": config.etp,
        }
        self.num_ranks = config.num_devices
        self._mesh = Mesh.of(config)
        self._ranks = placement.ranks or tuple(range(self.num_ranks))
        self._numbers = {rank: number for number, rank in enumerate(self._ranks)}
        self._groups: dict[tuple[AnyAxis, ...], dict[int, Group]] = {}

    def coordinate(self, rank: int) -> dict[Axis, int]:
        """Place of a rank on the attention mesh."""
        return _unravel(self._numbers[rank], self.sizes)

    def rank(self, coordinate: dict[Axis, int]) -> int:
        """Rank at a place of the attention mesh."""
        place = tuple(coordinate[axis] for axis in self.sizes)
        return self._ranks[int(np.ravel_multi_index(place, tuple(self.sizes.values())))]

    def expert_coordinate(self, rank: int) -> dict[ExpertAxis, int]:
        """Place of a rank on the expert mesh of its pipeline rank."""
        inner = self._numbers[rank] % prod(self.expert_sizes.values())
        return _unravel(inner, self.expert_sizes)

    def group(self, rank: int, *axes: AnyAxis) -> Group:
        """Ranks that differ from `rank` along `axes` alone, in coordinate order; the axes are all
        of the attention mesh or all of the expert mesh."""
        return self._of_ranks(axes)[rank]

    def groups(self, *axes: AnyAxis) -> tuple[Group, ...]:
        """All groups along `axes`, each once, in the order of their first members' numbers."""
        return tuple(dict.fromkeys(self._of_ranks(axes).values()))

    def _of_ranks(self, axes: tuple[AnyAxis, ...]) -> dict[int, Group]:
        """Rank -> its group, in the order of `groups`."""
        if axes not in self._groups:
            table = np.array(self._ranks)[self._mesh.along(*axes)].tolist()
            self._groups[axes] = {rank: tuple(row) for row in table for rank in row}
        return self._groups[axes]


def _unravel(number: int, sizes: dict[A, int]) -> dict[A, int]:
    coordinate: dict[A, int] = {}
    for axis in reversed(sizes):
        number, coordinate[axis] = divmod(number, sizes[axis])
    return {axis: coordinate[axis] for axis in sizes}
