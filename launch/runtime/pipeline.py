"""One step of forward and backward over all micro-batches, in the order of the planner's own table.

With several stages the table runs through PyTorch's `_PipelineScheduleRuntime`, which derives
sends and receives from it; with one stage the same row of actions runs here. Losses come scaled,
so that gradients need summing alone to be those of the global batch.

FSDP decides itself when weights are gathered (`launch.runtime.shard`), so the gathering that the
schedule runtime would add for whole stages is left out of the table.

`_PipelineScheduleRuntime` and its `_prepare_schedule_with_comms` are private to torch 2.13 (the
parity tests cover what is used of them).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    _Action,
    _ComputationType,
    _PipelineScheduleRuntime,
)

from launch.runtime.model import Layer, Stage
from launch.runtime.record import Recorder
from launch.runtime.shard import before_backward
from planner.config import ZeroStage
from planner.schedules import Table

AfterBackward = Callable[[], None]


class Runner(Protocol):
    """Runs all micro-batches of a step; gradients are left in the parameters."""

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """Inputs and targets [samples of the replica, s / cp] -> this rank's share of the loss (a
        scalar without gradient), where the head is."""
        ...

    @property
    def buffer_bytes(self) -> int:
        """Receive buffers that live from step to step."""
        ...


class SingleStage:
    """The table's one row, without a pipeline."""

    def __init__(
        self, stage: Stage, table: Table, recorder: Recorder, zero: ZeroStage,
        after_backward: AfterBackward,
    ) -> None:  # fmt: skip
        self._stage, self._row, self._recorder = stage, table[0], recorder
        self._zero, self._after_backward = zero, after_backward

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
                    last = action is self._row[-1]
                    before_backward(self._stage, self._zero, last=last)
                    torch.autograd.backward(waiting.pop(k))
                    self._after_backward()
                else:
                    raise ValueError(f"action {action} needs a pipeline")
        return torch.stack(losses).sum()

    @property
    def buffer_bytes(self) -> int:
        """None are needed."""
        return 0


class _RecordedStage(PipelineStage):
    """A pipeline stage that records each of its actions and tells FSDP what to keep."""

    def __init__(
        self, recorder: Recorder, zero: ZeroStage, after_backward: AfterBackward,
        *args: Any, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self._recorder, self._zero, self._after_backward = recorder, zero, after_backward

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        with self._recorder.action("F", self.stage_index, fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:  # fmt: skip
        with self._recorder.action("B" if full_backward else "I", self.stage_index, bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
            self._after_backward()

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        with self._recorder.action("W", self.stage_index, bwd_chunk_id):
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
            self._widen()
            self._after_backward()

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        if backward_type != "full" or not isinstance(self.submod, FSDPModule):
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        # The base class would put off all sums to the end of the step, which is ZeRO 1 alone. Its
        # end of the step comes after all backwards, so none of them is the last for FSDP.
        keep = self.submod
        before_backward(keep, self._zero, last=False)
        self.submod = torch.nn.Identity()  # a full backward needs the stage's outputs alone
        try:
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        finally:
            self.submod = keep

    def _widen(self) -> None:
        """Add what a weight gradient left in the weights' precision to FSDP's wider sum."""
        if isinstance(self.submod, FSDPModule):
            for state in fully_shard.state(self.submod)._state_ctx.all_states:  # type: ignore[attr-defined]
                for group in state._fsdp_param_groups:
                    for parameter in group.fsdp_params:
                        if hasattr(parameter, "_unsharded_param"):
                            parameter.accumulate_unsharded_grad_if_needed()
                            parameter.to_accumulated_grad_if_needed()


def _recomputes_weights(stage: Stage) -> bool:
    """Whether what backward computes again has weights in it.

    Each W would compute all of it again for every few weights, with its collectives, and as often
    as this rank has weights there, which other ranks may not have. Its I is therefore the full
    backward, and its W does nothing.
    """
    layers = [block for block in stage.blocks.values() if isinstance(block, Layer)]
    return any(
        layer.recompute == "full"
        or (layer.recompute == "selective" and layer.attention.q_norm is not None)
        for layer in layers
    )


def _nothing() -> None:
    """What is left for W."""


class _Schedule(_PipelineScheduleRuntime):
    """The schedule runtime without gathering of whole stages."""

    def _prepare_schedule_with_comms(self, actions: Any, format: Any = "compute_only") -> None:
        super()._prepare_schedule_with_comms(actions, format=format)
        left_out = (_ComputationType.UNSHARD, _ComputationType.RESHARD)
        self.pipeline_order_with_comms = {
            rank: [a for a in row if a.computation_type not in left_out]
            for rank, row in self.pipeline_order_with_comms.items()
        }

    def _assert_unsharded(self, stage: Any) -> None:
        """FSDP's own hooks see to it."""


def _schedule_of(
    stages: list[_RecordedStage], table: Table, num_microbatches: int
) -> _PipelineScheduleRuntime:
    """The runtime with the table loaded; the last stage's own output is the loss."""
    schedule = _Schedule(  # type: ignore[no-untyped-call]
        stages, num_microbatches, loss_fn=lambda output, _: output, scale_grads=False
    )
    orders: dict[int, list[_Action | None]] = {
        rank: [_Action(a.stage, _ComputationType(a.op), a.micro_batch) for a in row]
        for rank, row in enumerate(table)
    }
    schedule._prepare_schedule_with_comms(orders, format="compute_only")
    return schedule


class Pipeline:
    """Some stages of several, on the ranks of a pipeline group."""

    def __init__(
        self,
        stages: dict[int, Stage],
        table: Table,
        recorder: Recorder,
        *,
        zero: ZeroStage,
        after_backward: AfterBackward,
        group: dist.ProcessGroup,
        tokens: Tensor,
        activation: Tensor,
    ) -> None:
        """`tokens` [micro-batch, s / cp] and `activation` [micro-batch, s / cp / tp, h] are
        examples of what the first stage and the others take."""
        num_stages = 1 + max(action.stage for row in table for action in row)
        self._is_first, self._is_last = 0 in stages, num_stages - 1 in stages
        # Shapes come from examples; one without `requires_grad` would get no gradient sent back.
        activation = activation.requires_grad_()
        loss = torch.zeros((), device=activation.device, dtype=_loss_dtype(activation))
        loss.requires_grad_()
        self._stages = [
            _RecordedStage(
                recorder, zero, after_backward, stage, index, num_stages, activation.device,
                group=group, dw_builder=(lambda: _nothing) if _recomputes_weights(stage) else None,
                input_args=(tokens if index == 0 else activation,),
                output_args=(loss if index == num_stages - 1 else activation,),
            )
            for index, stage in stages.items()
        ]  # fmt: skip
        num_microbatches = 1 + max(a.micro_batch for row in table for a in row)
        self._schedule = _schedule_of(self._stages, table, num_microbatches)

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
        infos = [
            *(row for s in self._stages for row in s.args_recv_info.values()),
            *(row for s in self._stages for row in s.grad_recv_info.values()),
        ]
        buffers = [info.buffer for row in infos for info in row if info.buffer is not None]
        return sum(b.nbytes for b in buffers)


def _loss_dtype(activation: Tensor) -> torch.dtype:
    """Losses are taken in float32 at least."""
    return torch.promote_types(activation.dtype, torch.float32)
