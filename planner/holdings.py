"""Who holds which box of which tensor under a layout: what the reference runtime builds.

A box is [start, stop) along each dim of a canonical tensor (`profiler.tensors`). A rank of the
pipeline rank that has a tensor's block holds

    the tensor                      cut along `split_dim` by tp (an expert's matrix: by etp)
    its part of the rows of that    where dp_shard > 1: one of dp_shard * cp, as FSDP2 deals out
                                    rows; of an expert, one of edp along the first dim that divides
    an expert                       where its rank of ep has a slot for it

Weight (the float32 master, in mixed precision) and both moments of AdamW are kept in these boxes
whatever the ZeRO stage (`launch.runtime.shard`), which says what a step gathers of them. A tied
embedding is held at both ends of the pipeline. The boxes of a tensor under one layout do not
overlap, and together they are the tensor; ranks with the same box hold equal copies.
"""

from planner.config import ExpertSlots, ParallelConfig, Placement
from planner.grid import Grid
from planner.pipeline import ends_of_chain, owners_of
from profiler.model import ModelSpec
from profiler.tensors import Tensor

Box = tuple[tuple[int, int], ...]
Boxes = dict[Box, tuple[int, ...]]
"""Box -> devices of the cluster that hold it, ascending."""
Kind = tuple[object, ...]
_EMBEDDING = "blocks.0.weight"


def part_of(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """Start and length of a rank's part of `size` rows, as `torch.chunk` deals them out."""
    each = -(-size // ranks)
    start = min(rank * each, size)
    return start, min(each, size - start)


def contiguous_slots(num_experts: int, ep: int) -> ExpertSlots:
    """Consecutive experts, equally many per rank."""
    per_rank = num_experts // ep
    ranks = range(ep)
    return ExpertSlots(slots=tuple(tuple(range(r * per_rank, (r + 1) * per_rank)) for r in ranks))


class Holdings:
    """The boxes of every tensor of a model under one layout."""

    def __init__(self, model: ModelSpec, config: ParallelConfig, placement: Placement) -> None:
        self._model, self._config, self._placement = model, config, placement
        self._grid = Grid(config, placement)
        owners = owners_of(config, placement)
        self._owner = {
            block: owner
            for owner, (first, end) in zip(owners, placement.stages, strict=True)
            for block in range(first, end)
        }
        self._ends = tuple(sorted(set(ends_of_chain(config, placement))))
        self._ranks: dict[int, list[int]] = {}
        for rank in range(config.num_devices):
            self._ranks.setdefault(self._grid.coordinate(rank)["pp"], []).append(rank)
        even = contiguous_slots(model.num_experts, config.ep)
        moe = [block for block, kind in enumerate(model.blocks) if kind == "moe"]
        placed = placement.experts or (even,) * len(moe)
        self._slots = dict(zip(moe, placed, strict=True))
        self._made: dict[Kind, Boxes] = {}

    @property
    def devices(self) -> tuple[int, ...]:
        """Device of the cluster, in its order, of each rank."""
        given, config = self._placement.devices, self._config
        if not given:
            return tuple(range(config.num_devices))
        ranks = self._placement.ranks or range(config.num_devices)
        of_rank = dict(zip(ranks, given, strict=True))
        return tuple(of_rank[rank] for rank in range(config.num_devices))

    def kind(self, tensor: Tensor) -> Kind:
        """Tensors of one shape and kind have the same boxes on the same devices."""
        return (tensor.split_dim, tensor.is_buffer, self._pipeline_ranks(tensor), self._ep(tensor))

    def of(self, tensor: Tensor) -> Boxes:
        """Who holds what of a tensor."""
        key = (tensor.shape, *self.kind(tensor))
        if key not in self._made:
            self._made[key] = self._boxes(tensor)
        return self._made[key]

    def _pipeline_ranks(self, tensor: Tensor) -> tuple[int, ...]:
        if tensor.name == _EMBEDDING and self._model.tie_embeddings:
            return self._ends
        return (self._owner[tensor.block],)

    def _ep(self, tensor: Tensor) -> tuple[int, ...] | None:
        """Ranks of ep that hold an expert; None where the tensor is of none."""
        if tensor.expert is None:
            return None
        slots = self._slots[tensor.block].slots
        return tuple(rank for rank, held in enumerate(slots) if tensor.expert in held)

    def _boxes(self, tensor: Tensor) -> Boxes:
        devices, holders = self.devices, self._ep(tensor)
        found: dict[Box, list[int]] = {}
        for pp in self._pipeline_ranks(tensor):
            for rank in self._ranks[pp]:
                box = self._dense(tensor, rank) if holders is None else self._expert(tensor, rank)
                if box is not None and all(stop > start for start, stop in box):
                    found.setdefault(box, []).append(devices[rank])
        return {box: tuple(sorted(own)) for box, own in found.items()}

    def _dense(self, tensor: Tensor, rank: int) -> Box:
        config, place = self._config, self._grid.coordinate(rank)
        box = _whole(tensor)
        if tensor.split_dim is not None:
            box = _cut(box, tensor.split_dim, place["tp"], config.tp)
        if config.dp_shard > 1 and not tensor.is_buffer:
            shard = place["dp_shard"] * config.cp + place["cp"]
            box = _cut(box, 0, shard, config.dp_shard * config.cp)
        return box

    def _expert(self, tensor: Tensor, rank: int) -> Box | None:
        config, place = self._config, self._grid.expert_coordinate(rank)
        if place["ep"] not in (self._ep(tensor) or ()):
            return None
        box = _whole(tensor)
        if tensor.split_dim is not None:
            box = _cut(box, tensor.split_dim, place["etp"], config.etp)
        if config.dp_shard > 1 and config.edp > 1:
            rows = box[0][1] - box[0][0]
            dim = 0 if rows % config.edp == 0 or len(box) == 1 else 1
            box = _cut(box, dim, place["edp"], config.edp)
        return box


def _whole(tensor: Tensor) -> Box:
    return tuple((0, size) for size in tensor.shape)


def _cut(box: Box, dim: int, rank: int, ranks: int) -> Box:
    """A rank's part of a box along a dim."""
    low, high = box[dim]
    start, length = part_of(high - low, rank, ranks)
    return (*box[:dim], (low + start, low + start + length), *box[dim + 1 :])
