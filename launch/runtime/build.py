"""A rank's stages: built without storage, sharded, then given storage."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from launch.runtime.context import ContextAttention, sequence_index
from launch.runtime.experts import ExpertPlace, Experts, MoE
from launch.runtime.mesh import Mesh
from launch.runtime.model import Attention, Context, Stage
from launch.runtime.pieces import Held
from launch.runtime.record import Recorder
from launch.runtime.shard import shard_stage
from launch.runtime.tensor import shard_block, token_loss
from planner.config import ParallelConfig, Placement
from planner.holdings import contiguous_slots
from profiler.job import JobSpec
from profiler.model import ModelSpec


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """Stages of a rank by their index, and all parameters it holds."""

    stages: dict[int, Stage]
    held: list[Held]


def build_stages(
    model: ModelSpec, job: JobSpec, config: ParallelConfig, placement: Placement, mesh: Mesh,
    recorder: Recorder, *, device: torch.device, dtype: torch.dtype,
) -> Built:  # fmt: skip
    """This rank's stages, sharded, with values still to be set (`pieces.fill`).

    The loss is scaled by 1 / (micro-batches * replicas * cp), so that gradients need summing alone.
    """
    parts = config.num_microbatches(job) * config.num_replicas * config.cp
    context = _context(job, config, mesh, recorder, device)
    stages: dict[int, Stage] = {}
    held: list[Held] = []
    is_sharded = config.dp_shard > 1
    for index in mesh.stages:
        stage = _stage(model, config, placement, index, 1 / parts)
        if config.tp > 1:
            for name, kind in stage.kinds.items():
                shard_block(stage.blocks[name], kind, mesh.device_mesh["tp"])
        for moe in (m for m in stage.modules() if isinstance(m, MoE)):
            moe.move(_expert_place(moe, stage, model, config, placement, mesh, recorder))
        for attention in (m for m in stage.modules() if isinstance(m, Attention)):
            attention.context = context
        # FSDP keeps float32 shards and gathers them in `dtype`; the rest computes as it is kept.
        wide = torch.promote_types(dtype, torch.float32)
        stage.to(wide if is_sharded else dtype)
        if mesh.size("edp") == 1:
            for experts in (m for m in stage.modules() if isinstance(m, Experts)):
                experts.to(dtype)
        _materialise(stage, device)
        is_tied = model.tie_embeddings and (config.pp > 1 or is_sharded)
        if model.tie_embeddings and not is_tied:
            stage.tie()
        held += shard_stage(stage, model, config, mesh, recorder, dtype, is_tied=is_tied)
        stages[index] = stage
    return Built(stages, held)


def _stage(
    model: ModelSpec, config: ParallelConfig, placement: Placement, index: int, scale: float
) -> Stage:
    first, end = placement.stages[index]
    again = tuple(
        placement.recompute_of(block - 1, config) if 0 < block <= model.num_layers else "none"
        for block in range(first, end)
    )

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return token_loss(logits, targets) * scale

    holds_head = end == len(model.blocks)
    with torch.device("meta"):
        return Stage(model, first, end, recompute=again, loss=loss if holds_head else None)


def _context(
    job: JobSpec, config: ParallelConfig, mesh: Mesh, recorder: Recorder, device: torch.device
) -> Context | None:
    if config.cp == 1:
        return None
    rank = mesh.coordinate["cp"]
    positions = sequence_index(job.seq_len, config.cp, rank, config.cp_method)
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = ContextAttention(
        config.cp_method, mesh.group("cp"), recorder
    )
    return Context(positions.to(device), job.seq_len, attend)


def _expert_place(
    moe: MoE, stage: Stage, model: ModelSpec, config: ParallelConfig, placement: Placement,
    mesh: Mesh, recorder: Recorder,
) -> ExpertPlace:  # fmt: skip
    block = next(int(n) for n, b in stage.blocks.items() if getattr(b, "ffn", None) is moe)
    layer = block - 1 - model.num_dense_layers
    slots = (
        placement.experts[layer]
        if placement.experts
        else contiguous_slots(model.num_experts, mesh.size("ep"))
    )
    return ExpertPlace(
        slots=slots,
        ep_rank=mesh.expert_coordinate["ep"],
        etp_rank=mesh.expert_coordinate["etp"],
        ep=mesh.group("ep") if mesh.size("ep") > 1 else None,
        etp=mesh.group("etp") if mesh.size("etp") > 1 else None,
        overlap=config.ep_overlap,
        recorder=recorder,
    )


def _materialise(stage: nn.Module, device: torch.device) -> None:
    """Storage for parameters, and zeros for buffers, which are float32."""
    names = [(m, n) for m in stage.modules() for n, b in m.named_buffers(recurse=False)]
    stage.to_empty(device=device)
    for module, name in names:
        shape = module.get_buffer(name).shape
        module.register_buffer(name, torch.zeros(shape, device=device))
