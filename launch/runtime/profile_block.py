"""The blocks of the runtime, set up for `profiler.measure`: the same modules, sharding, loss and
optimizer.

What is timed is what a training step runs: the recorder is active, and its waits are the part of a
block that is blocked in collectives.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh

from launch.runtime.experts import ExpertPlace, Experts, MoE
from launch.runtime.model import Layer, build_block
from launch.runtime.pieces import INIT_STD, local_tensor
from launch.runtime.record import Recorder
from launch.runtime.sync import GradientSync, Groups, flat, in_buckets, plain_held, take_grad
from launch.runtime.tensor import loss_context, shard_block, token_loss
from planner.holdings import contiguous_slots
from profiler.measure.blocks import BlockSetup
from profiler.measure.cases import BlockCase, ProfileInputs
from profiler.measure.links import leader_decides, mean_over
from profiler.model import ModelSpec

NUM_COPIES = 3
"""Consecutive layers of a chain: enough that the first one's weights have left the inner caches."""
LEARNING_RATE = 1e-6
"""So small that the weights stay what they are."""


def block_setup(
    case: BlockCase, inputs: ProfileInputs, group: dist.ProcessGroup | None, device: torch.device
) -> BlockSetup:
    """Setup of one case for this rank of `group`, its tensor-parallel group; None where it is 1."""
    model, kind, tp = inputs.model, case.block, case.tp
    mesh = None
    if group is not None:
        mesh = DeviceMesh.from_group(group, device.type, mesh_dim_names=("tp",))
    waits = _Waits()
    targets = _token_ids(case.micro_batch, inputs, device)

    def build() -> nn.Module:
        rows = case.micro_batch * inputs.seq_len * model.num_experts_per_token
        block = _EvenExperts(model, rows) if kind == "experts" else build_block(kind, model)
        if isinstance(block, Layer) and isinstance(block.ffn, MoE) and group is not None:
            block.ffn.move(_split_experts(model, group, waits.recorder))
        block = block.to(device)
        generator = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            for parameter in block.parameters():
                if parameter.dim() > 1:  # norms stay at one
                    parameter.normal_(std=INIT_STD, generator=generator)
        if mesh is None or kind == "experts":
            return block
        return shard_block(block, kind, mesh)

    def forward(block: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = block(x)
        return token_loss(y, targets) if kind == "head" else y

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with waits.recorder.active(), loss_context(tp):
            yield

    return BlockSetup(
        build=build,
        make_input=_input_maker(case, inputs, device),
        forward=forward,
        make_update=_update_maker(group, waits.recorder),
        make_bucket=_bucket_maker(),
        wait=_wait,
        context=context,
        collective_s=waits.total_s,
        chained=kind in ("dense", "moe", "experts"),
        max_copies=min(NUM_COPIES, model.num_layers),
        device=device,
        agree=leader_decides(group, device) if group is not None else bool,
        reduce=mean_over(group, device) if group is not None else list,
    )


class _EvenExperts(nn.Module):
    """All experts of a layer, each with as many of `rows` choices as the others."""

    def __init__(self, model: ModelSpec, rows: int) -> None:
        super().__init__()
        ids = tuple(range(model.num_experts))
        self.experts = Experts(ids, model.hidden_size, model.expert_width, again=False)
        self.counts = [rows // len(ids) + (k < rows % len(ids)) for k in ids]

    def forward(self, x: Tensor) -> Tensor:
        """[rows, h] -> [rows, h]."""
        out: Tensor = self.experts(x, lambda rows, run: run(rows, self.counts))
        return out


def _split_experts(model: ModelSpec, group: dist.ProcessGroup, recorder: Recorder) -> ExpertPlace:
    """All experts, each split over the group, as the planner lays them out (etp = tp)."""
    return ExpertPlace(
        slots=contiguous_slots(model.num_experts, 1), etp_rank=dist.get_rank(group), etp=group,
        recorder=recorder,
    )  # fmt: skip


def layer_thunk(
    case: BlockCase,
    inputs: ProfileInputs,
    group: dist.ProcessGroup | None,
    device: torch.device,
    max_layers: int = NUM_COPIES,
) -> Callable[[], object]:
    """Forward and backward of a chain of layers on this rank of `group`."""
    setup = block_setup(case, inputs, group, device)
    layers = [setup.build() for _ in range(min(setup.max_copies, max_layers))]

    def run() -> None:
        with setup.context():
            value = setup.make_input()
            for layer in layers:
                value = setup.forward(layer, value)
            setup.wait(value)
            torch.autograd.backward(value, torch.ones_like(value))
        setup.collective_s()  # empties the recorder
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _token_ids(micro_batch: int, inputs: ProfileInputs, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(micro_batch)
    shape = (micro_batch, inputs.seq_len)
    return torch.randint(inputs.model.vocab_size, shape, generator=generator).to(device)


def _input_maker(
    case: BlockCase, inputs: ProfileInputs, device: torch.device
) -> Callable[[], Tensor]:
    """Fresh inputs: ids [b, s] for the embedding, else [b, s / tp, h] that require a gradient."""
    if case.block == "embed":
        ids = _token_ids(case.micro_batch, inputs, device)
        return ids.clone
    shape: tuple[int, ...] = (case.micro_batch, inputs.seq_len // case.tp, inputs.model.hidden_size)
    if case.block == "experts":
        rows = case.micro_batch * inputs.seq_len * inputs.model.num_experts_per_token
        shape = (rows, inputs.model.hidden_size)
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    return lambda: hidden.clone().requires_grad_()


def _update_maker(
    group: dist.ProcessGroup | None, recorder: Recorder
) -> Callable[[Sequence[nn.Module]], Callable[[], object]]:
    """AdamW over all parameters of some blocks, as a step runs it: on plain local tensors."""

    def make(blocks: Sequence[nn.Module]) -> Callable[[], object]:
        every = nn.ModuleList(blocks)
        held = plain_held(every)
        weights = [nn.Parameter(h.local) for h in held]
        grads, _ = GradientSync(held, recorder, Groups(tp=group)).run(
            [take_grad(h) for h in held], None
        )
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad
        return torch.optim.AdamW(weights, lr=LEARNING_RATE, foreach=True).step

    return make


def _bucket_maker() -> Callable[[Sequence[nn.Module]], Callable[[], object]]:
    """The copy that a reduction over replicas begins with, of the gradients' local shards."""

    def make(blocks: Sequence[nn.Module]) -> Callable[[], object]:
        grads = [local_tensor(p.grad) for b in blocks for p in b.parameters() if p.grad is not None]
        return lambda: [flat(bucket) for bucket in in_buckets(grads)]

    return make


def _wait(tensor: Tensor) -> None:
    if isinstance(tensor, AsyncCollectiveTensor):
        tensor.trigger_wait()  # type: ignore[no-untyped-call]


class _Waits:
    """Running sum of what a recorder saw this rank wait for."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._total_s = 0.0

    def total_s(self) -> float:
        """Seconds so far."""
        for _, _, _, begun, ended in self.recorder.drain()["collectives"]:
            if begun is not None and ended is not None:
                self._total_s += ended - begun
        return self._total_s
