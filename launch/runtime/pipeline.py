"""One step of forward and backward over all micro-batches, in the order of the planner's own table.

With several stages the table runs through PyTorch's `_PipelineScheduleRuntime`, which derives
sends and receives from it; with one stage the same row of actions runs here. Both scale each
micro-batch's mean loss by 1 / (micro-batches * replicas), so that gradients need summing alone to
be those of the global batch.

`_PipelineScheduleRuntime` and its `_prepare_schedule_with_comms` are private to torch 2.13 (the
parity tests cover what is used of them).
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    _Action,
    _ComputationType,
    _PipelineScheduleRuntime,
)

from launch.runtime.model import Stage
from launch.runtime.record import Recorder
from planner.schedules import Table


class Runner(Protocol):
    """Runs all micro-batches of a step; gradients are left in the parameters."""

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """Inputs and targets [samples of the replica, s] -> this replica's share of the loss (a
        scalar without gradient), on the last stage alone."""
        ...

    @property
    def buffer_bytes(self) -> int:
        """Receive buffers that live from step to step."""
        ...


class SingleStage:
    """The table's one row, without a pipeline."""

    def __init__(self, stage: Stage, table: Table, recorder: Recorder) -> None:
        self._stage, self._row, self._recorder = stage, table[0], recorder

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """See `Runner`."""
        num_microbatches = len(self._row) // 2
        xs, ys = inputs.chunk(num_microbatches), targets.chunk(num_microbatches)
        waiting: dict[int, Tensor] = {}
        losses: list[Tensor] = []
        for action in self._row:
            k = action.micro_batch
            with self._recorder.action(action.op, 0, k):
                if action.op == "F":
                    waiting[k] = self._stage(xs[k], ys[k])
                    losses.append(waiting[k].detach())
                elif action.op == "B":
                    torch.autograd.backward(waiting.pop(k))
                else:
                    raise ValueError(f"action {action} needs a pipeline")
        return torch.stack(losses).sum()

    @property
    def buffer_bytes(self) -> int:
        """None are needed."""
        return 0


class _RecordedStage(PipelineStage):
    """A pipeline stage that records each of its actions."""

    def __init__(self, recorder: Recorder, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recorder = recorder

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        with self._recorder.action("F", self.stage_index, fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:  # fmt: skip
        with self._recorder.action("B" if full_backward else "I", self.stage_index, bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        with self._recorder.action("W", self.stage_index, bwd_chunk_id):
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)


def _schedule_of(
    stage: PipelineStage, table: Table, num_microbatches: int
) -> _PipelineScheduleRuntime:
    """The runtime with the table loaded; the stage's own output is the loss."""
    schedule = _PipelineScheduleRuntime(  # type: ignore[no-untyped-call]
        [stage], num_microbatches, loss_fn=lambda output, _: output, scale_grads=False
    )
    orders: dict[int, list[_Action | None]] = {
        rank: [_Action(a.stage, _ComputationType(a.op), a.micro_batch) for a in row]
        for rank, row in enumerate(table)
    }
    schedule._prepare_schedule_with_comms(orders, format="compute_only")
    return schedule


class Pipeline:
    """One stage of several, on the ranks of a pipeline group."""

    def __init__(
        self,
        stage: Stage,
        index: int,
        table: Table,
        recorder: Recorder,
        *,
        group: dist.ProcessGroup,
        tokens: Tensor,
        activation: Tensor,
    ) -> None:
        """`tokens` [micro-batch, s] and `activation` [micro-batch, s/tp, h] are examples of what
        the first stage and the others take."""
        num_stages = len(table)
        self._is_first, self._is_last = index == 0, index == num_stages - 1
        # Shapes come from examples; one without `requires_grad` would get no gradient sent back.
        activation = activation.requires_grad_()
        loss = torch.zeros((), device=activation.device, requires_grad=True)
        self._stage = _RecordedStage(
            recorder, stage, index, num_stages, activation.device, group=group,
            input_args=(tokens if self._is_first else activation,),
            output_args=(loss if self._is_last else activation,),
        )  # fmt: skip
        num_microbatches = len({a.micro_batch for a in table[index]})
        self._schedule = _schedule_of(self._stage, table, num_microbatches)

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """See `Runner`."""
        args = (inputs,) if self._is_first else ()
        if not self._is_last:
            self._schedule.step(*args, return_outputs=False)
            return None
        losses: list[Tensor] = []
        self._schedule.step(
            *args, target=targets, targets=targets, losses=losses, return_outputs=False
        )
        return torch.stack([loss.detach() for loss in losses]).sum()

    @property
    def buffer_bytes(self) -> int:
        """Activations and gradients received, one buffer of each per micro-batch."""
        infos = [*self._stage.args_recv_info.values(), *self._stage.grad_recv_info.values()]
        buffers = [info.buffer for row in infos for info in row if info.buffer is not None]
        return sum(b.nbytes for b in buffers)
