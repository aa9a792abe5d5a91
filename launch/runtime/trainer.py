"""One rank's part of training: its stages, its groups, its optimizer, and a step of them."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from launch.runtime.build import build_stages
from launch.runtime.clip import clip_
from launch.runtime.context import sequence_index
from launch.runtime.mesh import Mesh
from launch.runtime.pieces import Held, fill, first_value
from launch.runtime.pipeline import Pipeline, Runner, SingleStage
from launch.runtime.record import Recorder
from launch.runtime.sync import GradientSync, Groups, take_grad
from launch.runtime.tensor import loss_context
from planner.config import ParallelConfig, Placement
from planner.layout import check_layout
from planner.pipeline import table_for
from profiler.job import JobSpec
from profiler.model import ModelSpec

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Moments of a step on this rank's clock."""

    start: float
    end: float
    sync: tuple[float, float]
    optimizer: tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step gave."""

    loss: Tensor | None
    """Mean over the global batch, on the ranks that hold the head."""
    grad_norm: float | None
    """Before clipping, where it is clipped."""
    times: StepTimes


class Trainer:
    """Builds what a rank needs and runs steps; collective: every rank of the mesh makes one.

    In bf16 the optimizer holds float32 masters of the weights, and gradients of micro-batches are
    added up in float32 (Micikevicius et al. 2018, arXiv:1710.03740).
    """

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
        clip_norm: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`clip_norm` 0: gradients are not clipped. `dtype` replaces that of the job's precision.

        Raises `UserError` for a layout that cannot be.
        """
        check_layout(model, job, config, placement)
        self.mesh, self._recorder, self._tp = mesh, recorder, config.tp
        self.model, self.job, self.config, self.placement = model, job, config, placement
        self.label = f"{config.label} {config.schedule}"
        self._clip_norm = clip_norm
        dtype = dtype or DTYPES[job.precision]
        built = build_stages(
            model, job, config, placement, mesh, recorder, device=device, dtype=dtype
        )
        self.stages, self.held = built.stages, built.held
        wide = torch.promote_types(dtype, torch.float32)
        # Weights in the optimizer's precision: the parameters' own storage where that is theirs.
        self.weights = [nn.Parameter(h.local.to(wide)) for h in self.held]
        self._narrow = [i for i, h in enumerate(self.held) if h.local.dtype != wide]
        self._sums: dict[int, Tensor] = {}
        self.set_values(lambda name, shape: first_value(name, shape, seed))
        self.optimizer = make_optimizer(self.weights)
        self.runner = self._runner(job, config, placement, model.hidden_size, device, dtype)
        self._sync = self._sync_of(self.held)
        index = sequence_index(job.seq_len, config.cp, mesh.coordinate["cp"], config.cp_method)
        self._positions = index.to(device) if config.cp > 1 else None

    def _runner(
        self, job: JobSpec, config: ParallelConfig, placement: Placement, hidden: int,
        device: torch.device, dtype: torch.dtype,
    ) -> Runner:  # fmt: skip
        table = table_for(config, placement, config.num_microbatches(job))
        if config.pp == 1:
            return SingleStage(self.stages[0], table, self._recorder, config.zero, self._add_up)
        b, s = config.micro_batch, job.seq_len // config.cp
        return Pipeline(
            self.stages, table, self._recorder, zero=config.zero, after_backward=self._add_up,
            group=self.mesh.group("pp"),
            tokens=torch.zeros(b, s, dtype=torch.long, device=device),
            activation=torch.zeros(b, s // config.tp, hidden, device=device, dtype=dtype),
        )  # fmt: skip

    @torch.no_grad()
    def _add_up(self) -> None:
        """Move gradients of low precision into their float32 sums."""
        for i in self._narrow:
            if self.held[i].parameter.grad is not None:
                grad = take_grad(self.held[i])
                if i in self._sums:
                    self._sums[i] += grad
                else:
                    self._sums[i] = grad.to(self.weights[i].dtype)

    def _gradients(self) -> list[Tensor]:
        sums, self._sums = self._sums, {}
        narrow = set(self._narrow)
        return [
            take_grad(held)
            if i not in narrow
            else sums[i]
            if i in sums
            else torch.zeros_like(self.weights[i])
            for i, held in enumerate(self.held)
        ]

    def step(self, inputs: Tensor, targets: Tensor) -> StepResult:
        """Forward, backward, gradient sums, clipping, optimizer on this replica's samples [b, s]
        (whole sequences)."""
        if self._positions is not None:
            inputs, targets = inputs[:, self._positions], targets[:, self._positions]
        start = self._recorder.moment()
        with loss_context(self._tp):
            loss = self.runner.step(inputs, targets)
        sync_start = self._recorder.moment()
        grads, loss = self._sync.run(self._gradients(), loss)
        norm = None
        if self._clip_norm:
            norm = clip_(grads, self.held, self._clip_norm, self._recorder)
        sync_end = self._recorder.moment()
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.publish()
        end = self._recorder.moment()
        times = StepTimes(
            start=start, end=end, sync=(sync_start, sync_end), optimizer=(sync_end, end)
        )
        return StepResult(loss=loss, grad_norm=norm, times=times)

    def _sync_of(self, held: list[Held]) -> GradientSync:
        groups = _groups(self.model, self.config, self.mesh, held)
        return GradientSync(held, self._recorder, groups)

    def take_over(self, placement: Placement, held: list[Held]) -> None:
        """Train on with experts in other places, of which this rank holds `held`: parameter for
        parameter as before, and with their values set."""
        self.placement, self.held = placement, held
        self._sync = self._sync_of(held)

    def set_local(self, i: int, held: Held, value: Tensor) -> None:
        """Other values, and maybe another number of experts, for the i-th weight; `held` is what
        it is of from now on."""
        weight, local = self.weights[i], held.local
        if weight.shape == value.shape:
            weight.data.copy_(value)
        elif local.shape == value.shape:  # resized already
            weight.data = local.copy_(value).to(value.dtype)  # the same storage where it can be
        else:
            weight.data = value
            held.parameter.data = value.to(local.dtype)

    def set_values(self, whole: Callable[[str, tuple[int, ...]], Tensor]) -> None:
        """Set all weights from `whole(name, shape)`, the canonical tensors."""
        fill(self.held, self.weights, whole)
        self.publish()

    @torch.no_grad()
    def set_buffers(self, whole: Callable[[str], Tensor]) -> None:
        """Set what belongs to the model and is no weight: selection biases of routers."""
        for stage in self.stages.values():
            for name, buffer in stage.named_buffers():
                buffer.copy_(whole(name))

    @torch.no_grad()
    def publish(self) -> None:
        """Round the float32 masters into the weights that compute."""
        for i in self._narrow:
            self.held[i].local.copy_(self.weights[i])


def _groups(model: ModelSpec, config: ParallelConfig, mesh: Mesh, held: list[Held]) -> Groups:
    sharded = config.dp_shard > 1
    axis = "dp_replicate" if sharded else "dp"

    def of(name: str, *, needed: bool = True) -> torch.distributed.ProcessGroup | None:
        return mesh.group(name) if needed and mesh.size(name) > 1 else None

    return Groups(
        tp=of("tp", needed=not sharded),
        dp=of(axis),
        dp_axis=axis,
        loss=of("dp", needed=sharded),
        edp=of("edp", needed=any(h.is_expert for h in held)),
        ep=of("ep", needed=any(h.replicated for h in held)),
        tied=mesh.tied_group if model.tie_embeddings else None,
    )
