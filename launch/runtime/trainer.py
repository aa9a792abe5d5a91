"""One rank's part of training: its stage, its groups, its optimizer, and a step of them."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from launch.runtime.mesh import Mesh
from launch.runtime.model import Head, Stage, init_parameters
from launch.runtime.pipeline import Pipeline, Runner, SingleStage
from launch.runtime.record import Recorder
from launch.runtime.sync import GradientSync, local_parameters
from launch.runtime.tensor import loss_context, shard_block, token_loss
from planner.config import ParallelConfig, Placement
from planner.schedules import table_of
from profiler.job import JobSpec
from profiler.measure.cases import check_tp_degrees
from profiler.model import ModelSpec

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Moments of a step on this rank's clock."""

    start: float
    end: float
    sync: tuple[float, float]
    optimizer: tuple[float, float]


def build_stage(
    model: ModelSpec, config: ParallelConfig, placement: Placement, mesh: Mesh, *, scale: float,
    device: torch.device, seed: int,
) -> Stage:  # fmt: skip
    """This rank's blocks, sharded, with their first values; `scale` multiplies the loss."""
    first, end = placement.stages[mesh.coordinate["pp"]]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return token_loss(logits, targets) * scale

    with torch.device("meta"):
        stage = Stage(model, first, end, recompute=config.recompute, loss=loss)
    if config.tp > 1:
        for name, kind in stage.kinds.items():
            shard_block(stage.blocks[name], kind, mesh.device_mesh["tp"])
    stage.to_empty(device=device)
    if model.tie_embeddings:
        stage.tie()
    init_parameters(stage, "", seed, tied="blocks.0.weight" if model.tie_embeddings else None)
    return stage


class Trainer:
    """Builds what a rank needs and runs steps; collective: every rank of the mesh makes one."""

    def __init__(
        self,
        model: ModelSpec,
        job: JobSpec,
        config: ParallelConfig,
        placement: Placement,
        *,
        mesh: Mesh,
        recorder: Recorder,
        make_optimizer: MakeOptimizer,
        device: torch.device,
        seed: int,
    ) -> None:
        check_tp_degrees(model, job.seq_len, config.num_devices, config.tp)
        num_microbatches = config.num_microbatches(job)
        self.stage = build_stage(
            model, config, placement, mesh, device=device, seed=seed,
            scale=1.0 / (num_microbatches * config.dp_replicate),
        )  # fmt: skip
        self.weights = local_parameters(self.stage)
        self.optimizer = make_optimizer(self.weights)
        self.runner = self._runner(model, job, config, mesh, recorder, device)
        self._tp, self._recorder = config.tp, recorder
        self._sync = GradientSync(
            list(self.stage.parameters()), recorder,
            tp=mesh.group("tp") if config.tp > 1 else None,
            dp=mesh.group("dp_replicate") if config.dp_replicate > 1 else None,
            tied=mesh.tied_group if model.tie_embeddings else None,
            tied_index=self._tied_index(),
        )  # fmt: skip

    def _runner(
        self, model: ModelSpec, job: JobSpec, config: ParallelConfig, mesh: Mesh,
        recorder: Recorder, device: torch.device,
    ) -> Runner:  # fmt: skip
        table = table_of(config.schedule, config.pp, config.num_microbatches(job))
        if config.pp == 1:
            return SingleStage(self.stage, table, recorder)
        b, s = config.micro_batch, job.seq_len
        return Pipeline(
            self.stage, mesh.coordinate["pp"], table, recorder, group=mesh.group("pp"),
            tokens=torch.zeros(b, s, dtype=torch.long, device=device),
            activation=torch.zeros(b, s // config.tp, model.hidden_size, device=device),
        )  # fmt: skip

    def _tied_index(self) -> int | None:
        """Place of the embedding's or the head's matrix among the stage's parameters."""
        for block in self.stage.blocks.values():
            if isinstance(block, nn.Embedding | Head):
                own = block.weight if isinstance(block, nn.Embedding) else block.output.weight
                return next(i for i, p in enumerate(self.stage.parameters()) if p is own)
        return None

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor | None, StepTimes]:
        """Forward, backward, gradient sums, optimizer on this replica's samples [b, s]; the loss is
        the mean over the global batch, on the last stage's ranks."""
        start = self._recorder.moment()
        with loss_context(self._tp):
            loss = self.runner.step(inputs, targets)
        sync_start = self._recorder.moment()
        grads, loss = self._sync.run(loss)
        sync_end = self._recorder.moment()
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        end = self._recorder.moment()
        times = StepTimes(
            start=start, end=end, sync=(sync_start, sync_end), optimizer=(sync_end, end)
        )
        return loss, times
