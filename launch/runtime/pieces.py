"""What a rank holds of the model, in terms that do not depend on the layout.

A parameter of a rank is cut into chunks: boxes of canonical tensors, which have the names and full
shapes of the model on one process (each expert a tensor of its own). First values, checkpoints and
weights from elsewhere are written and read chunk by chunk, so that a state saved in one layout is
read in any other.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from launch.runtime.experts import MoE
from launch.runtime.model import Stage
from profiler.model import ModelSpec

INIT_STD = 0.02
"""Standard deviation of every matrix and bias at the start (GPT-2, Radford et al. 2019)."""
Index = tuple[int | slice, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A box of one canonical tensor, and where it lies in the rank's local tensor."""

    name: str
    shape: tuple[int, ...]
    """Of the canonical tensor."""
    offset: tuple[int, ...]
    size: tuple[int, ...]
    where: Index
    """The box in the local tensor."""

    @property
    def expert(self) -> int:
        """Id of the expert that an expert's chunk belongs to."""
        return int(self.name.split(".")[-2])

    def of(self, whole: Tensor) -> Tensor:
        """The box of a whole canonical tensor."""
        box = tuple(slice(o, o + s) for o, s in zip(self.offset, self.size, strict=True))
        return whole[box]


@dataclasses.dataclass(slots=True, kw_only=True)
class Held:
    """One parameter of this rank; `parameter` lasts, whatever the module shows during a step."""

    parameter: nn.Parameter
    chunks: tuple[Chunk, ...]
    is_expert: bool
    holders: tuple[int, ...]
    """Ranks, per chunk, that hold an equal copy."""
    is_partial: bool = False
    """Its gradient on this rank is a part of a sum over the tensor-parallel group."""
    replicated: tuple[int, ...] = ()
    """Experts of the layer that have several holders, here or not."""
    slot_size: tuple[int, ...] = ()
    """Of one expert's part on each rank, whether this one has experts or not."""

    @property
    def local(self) -> Tensor:
        """This rank's plain tensor, sharing storage."""
        return local_tensor(self.parameter)


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's plain tensor, sharing storage."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def dense_chunks(stage: Stage, model: ModelSpec) -> dict[str, tuple[Chunk, ...]]:
    """Parameter name -> its chunk, before data parallelism shards it; routed experts left out."""
    tied = f"blocks.{model.num_layers + 1}.output.weight" if model.tie_embeddings else None
    return {
        name: (_dense_chunk("blocks.0.weight" if name == tied else name, parameter),)
        for name, parameter in stage.named_parameters()
        if ".ffn.experts." not in name
    }


def _dense_chunk(name: str, parameter: nn.Parameter) -> Chunk:
    shape, size = tuple(parameter.shape), tuple(local_tensor(parameter).shape)
    offset = [0] * len(shape)
    if isinstance(parameter, DTensor):
        for placement, rank in zip(
            parameter.placements, parameter.device_mesh.get_coordinate() or (), strict=True
        ):
            if isinstance(placement, Shard):
                offset[placement.dim] = rank * size[placement.dim]
    where = tuple(slice(0, s) for s in size)
    return Chunk(name=name, shape=shape, offset=tuple(offset), size=size, where=where)


def expert_chunks(prefix: str, leaf: str, parameter: nn.Parameter, layer: MoE) -> tuple[Chunk, ...]:
    """Chunks of a stack of experts, one per slot, before data parallelism shards it."""
    size = tuple(parameter.shape[1:])
    place, split_dim = layer.place, 1 if leaf == "down" else 0
    shape, offset = list(size), [0, 0]
    shape[split_dim] *= place.etp_size
    offset[split_dim] = place.etp_rank * size[split_dim]
    return tuple(
        Chunk(
            name=f"{prefix}{expert}.{leaf}", shape=tuple(shape), offset=tuple(offset), size=size,
            where=(slot, slice(0, size[0]), slice(0, size[1])),
        )
        for slot, expert in enumerate(place.own)
    )  # fmt: skip


def narrow(chunks: tuple[Chunk, ...], dim: int, start: int, length: int) -> tuple[Chunk, ...]:
    """Chunks of a local tensor of which [start, start + length) along `dim` is left."""
    out = []
    for chunk in chunks:
        at = chunk.where[dim]
        if isinstance(at, int):
            if start <= at < start + length:
                where = (*chunk.where[:dim], at - start, *chunk.where[dim + 1 :])
                out.append(dataclasses.replace(chunk, where=where))
            continue
        own = dim - sum(isinstance(w, int) for w in chunk.where[:dim])
        size = (*chunk.size[:own], length, *chunk.size[own + 1 :])
        offset = (*chunk.offset[:own], chunk.offset[own] + start, *chunk.offset[own + 1 :])
        where = (*chunk.where[:dim], slice(0, length), *chunk.where[dim + 1 :])
        if length:
            out.append(dataclasses.replace(chunk, size=size, offset=offset, where=where))
    return tuple(out)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def first_value(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """First value of a canonical tensor by (seed, name): ones for norms, else normal with
    `INIT_STD`, drawn in float32 on the CPU, so that every layout starts from equal weights."""
    if "norm." in name:
        return torch.ones(shape)
    return torch.empty(shape).normal_(std=INIT_STD, generator=_generator(seed, name))


@torch.no_grad()
def fill(
    held: list[Held], local: Sequence[Tensor], whole: Callable[[str, tuple[int, ...]], Tensor]
) -> None:
    """Set the local tensors of what is held from `whole(name, shape)`, the canonical tensors."""
    for one, tensor in zip(held, local, strict=True):
        for chunk in one.chunks:
            tensor[chunk.where].copy_(chunk.of(whole(chunk.name, chunk.shape)))
