"""Where a rank sits: its coordinate, and the process group of each axis.

`rank = row-major(coordinate)` over `placement.axis_order`, so that ranks ascend along every axis;
PyTorch sorts the ranks of a new group, and with any other numbering the rank inside a group would
silently differ from the coordinate. `build_mesh` therefore checks it at start-up.
"""

import dataclasses

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from planner.config import Axis, ParallelConfig, Placement
from profiler.errors import UserError


def axis_sizes(config: ParallelConfig, placement: Placement) -> dict[Axis, int]:
    """Size of each axis, outermost first."""
    sizes: dict[Axis, int] = {"pp": config.pp, "dp_replicate": config.dp_replicate, "tp": config.tp}
    return {axis: sizes[axis] for axis in placement.axis_order}


def coordinate_of(rank: int, sizes: dict[Axis, int]) -> dict[Axis, int]:
    """Coordinate of a rank, row-major."""
    coordinate: dict[Axis, int] = {}
    for axis in reversed(sizes):
        rank, coordinate[axis] = divmod(rank, sizes[axis])
    return {axis: coordinate[axis] for axis in sizes}


def rank_of(coordinate: dict[Axis, int], sizes: dict[Axis, int]) -> int:
    """Rank of a coordinate, row-major."""
    rank = 0
    for axis, size in sizes.items():
        rank = rank * size + coordinate[axis]
    return rank


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """This rank's place among all ranks."""

    rank: int
    sizes: dict[Axis, int]
    coordinate: dict[Axis, int]
    device_mesh: DeviceMesh
    tied_group: dist.ProcessGroup | None
    """First and last stage of this rank's (dp, tp), where it is one of the two and they differ."""

    def group(self, axis: Axis) -> dist.ProcessGroup:
        """Ranks that differ from this one along `axis` alone."""
        return self.device_mesh.get_group(axis)

    def axis_of_group(self) -> dict[str, str]:
        """Name of each axis's process group -> axis."""
        return {self.group(axis).group_name: axis for axis in self.sizes}


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
    sizes = axis_sizes(config, placement)
    device_mesh = init_device_mesh(
        device_type, tuple(sizes.values()), mesh_dim_names=tuple(str(axis) for axis in sizes)
    )
    coordinate = coordinate_of(rank, sizes)
    for axis in sizes:
        group_rank = dist.get_rank(device_mesh.get_group(axis))
        if group_rank != coordinate[axis]:
            raise RuntimeError(f"rank {rank} is {group_rank} along {axis}, not {coordinate[axis]}")
    return Mesh(
        rank=rank, sizes=sizes, coordinate=coordinate, device_mesh=device_mesh,
        tied_group=_tied_group(rank, sizes),
    )  # fmt: skip


def _tied_group(rank: int, sizes: dict[Axis, int]) -> dist.ProcessGroup | None:
    """Groups {first stage, last stage}, made by all ranks in the same order."""
    mine = None
    if sizes["pp"] == 1:
        return None
    for first in range(dist.get_world_size()):
        coordinate = coordinate_of(first, sizes)
        if coordinate["pp"] == 0:
            ranks = [first, rank_of(coordinate | {"pp": sizes["pp"] - 1}, sizes)]
            group = dist.new_group(ranks)
            mine = group if rank in ranks else mine
    return mine
