"""Which ranks form which group: the two meshes of a layout as plain numbers.

With axes (pp, dp_replicate, dp_shard, cp, tp) of sizes (P, R, S, C, T), the logical number of a
coordinate is row-major, `(((p*R + r)*S + s)*C + c)*T + t`, and its rank is
`placement.ranks[number]`. The expert coordinate (edp, ep, etp) of a rank is row-major over the
ranks of its pipeline rank, numbered without the pp axis. Groups are listed in coordinate order,
which is the order their rings go round.
"""

import functools
from itertools import product
from typing import TypeVar

from planner.config import EXPERT_ORDER, Axis, ExpertAxis, ParallelConfig, Placement

DATA_AXES: tuple[Axis, ...] = ("dp_replicate", "dp_shard", "cp")
"""Ranks along these hold equal weights (or shards of them) and see other tokens."""
AnyAxis = Axis | ExpertAxis
A = TypeVar("A", bound=str)


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
        self._ranks = placement.ranks or tuple(range(self.num_ranks))
        self._numbers = {rank: number for number, rank in enumerate(self._ranks)}

    def coordinate(self, rank: int) -> dict[Axis, int]:
        """Place of a rank on the attention mesh."""
        return _unravel(self._numbers[rank], self.sizes)

    def rank(self, coordinate: dict[Axis, int]) -> int:
        """Rank at a place of the attention mesh."""
        return self._ranks[_ravel(coordinate, self.sizes)]

    def expert_coordinate(self, rank: int) -> dict[ExpertAxis, int]:
        """Place of a rank on the expert mesh of its pipeline rank."""
        return _unravel(self._inner(rank), self.expert_sizes)

    def _inner(self, rank: int) -> int:
        """Number of a rank among those of its pipeline rank."""
        return _ravel(self.coordinate(rank) | {"pp": 0}, self.sizes)

    @functools.cached_property
    def _of_stage(self) -> dict[int, list[int]]:
        """Pipeline rank -> its ranks in the order of their inner numbers."""
        found: dict[int, list[int]] = {}
        for rank in self._ranks:
            found.setdefault(self.coordinate(rank)["pp"], []).append(rank)
        return {pp: sorted(ranks, key=self._inner) for pp, ranks in found.items()}

    def group(self, rank: int, *axes: AnyAxis) -> tuple[int, ...]:
        """Ranks that differ from `rank` along `axes` alone, in coordinate order; the axes are all
        of the attention mesh or all of the expert mesh."""
        if set(axes) <= set(EXPERT_ORDER):
            own = self.expert_coordinate(rank)
            members = self._of_stage[self.coordinate(rank)["pp"]]
            places = _varied(own, self.expert_sizes, axes)
            return tuple(members[_ravel(place, self.expert_sizes)] for place in places)
        coordinate = self.coordinate(rank)
        return tuple(self.rank(place) for place in _varied(coordinate, self.sizes, axes))

    def groups(self, *axes: AnyAxis) -> tuple[tuple[int, ...], ...]:
        """All groups along `axes`, each once, in the order of their first members' numbers."""
        return tuple(dict.fromkeys(self.group(rank, *axes) for rank in self._ranks))


def _ravel(coordinate: dict[A, int], sizes: dict[A, int]) -> int:
    number = 0
    for axis, size in sizes.items():
        number = number * size + coordinate[axis]
    return number


def _unravel(number: int, sizes: dict[A, int]) -> dict[A, int]:
    coordinate: dict[A, int] = {}
    for axis in reversed(sizes):
        number, coordinate[axis] = divmod(number, sizes[axis])
    return {axis: coordinate[axis] for axis in sizes}


def _varied(
    own: dict[A, int], sizes: dict[A, int], axes: tuple[AnyAxis, ...]
) -> list[dict[A, int]]:
    """Coordinates that run over `axes` and stay at `own` along the others, row-major."""
    ranges = [range(size) if a in axes else [own[a]] for a, size in sizes.items()]
    return [dict(zip(sizes, place, strict=True)) for place in product(*ranges)]
