"""Layouts that must train as one process does: the training of one.

Unless a case says otherwise everything is float64, so that layouts differ by rounding far below any
real error, and a router's choice never hangs on it.
"""

import dataclasses
import functools
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from fork import run_ranks
from torch import Tensor, nn

from launch.runtime.expert_moves import move_experts
from launch.runtime.mesh import build_mesh
from launch.runtime.model import Stage
from launch.runtime.pieces import first_value
from launch.runtime.record import Recorder
from launch.runtime.trainer import Trainer
from planner.config import (
    CpMethod,
    ExpertSlots,
    ParallelConfig,
    Placement,
    Recompute,
    ScheduleName,
    ZeroStage,
)
from planner.given import even_blocks
from profiler.job import JobSpec
from profiler.model import ModelSpec

NUM_STEPS, BATCH, SEQ_LEN, SEED = 3, 8, 32, 7
JOB = JobSpec(global_batch=BATCH, seq_len=SEQ_LEN, precision="fp32")
LLAMA = ModelSpec(
    name="tiny", family="llama", vocab_size=64, hidden_size=32, num_layers=5, num_heads=4,
    num_kv_heads=2, head_dim=8, ffn_hidden_size=48,
)  # fmt: skip
TIED = dataclasses.replace(LLAMA, tie_embeddings=True)
QWEN2 = dataclasses.replace(LLAMA, family="qwen2", qkv_bias=True)
QWEN3 = dataclasses.replace(LLAMA, family="qwen3", qk_norm=True)
MIXTRAL = dataclasses.replace(LLAMA, family="mixtral", num_experts=8, num_experts_per_token=2)
DROPPING = dataclasses.replace(MIXTRAL, capacity_factor=1.0, capacity_group=4)
QWEN2_MOE = dataclasses.replace(
    MIXTRAL, family="qwen2_moe", qkv_bias=True, expert_ffn_hidden_size=16, norm_topk=False,
    shared_ffn_hidden_size=32, shared_gate=True,
)  # fmt: skip
DEEPSEEK = dataclasses.replace(
    MIXTRAL, family="dots1", qk_norm=True, expert_ffn_hidden_size=16, num_experts_per_token=3,
    shared_ffn_hidden_size=32, first_dense_layers=1, router_score="sigmoid", router_bias=True,
    routed_scale=2.5, num_expert_groups=4, num_chosen_groups=2,
)  # fmt: skip
OptimizerName = Literal["sgd", "adamw"]
Outcome = tuple[list[float], list[float], dict[str, Tensor]]
"""Losses and gradient norms of the steps, weights at the end by canonical name."""
CLIP = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A layout of a model, and what it is trained with."""

    model: ModelSpec = LLAMA
    tp: int = 1
    pp: int = 1
    vpp: int = 1
    dp: int = 1
    shard: int = 1
    zero: ZeroStage = 0
    cp: int = 1
    cp_method: CpMethod = "ring"
    ep: int = 1
    etp: int = 1
    ep_overlap: int = 1
    micro_batch: int = 1
    schedule: ScheduleName = "1f1b"
    recompute: Recompute = "none"
    per_layer: tuple[Recompute, ...] = ()
    stages: tuple[tuple[int, int], ...] = ()
    experts: tuple[ExpertSlots, ...] = ()
    moves: tuple[tuple[int, tuple[ExpertSlots, ...]], ...] = ()
    """Steps, and where experts are moved before each."""
    ranks: tuple[int, ...] = ()
    table: tuple[str, ...] = ()
    optimizer: OptimizerName = "adamw"
    lr: float | None = None
    """None: the optimizer's own below."""
    batch: int = BATCH
    seq_len: int = SEQ_LEN
    steps: int = NUM_STEPS
    dtype: torch.dtype = torch.float64

    @property
    def job(self) -> JobSpec:
        return JobSpec(global_batch=self.batch, seq_len=self.seq_len, precision="fp32")

    @property
    def config(self) -> ParallelConfig:
        return ParallelConfig(
            pp=self.pp, vpp=self.vpp, dp_replicate=self.dp, dp_shard=self.shard, zero=self.zero,
            cp=self.cp, cp_method=self.cp_method, tp=self.tp, ep=self.ep, etp=self.etp,
            ep_overlap=self.ep_overlap, micro_batch=self.micro_batch, recompute=self.recompute,
            schedule=self.schedule,
        )  # fmt: skip

    @property
    def placement(self) -> Placement:
        return Placement(
            stages=self.stages or even_blocks(len(self.model.blocks), self.pp * self.vpp),
            ranks=self.ranks, recompute=self.per_layer, experts=self.experts, table=self.table,
        )  # fmt: skip


def batch(step: int, size: int = BATCH, seq_len: int = SEQ_LEN) -> tuple[Tensor, Tensor]:
    """Inputs and targets [size, seq_len] of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    tokens = torch.randint(0, LLAMA.vocab_size, (size, seq_len + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:].contiguous()


def make_optimizer(
    name: OptimizerName, parameters: list[nn.Parameter], lr: float | None = None
) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1.0 if lr is None else lr)
    return torch.optim.AdamW(parameters, lr=1e-2 if lr is None else lr, eps=1e-8)


def _canonical(name: str, parameter: Tensor) -> list[tuple[str, Tensor]]:
    """Canonical tensors of a parameter of an unsharded stage, as views."""
    if ".ffn.experts." not in name:
        return [(name, parameter)]
    prefix, _, leaf = name.rpartition(".")
    return [(f"{prefix}.{e}.{leaf}", parameter[e]) for e in range(len(parameter))]


def _plain_loop(case: Case) -> Outcome:
    """The whole batch at once, one process, nothing of the runtime but the blocks."""
    model = case.model
    stage = Stage(model, 0, len(model.blocks)).double()
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            for canonical, part in _canonical(name, parameter):
                part.copy_(first_value(canonical, tuple(part.shape), SEED))
    if model.tie_embeddings:
        stage.tie()
    optimizer = make_optimizer(case.optimizer, list(stage.parameters()), case.lr)
    losses, norms = [], []
    for step in range(case.steps):
        x, targets = batch(step, case.batch, case.seq_len)
        logits = stage(x)
        loss = F.cross_entropy(logits.reshape(-1, model.vocab_size), targets.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(stage.parameters(), CLIP).item())
        optimizer.step()
        losses.append(loss.item())
    weights = {}
    for name, parameter in stage.named_parameters():
        weights |= {n: p.detach().clone() for n, p in _canonical(name, parameter)}
    return losses, norms, weights


@functools.cache
def _reference(alone: Case) -> Outcome:
    """In a process of its own: the parent must not run a model before it forks."""
    result: Outcome = run_ranks(1, _plain_loop, alone)[0]
    return result


def reference(case: Case) -> Outcome:
    """What one process gets in float64 from the model, data and optimizer of a case."""
    same = ("model", "optimizer", "lr", "batch", "seq_len", "steps")
    return _reference(Case(**{name: getattr(case, name) for name in same}))


def first_weights(names: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values before the first step."""
    return {n: first_value(n, tuple(w.shape), SEED).double() for n, w in names.items()}


Parts = list[tuple[str, tuple[int, ...], tuple[int, ...], Tensor]]


def trainer_of(case: Case, recorder: Recorder | None = None, *, seed: int = SEED) -> Trainer:
    """This rank's trainer, with the first weights of a seed."""
    mesh = build_mesh(case.config, case.placement, "cpu")
    return Trainer(
        case.model, case.job, case.config, case.placement, mesh=mesh, device=torch.device("cpu"),
        recorder=recorder or Recorder(mesh.axis_of_group()), seed=seed, clip_norm=CLIP,
        dtype=case.dtype, make_optimizer=lambda ps: make_optimizer(case.optimizer, ps, case.lr),
    )  # fmt: skip


def part_of_batch(trainer: Trainer, case: Case, step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a step for this rank's replica."""
    each = case.batch // case.config.num_replicas
    place = trainer.mesh.coordinate
    first = (place["dp_replicate"] * case.config.dp_shard + place["dp_shard"]) * each
    inputs, targets = batch(step, case.batch, case.seq_len)
    return inputs[first : first + each], targets[first : first + each]


def parts_of(trainer: Trainer) -> Parts:
    """This rank's chunks of the weights (name, shape, offset, values)."""
    return [
        (c.name, c.shape, c.offset, weight.detach()[c.where].clone())
        for held, weight in zip(trainer.held, trainer.weights, strict=True)
        for c in held.chunks
    ]


def train_rank(case: Case) -> tuple[list[float], list[float], Parts]:
    """Losses, gradient norms, and this rank's chunks."""
    trainer = trainer_of(case)
    losses, norms = [], []
    for step in range(case.steps):
        for _, experts in (move for move in case.moves if move[0] == step):
            move_experts(trainer, experts)
        result = trainer.step(*part_of_batch(trainer, case, step))
        losses += [] if result.loss is None else [result.loss.item()]
        norms.append(result.grad_norm or 0.0)
    return losses, norms, parts_of(trainer)
