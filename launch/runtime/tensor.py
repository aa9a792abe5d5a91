"""Tensor, sequence and vocabulary parallelism of the blocks, from DTensor's parallel styles.

Activations between blocks are this rank's part of the sequence, [b, s/tp, h]. A layer gathers the
sequence before attention and before the feed-forward network and reduce-scatters behind each
(Korthikanti et al. 2022, "Reducing Activation Recomputation"); columns of q, k, v, gate and up,
rows of o and down are sharded (Shoeybi et al. 2019, Megatron-LM). The embedding is sharded by
rows of the vocabulary, the output matrix by its columns, and the loss is taken on the sharded
logits (`loss_parallel`).

Norm and router weights are replicated and each rank's gradient of them is a part of a sum
(`Partial`), which `launch.runtime.sync` takes once per step instead of once per norm and
micro-batch.
"""

import contextlib
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

from profiler.model import BlockKind


class ReplicatedWeight(ParallelStyle):
    """The module's parameters become replicated DTensors; it computes on plain local tensors.

    `SequenceParallel` does the same through DTensor operators, at several dispatches per norm.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            replicated = distribute_tensor(
                parameter, device_mesh, [Replicate()], src_data_rank=None
            )
            module.register_parameter(name, nn.Parameter(replicated))
        return module


def _layer_plan(kind: BlockKind) -> dict[str, ParallelStyle]:
    sequence, whole = Shard(1), Replicate()
    replicated = ("attention_norm", "attention.q_norm", "attention.k_norm", "ffn_norm")
    plan: dict[str, ParallelStyle] = {name: ReplicatedWeight() for name in replicated}
    network = "ffn"
    if kind == "moe":
        network = "ffn.shared"  # routed experts take the tokens as they are spread
        plan |= {"ffn.router": ReplicatedWeight(), "ffn.shared_gate": ReplicatedWeight()}
    for name in ("attention", network):
        plan[name] = PrepareModuleInput(
            input_layouts=(sequence,), desired_input_layouts=(whole,), use_local_output=False
        )
    columns = ("attention.q", "attention.k", "attention.v", f"{network}.gate", f"{network}.up")
    plan |= {name: ColwiseParallel() for name in columns}
    rows = ("attention.o", f"{network}.down")
    return plan | {name: RowwiseParallel(output_layouts=sequence) for name in rows}


def shard_block(block: nn.Module, kind: BlockKind, mesh_1d: DeviceMesh) -> nn.Module:
    """Shard a block of `build_block` over a one-dimensional mesh, in place.

    embed: token ids [b, s] -> [b, s/tp, h]; dense, moe: [b, s/tp, h] -> [b, s/tp, h]; head:
    [b, s/tp, h] -> logits as a DTensor [b, s, v] sharded over v.
    """
    if kind == "embed":
        style = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        return parallelize_module(block, mesh_1d, style)
    if kind == "head":
        output = ColwiseParallel(
            input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False
        )
        return parallelize_module(block, mesh_1d, {"norm": ReplicatedWeight(), "output": output})
    present = {name for name, _ in block.named_modules()}
    plan = {name: style for name, style in _layer_plan(kind).items() if name in present}
    return parallelize_module(block, mesh_1d, plan)


def loss_context(tp: int) -> AbstractContextManager[None]:
    """What forward and backward of the loss run under: `loss_parallel` where logits are sharded."""
    return loss_parallel() if tp > 1 else contextlib.nullcontext()


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of targets [b, s]; logits [b, s, v] are plain or sharded over v."""
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return loss.to_local() if isinstance(loss, DTensor) else loss
