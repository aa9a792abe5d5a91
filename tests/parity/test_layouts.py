"""Every layout trains the same model: losses and weights against a plain one-process PyTorch loop.

Tolerances. Layouts add up the same float32 numbers in different orders, each sum with a relative
error of a few times 2^-24 = 6e-8: losses agree to 2e-6. A weight is held against how far its matrix
moved in the four steps, not against its size, so that a wrong gradient of a matrix that hardly
moves shows: 1e-3 of the largest movement (measured: at most 3e-4, which is rounding of the
weights themselves). AdamW divides by the gradient's own size, so that an entry whose gradient is
itself near rounding could move by up to lr in either direction; `eps` 1e-4, well above that
noise, prevents it.
"""

import dataclasses
import functools
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from fork import RankError, run_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from launch.runtime.mesh import build_mesh
from launch.runtime.model import build_block, init_parameters
from launch.runtime.record import Recorder
from launch.runtime.trainer import Trainer
from planner.config import ParallelConfig, Placement, Recompute, ScheduleName
from profiler.job import JobSpec
from profiler.model import ModelSpec

pytestmark = pytest.mark.distributed

NUM_STEPS, BATCH, SEQ_LEN, SEED = 4, 8, 32, 7
JOB = JobSpec(global_batch=BATCH, seq_len=SEQ_LEN, precision="fp32")
LLAMA = ModelSpec(
    name="tiny", family="llama", vocab_size=128, hidden_size=64, num_layers=5, num_heads=4,
    num_kv_heads=2, head_dim=16, ffn_hidden_size=96,
)  # fmt: skip
TIED = dataclasses.replace(LLAMA, tie_embeddings=True)
QWEN2 = dataclasses.replace(LLAMA, family="qwen2", qkv_bias=True)
QWEN3 = dataclasses.replace(LLAMA, family="qwen3", qk_norm=True)
OptimizerName = Literal["sgd", "adamw"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A layout of a model."""

    model: ModelSpec = LLAMA
    tp: int = 1
    pp: int = 1
    dp: int = 1
    micro_batch: int = 2
    schedule: ScheduleName = "1f1b"
    recompute: Recompute = "none"
    stages: tuple[tuple[int, int], ...] = ((0, 7),)
    optimizer: OptimizerName = "sgd"

    @property
    def config(self) -> ParallelConfig:
        return ParallelConfig(
            pp=self.pp, dp_replicate=self.dp, tp=self.tp, micro_batch=self.micro_batch,
            recompute=self.recompute, schedule=self.schedule,
        )  # fmt: skip


TWO, THREE, FOUR = ((0, 3), (3, 7)), ((0, 2), (2, 5), (5, 7)), ((0, 1), (1, 3), (3, 6), (6, 7))
CASES = {
    "one": Case(),
    "one-gpipe-adamw": Case(schedule="gpipe", optimizer="adamw"),
    "tp2": Case(tp=2),
    "tp2-adamw": Case(tp=2, optimizer="adamw"),
    "pp2": Case(pp=2, stages=TWO),
    "pp2-adamw": Case(pp=2, stages=TWO, optimizer="adamw"),
    "dp2": Case(dp=2),
    "tp2-pp2": Case(tp=2, pp=2, stages=TWO),
    "pp2-dp2": Case(pp=2, dp=2, stages=TWO),
    "tp2-dp2-adamw": Case(tp=2, dp=2, optimizer="adamw"),
    "uneven-pp3-1f1b": Case(pp=3, stages=THREE, micro_batch=1),
    "uneven-pp3-gpipe": Case(pp=3, stages=THREE, micro_batch=1, schedule="gpipe"),
    "tp2-pp2-dp2-adamw": Case(tp=2, pp=2, dp=2, stages=TWO, optimizer="adamw"),
    "full-recompute-tp2-pp2": Case(tp=2, pp=2, stages=TWO, recompute="full"),
    "tied-one": Case(model=TIED),
    "tied-tp2": Case(model=TIED, tp=2),
    "tied-pp2": Case(model=TIED, pp=2, stages=TWO),
    "tied-tp2-pp2-dp2": Case(model=TIED, tp=2, pp=2, dp=2, stages=TWO),
    "qwen3-tp2": Case(model=QWEN3, tp=2),
    "qwen2-tp2": Case(model=QWEN2, tp=2),
    "qwen2-pp2": Case(model=QWEN2, pp=2, stages=TWO),
    "2-micro-batches-on-4-stages-1f1b": Case(pp=4, stages=FOUR, micro_batch=4),
    "1-micro-batch-on-3-stages-gpipe": Case(pp=3, stages=THREE, micro_batch=8, schedule="gpipe"),
    "embedding-alone-tp2-pp4": Case(tp=2, pp=4, stages=FOUR),
}


def _batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    tokens = torch.randint(0, LLAMA.vocab_size, (BATCH, SEQ_LEN + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:].contiguous()


def _optimizer(name: OptimizerName, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1.0)
    return torch.optim.AdamW(parameters, lr=1e-2, eps=1e-4)


Outcome = tuple[list[float], dict[str, Tensor]]
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 2e-6, 1e-3


def _first_weights(model: ModelSpec) -> dict[str, Tensor]:
    weights = {}
    for i, kind in enumerate(model.blocks):
        block = build_block(kind, model)
        init_parameters(block, f"blocks.{i}.", SEED)
        weights |= {f"blocks.{i}.{n}": p.detach() for n, p in block.named_parameters()}
    if model.tie_embeddings:
        weights[f"blocks.{model.num_layers + 1}.output.weight"] = weights["blocks.0.weight"]
    return weights


def _plain_loop(model: ModelSpec, optimizer_name: OptimizerName) -> Outcome:
    """The whole batch at once, one process, nothing of the runtime but the blocks."""
    blocks = nn.ModuleList([build_block(kind, model) for kind in model.blocks])
    for i, block in enumerate(blocks):
        init_parameters(block, f"blocks.{i}.", SEED)
    if model.tie_embeddings:
        blocks[-1].output.weight = blocks[0].weight
    optimizer = _optimizer(optimizer_name, list(blocks.parameters()))
    losses = []
    for step in range(NUM_STEPS):
        x, targets = _batch(step)
        for block in blocks:
            x = block(x)
        loss = F.cross_entropy(x.reshape(-1, model.vocab_size), targets.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    named = blocks.named_parameters(remove_duplicate=False)
    return losses, {f"blocks.{name}": p.detach() for name, p in named}


@functools.cache
def reference(model: ModelSpec, optimizer_name: OptimizerName) -> Outcome:
    """In a process of its own: the parent must not run a model before it forks."""
    return run_ranks(1, _plain_loop, model, optimizer_name)[0]


def _train_rank(case: Case) -> Outcome:
    placement = Placement(stages=case.stages)
    mesh = build_mesh(case.config, placement, "cpu")
    trainer = Trainer(
        case.model, JOB, case.config, placement, mesh=mesh, recorder=Recorder(mesh.axis_of_group()),
        make_optimizer=lambda ps: _optimizer(case.optimizer, ps), device=torch.device("cpu"),
        seed=SEED,
    )  # fmt: skip
    losses = []
    for step in range(NUM_STEPS):
        replica = slice_of(mesh.coordinate["dp_replicate"], case.dp)
        inputs, targets = (t[replica] for t in _batch(step))
        loss, _ = trainer.step(inputs, targets)
        losses += [] if loss is None else [loss.item()]
    weights: dict[str, Tensor] = {}
    for name, p in trainer.stage.named_parameters(remove_duplicate=False):
        weights[name] = p.full_tensor().detach() if isinstance(p, DTensor) else p.detach()
    return losses, weights


def slice_of(replica: int, num_replicas: int) -> slice:
    """Samples of a replica."""
    size = BATCH // num_replicas
    return slice(replica * size, (replica + 1) * size)


def _compare(results: list[Outcome], expected: Outcome, first: dict[str, Tensor]) -> None:
    losses, weights = expected
    assert {name for _, part in results for name in part} == set(weights)
    assert any(curve for curve, _ in results)
    for curve, part in results:
        if curve:
            assert curve == pytest.approx(losses, rel=LOSS_TOLERANCE)
        for name, weight in part.items():
            moved = (weights[name] - first[name]).abs().max().item()
            worst = (weight - weights[name]).abs().max().item()
            assert moved > 0, name
            assert worst <= WEIGHT_TOLERANCE * moved, f"{name} is off by {worst:.1e} of {moved:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_layout_trains_as_one_process_does(name: str) -> None:
    case = CASES[name]
    results: list[Any] = run_ranks(case.config.num_devices, _train_rank, case)
    expected = reference(case.model, case.optimizer)
    _compare(results, expected, _first_weights(case.model))


def test_the_comparison_refuses_other_weights_and_losses() -> None:
    losses, weights = reference(LLAMA, "sgd")
    other = {name: weight.roll(1, 0) for name, weight in weights.items()}
    with pytest.raises(AssertionError, match="is off by"):
        _compare([(losses, other)], (losses, weights), _first_weights(LLAMA))
    shifted = [loss * (1 + 1e-5) for loss in losses]
    with pytest.raises(AssertionError, match="approx"):
        _compare([(shifted, weights)], (losses, weights), _first_weights(LLAMA))


def _raise_on_one(rank_that_fails: int) -> None:
    if torch.distributed.get_rank() == rank_that_fails:
        raise ValueError("this one")
    torch.distributed.barrier()


def test_a_failing_rank_is_named_and_the_others_end() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1 of 2 failed.*this one"):
        run_ranks(2, _raise_on_one, 1, timeout_s=20)
