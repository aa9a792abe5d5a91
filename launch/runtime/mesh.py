"""Where a rank sits: its coordinates, and the process group of each axis.

Groups hold their ranks in coordinate order, whatever rank number the plan maps a coordinate to:
PyTorch sorts the ranks of a new group by default, and the rank inside a group would then silently
differ from the coordinate. `build_mesh` therefore asks for unsorted groups and checks each.

Attention and dense layers see (pp, dp_replicate, dp_shard x cp, tp) as a DeviceMesh, in which
FSDP shards over the third axis; experts see (edp, ep, etp) over the same ranks.
"""

import dataclasses
import datetime

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from planner.config import Axis, ExpertAxis, ParallelConfig, Placement
from planner.grid import DATA_AXES, AnyAxis, Grid
from planner.pipeline import ends_of_chain, owners_of
from profiler.errors import UserError

TIMEOUT = datetime.timedelta(minutes=10)
"""After which a collective that not every rank entered is an error."""
MESH_AXES: dict[str, tuple[AnyAxis, ...]] = {
    "pp": ("pp",),
    "dp_replicate": ("dp_replicate",),
    "dp_shard_cp": ("dp_shard", "cp"),
    "tp": ("tp",),
}
"""Axes of the DeviceMesh, outermost first."""
GROUP_AXES: dict[str, tuple[AnyAxis, ...]] = MESH_AXES | {
    "cp": ("cp",),
    "dp": DATA_AXES,
    "edp": ("edp",),
    "ep": ("ep",),
    "etp": ("etp",),
}
"""Name of a group -> the axes along which its members differ."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """This rank's place among all ranks."""

    rank: int
    grid: Grid
    coordinate: dict[Axis, int]
    expert_coordinate: dict[ExpertAxis, int]
    device_mesh: DeviceMesh
    stages: tuple[int, ...]
    """Virtual stages of this rank, in the order of the pipeline."""
    groups: dict[str, dist.ProcessGroup]
    """By the names of `GROUP_AXES`; groups of equal ranks are one group."""
    tied_group: dist.ProcessGroup | None
    """Ranks that hold embedding and head of this rank's share, where they are two and this is one
    of them."""

    def group(self, name: str) -> dist.ProcessGroup:
        """Group by name."""
        return self.groups[name]

    def size(self, name: str) -> int:
        """Members of a group."""
        return self.groups[name].size()

    def axis_of_group(self) -> dict[str, str]:
        """Name of a process group -> axis, for collectives that name no axis themselves."""
        return {self.groups["tp"].group_name: "tp"}

    def expert_mesh(self) -> DeviceMesh:
        """The `edp` axis as a DeviceMesh."""
        kind = self.device_mesh.device_type
        return DeviceMesh.from_group(self.groups["edp"], kind, mesh_dim_names=("edp",))


class _Groups:
    """Makes groups on demand: of the same ranks only once, and only among their members."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], dist.ProcessGroup] = {}

    def of(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
        """Group whose members are `ranks` in this order; this rank is one of them."""
        if ranks not in self._made:
            group = dist.new_group(
                list(ranks), timeout=TIMEOUT, sort_ranks=False, use_local_synchronization=True
            )
            if tuple(dist.get_process_group_ranks(group)) != ranks:
                raise RuntimeError(f"group {ranks} was made in another order")
            self._made[ranks] = group
        return self._made[ranks]


def build_mesh(config: ParallelConfig, placement: Placement, device_type: str) -> Mesh:
    """Groups of all axes; every rank of the initialised world must call it.

    Raises `UserError` where the world has another size than the layout.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    if world != config.num_devices:
        raise UserError(
            f"the plan needs {config.num_devices} processes, but {world} were started",
            hint="start it with `meshwright launch`",
        )
    grid = Grid(config, placement)
    make = _Groups()
    # All ranks go through the axes in the same order, so that members always meet.
    groups = {name: make.of(grid.group(rank, *axes)) for name, axes in GROUP_AXES.items()}
    owners = owners_of(config, placement)
    coordinate = grid.coordinate(rank)
    return Mesh(
        rank=rank,
        grid=grid,
        coordinate=coordinate,
        expert_coordinate=grid.expert_coordinate(rank),
        device_mesh=_device_mesh(grid, groups, device_type),
        stages=tuple(s for s, owner in enumerate(owners) if owner == coordinate["pp"]),
        groups=groups,
        tied_group=_tied_group(grid, rank, ends_of_chain(config, placement), make),
    )


def _device_mesh(grid: Grid, groups: dict[str, dist.ProcessGroup], device_type: str) -> DeviceMesh:
    ranks = grid.group(dist.get_rank(), *grid.sizes)
    return DeviceMesh.from_group(
        [groups[name] for name in MESH_AXES],
        device_type,
        mesh=torch.tensor(ranks).view([groups[name].size() for name in MESH_AXES]),
        mesh_dim_names=tuple(MESH_AXES),
    )


def _tied_group(
    grid: Grid, rank: int, ends: tuple[int, int], make: _Groups
) -> dist.ProcessGroup | None:
    """The pair that holds the chain's first and last block for this rank's (data, tp)."""
    first, last = ends
    coordinate = grid.coordinate(rank)
    if first == last or coordinate["pp"] not in ends:
        return None
    return make.of(tuple(grid.rank(coordinate | {"pp": pp}) for pp in ends))
