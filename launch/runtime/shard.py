"""ZeRO by FSDP2 (Zhao et al. 2023, arXiv:2304.11277): who keeps which part of a weight, and when.

Every block is sharded over the ranks of dp_shard x cp; the routed experts of a layer, which fewer
ranks hold, over `edp`. The stages of ZeRO differ in what is whole during a step:

    1  weights and gradients; gradients are reduce-scattered once, after the last backward
    2  weights; gradients are reduce-scattered with every micro-batch
    3  neither: weights are gathered for each forward and each backward

and the optimizer always works on the shards. Losses are scaled so that gradients need summing
alone, so FSDP's averaging is turned off. Sums over `dp_replicate` (HSDP) are taken once per step by
`launch.runtime.sync`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    DefaultAllGather,
    DefaultReduceScatter,
)
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.tensor import DTensor, Shard

from launch.runtime.experts import Experts, MoE
from launch.runtime.mesh import Mesh
from launch.runtime.model import Layer, Stage
from launch.runtime.pieces import Chunk, Held, dense_chunks, expert_chunks, narrow
from launch.runtime.record import Recorder
from planner.config import ParallelConfig, ZeroStage
from planner.holdings import part_of
from profiler.model import ModelSpec


class _AllGather(DefaultAllGather):
    """FSDP's gathering of weights, seen by the recorder."""

    def __init__(self, recorder: Recorder, axis: str) -> None:
        self._recorder, self._axis = recorder, axis

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> Any:  # fmt: skip
        wait = self._recorder.all_gather(output_tensor, input_tensor, group, self._axis)
        if async_op:
            raise ValueError("FSDP is not asked for collectives that it waits for itself")
        wait()
        return None


class _ReduceScatter(DefaultReduceScatter):
    """FSDP's sums of gradients, seen by the recorder."""

    def __init__(self, recorder: Recorder, axis: str) -> None:
        self._recorder, self._axis = recorder, axis

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any,
        async_op: bool = False,
    ) -> Any:  # fmt: skip
        if op != dist.ReduceOp.SUM:
            raise RuntimeError(f"gradients are to be summed, not {op}")
        wait = self._recorder.reduce_scatter(output_tensor, input_tensor, group, self._axis)
        if async_op:
            raise ValueError("FSDP is not asked for collectives that it waits for itself")
        wait()
        return None


def _shard_dim(parameter: nn.Parameter, ranks: int) -> int:
    """Dim of an expert stack [slots, a, b] that divides evenly; not the slots, of which another
    rank may have another number."""
    return 1 if parameter.shape[1] % ranks == 0 else 2


def _shards_of(ranks: int) -> Callable[[nn.Parameter], Shard]:
    return lambda parameter: Shard(_shard_dim(parameter, ranks))


def _fully_shard(
    module: nn.Module, mesh: Any, recorder: Recorder, axis: str, zero: ZeroStage,
    policy: MixedPrecisionPolicy, **kwargs: Any,
) -> None:  # fmt: skip
    fully_shard(module, mesh=mesh, reshard_after_forward=zero == 3, mp_policy=policy, **kwargs)
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
    module.set_custom_all_gather(_AllGather(recorder, axis))
    module.set_custom_reduce_scatter(_ReduceScatter(recorder, axis))


def shard_stage(
    stage: Stage, model: ModelSpec, config: ParallelConfig, mesh: Mesh, recorder: Recorder,
    dtype: torch.dtype, *, is_tied: bool,
) -> list[Held]:  # fmt: skip
    """Apply ZeRO to a stage whose parameters exist (on any device), and say what the rank holds.

    `dtype` is that of computation; `is_tied`: another stage, or another block of this one, holds a
    copy of the embedding matrix.
    """
    chunks = dense_chunks(stage, model)
    if config.dp_shard > 1:
        chunks = _apply(stage, chunks, config.zero, mesh, recorder, dtype)
    return [
        expert_held(stage, name, parameter, mesh, sharded=config.dp_shard > 1)
        if ".ffn.experts." in name
        else _dense_held(parameter, chunks[name], config, mesh, is_tied=is_tied)
        for name, parameter in stage.named_parameters()
    ]


def _dense_held(
    parameter: nn.Parameter, chunks: tuple[Chunk, ...], config: ParallelConfig, mesh: Mesh, *,
    is_tied: bool,
) -> Held:  # fmt: skip
    is_sharded = config.dp_shard > 1
    replicated = mesh.size("tp") > 1 and not _is_tp_sharded(parameter, mesh)
    ranks = mesh.size("dp_replicate") if is_sharded else mesh.size("dp")
    ranks *= mesh.size("tp") if replicated else 1
    ranks *= 2 if is_tied and chunks and chunks[0].name == "blocks.0.weight" else 1
    return Held(
        parameter=parameter,
        chunks=chunks,
        is_expert=False,
        holders=(ranks,) * len(chunks),
        is_partial=replicated and not is_sharded,
    )


def _is_tp_sharded(parameter: nn.Parameter, mesh: Mesh) -> bool:
    assert isinstance(parameter, DTensor)
    groups = parameter.device_mesh.get_all_groups()
    return any(
        p.is_shard() and group == mesh.group("tp")
        for p, group in zip(parameter.placements, groups, strict=True)
    )


def expert_held(
    stage: Stage, name: str, parameter: nn.Parameter, mesh: Mesh, *, sharded: bool
) -> Held:
    """What this rank holds of a stack of experts, by where its layer's experts are now; `sharded`:
    ZeRO has sharded the stage."""
    prefix, _, leaf = name.rpartition(".")
    layer = stage.blocks[name.split(".")[1]]
    assert isinstance(layer, Layer)
    assert isinstance(layer.ffn, MoE)
    chunks = expert_chunks(f"{prefix}.", leaf, parameter, layer.ffn)
    size, ranks = list(parameter.shape[1:]), mesh.size("edp")
    if sharded and ranks > 1:
        dim = _shard_dim(parameter, ranks)
        start, length = part_of(parameter.shape[dim], mesh.group("edp").rank(), ranks)
        chunks, size[dim - 1], ranks = narrow(chunks, dim, start, length), length, 1
    everywhere = [e for rank in layer.ffn.place.slots.slots for e in rank]
    return Held(
        parameter=parameter,
        chunks=chunks,
        is_expert=True,
        holders=tuple(ranks * everywhere.count(c.expert) for c in chunks),
        replicated=tuple(sorted(e for e in set(everywhere) if everywhere.count(e) > 1)),
        slot_size=tuple(size),
    )


def _apply(
    stage: Stage, chunks: dict[str, tuple[Chunk, ...]], zero: ZeroStage, mesh: Mesh,
    recorder: Recorder, dtype: torch.dtype,
) -> dict[str, tuple[Chunk, ...]]:  # fmt: skip
    wide = torch.promote_types(dtype, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=wide)
    group = mesh.group("dp_shard_cp")
    flat = mesh.device_mesh["dp_shard_cp"]
    out = dict(chunks)
    before: nn.Module | None = None
    for name, block in stage.blocks.items():
        ignored: set[nn.Parameter] = set()
        experts = getattr(getattr(block, "ffn", None), "experts", None)
        if isinstance(experts, Experts):
            if mesh.size("edp") > 1 and experts.ids:
                _shard_experts(experts, zero, mesh, recorder, policy)
            else:
                ignored = set(experts.parameters())
        if isinstance(block, nn.Embedding):
            block.register_forward_hook(_own_storage)
        own = [n for n, p in block.named_parameters() if ".experts." not in f".{n}"]
        for leaf in own:
            full = f"blocks.{name}.{leaf}"
            start, length = part_of(chunks[full][0].size[0], group.rank(), group.size())
            out[full] = narrow(chunks[full], 0, start, length)
        _fully_shard(block, flat, recorder, "fsdp", zero, policy, ignored_params=ignored or None)
        _gather_alike(block, before)
        before = block
    everywhere = {p for p in stage.parameters() if not isinstance(p, DTensor)}
    _fully_shard(stage, flat, recorder, "fsdp", zero, policy, ignored_params=everywhere or None)
    return out


def _gather_alike(block: nn.Module, before: nn.Module | None) -> None:
    """Gather for backward in the same order on ranks with and without experts.

    FSDP fetches ahead what ran before: on most ranks the experts' backward would fetch the weights
    of the block `before`, on one that has no experts the layer's own, with an exchange of tokens in
    between, and the two would wait for each other. Here every rank's layer fetches both.
    """
    moe = block.ffn if isinstance(block, Layer) else None
    if not isinstance(moe, MoE) or all(moe.place.slots.slots):
        return
    ahead: list[FSDPModule] = []
    for module in (moe.experts, before):
        if isinstance(module, FSDPModule):
            ahead.append(module)
    assert isinstance(block, FSDPModule)
    block.set_modules_to_backward_prefetch(ahead or [block])  # itself: nothing
    if isinstance(moe.experts, FSDPModule):
        moe.experts.set_modules_to_backward_prefetch([moe.experts])


def _own_storage(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    """FSDP hooks on outputs, which must not be views; a tensor-parallel embedding's output is."""
    return output.clone() if output._is_view() else output


def _shard_experts(
    experts: Experts, zero: ZeroStage, mesh: Mesh, recorder: Recorder, policy: MixedPrecisionPolicy
) -> None:
    ranks = mesh.size("edp")
    _fully_shard(
        experts, mesh.expert_mesh(), recorder, "edp", zero, policy,
        shard_placement_fn=_shards_of(ranks),
    )  # fmt: skip


def resize_experts(experts: Experts, ranks: int) -> None:
    """Give stacks that ZeRO shards over `ranks` as many slots as the layer has now, in zeros;
    between two steps.

    Slots are not cut across: a slot's shard is what it was, and only their number is another. FSDP
    knows sizes from the start, so each of its stacks is made anew; hooks, order and groups stay.
    """
    assert isinstance(experts, FSDPModule)
    (group,) = experts._get_fsdp_state()._fsdp_param_groups
    if not group.is_sharded:
        raise RuntimeError("experts cannot be resized in the middle of a step")
    for number, old in enumerate(group.fsdp_params):
        size = (len(experts.ids), *old._orig_size[1:])
        whole = nn.Parameter(torch.zeros(size, dtype=old.sharded_param.dtype, device=group.device))
        old._post_load_hook_handle.remove()
        new = FSDPParam(
            whole, old._module_info, group.mesh_info, group.post_forward_mesh_info, group.device,
            _shards_of(ranks), group.mp_policy, group.offload_policy,
        )  # fmt: skip
        new._param_fqn = old._param_fqn
        new.init_dtype_attrs(group.mp_policy)
        group.fsdp_params[number] = new


def before_backward(stage: nn.Module, zero: ZeroStage, *, last: bool) -> None:
    """What FSDP does in the coming backward; `last`: it is the stage's last one of the step."""
    if isinstance(stage, FSDPModule):
        stage.set_is_last_backward(last)
        stage.set_requires_gradient_sync(last or zero >= 2)
        stage.set_reshard_after_backward(last or zero == 3)
