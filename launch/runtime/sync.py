"""Gradients of a step made whole: summed over the ranks that hold parts of them.

Three sums, each a flat all-reduce after the stage's last backward:
- `tp`: gradients of replicated weights (norms), of which each tensor-parallel rank has the part
  of its tokens;
- `dp`: all gradients over the replicas, in buckets as in PyTorch DDP (Li et al. 2020,
  arXiv:2006.15704), with the loss riding in the last one (micro-batch losses are scaled so that
  the sum is the mean);
- `tied`: the shared matrix of embedding and head, between the first and the last stage.

The optimizer works on plain local tensors that share storage with the DTensor parameters: AdamW
is elementwise, so a shard needs nothing of the others, and DTensor's dispatch stays out of it.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from launch.runtime.record import Recorder

BUCKET_BYTES = 25 * 2**20


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's plain tensor, sharing storage."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Plain parameters sharing storage with the module's, in its order, for the optimizer."""
    return [nn.Parameter(local_tensor(p)) for p in module.parameters()]


class GradientSync:
    """Sums gradients of one rank's stage; groups are None where the axis has size 1."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        recorder: Recorder,
        *,
        tp: dist.ProcessGroup | None,
        dp: dist.ProcessGroup | None,
        tied: dist.ProcessGroup | None = None,
        tied_index: int | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """`tied_index`: place of the shared matrix among `parameters`."""
        self._parameters, self._recorder = parameters, recorder
        self._tp, self._dp, self._tied = tp, dp, tied
        self._tied_index = tied_index
        self._bucket_bytes = bucket_bytes

    @torch.no_grad()
    def run(self, loss: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Whole gradients as plain local tensors in the order of the parameters, and the loss
        summed over the replicas (None in, None out). The parameters' own are released."""
        grads: list[Tensor] = []
        partial: list[int] = []
        for i, parameter in enumerate(self._parameters):
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            if isinstance(grad, DTensor) and isinstance(parameter, DTensor):
                if any(p.is_partial() for p in grad.placements):
                    partial.append(i)
                elif grad.placements != parameter.placements:
                    grad = grad.redistribute(placements=parameter.placements)
            grads.append(local_tensor(grad))
            parameter.grad = None
        if partial and self._tp is not None:
            parts, finish = self._start([grads[i] for i in partial], self._tp, "tp")
            finish()
            for i, part in zip(partial, parts, strict=True):
                grads[i] = part
        if self._dp is not None:
            extra = [] if loss is None else [loss]
            reduced = self._over_replicas([*grads, *extra], self._dp)
            grads, loss = reduced[: len(grads)], None if loss is None else reduced[-1]
        if self._tied is not None and self._tied_index is not None:
            shared = grads[self._tied_index] = grads[self._tied_index].contiguous()
            self._recorder.all_reduce(shared, self._tied, "tied")()
        return grads, loss

    def _over_replicas(self, tensors: list[Tensor], dp: dist.ProcessGroup) -> list[Tensor]:
        """Sums; all buckets are started before the first is waited for."""
        reduced: list[Tensor] = []
        finishers = []
        for bucket in in_buckets(tensors, self._bucket_bytes):
            parts, finish = self._start(bucket, dp, "dp_replicate")
            reduced += parts
            finishers.append(finish)
        for finish in finishers:
            finish()
        return reduced

    def _start(
        self, tensors: list[Tensor], group: dist.ProcessGroup, axis: str
    ) -> tuple[list[Tensor], Callable[[], None]]:
        """Views of one flat buffer whose sum is under way, and the wait for it."""
        whole = flat(tensors)
        finish = self._recorder.all_reduce(whole, group, axis)
        parts = torch.split(whole, [t.numel() for t in tensors])
        return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)], finish


def flat(tensors: list[Tensor]) -> Tensor:
    """One tensor [elements of all] that holds a copy of them."""
    return torch.cat([t.reshape(-1) for t in tensors])


def in_buckets(tensors: list[Tensor], limit_bytes: int = BUCKET_BYTES) -> list[list[Tensor]]:
    """Consecutive tensors up to `limit_bytes` each; a larger tensor is a bucket by itself."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not buckets or tensor.nbytes > room:
            buckets.append([])
            room = limit_bytes
        buckets[-1].append(tensor)
        room -= tensor.nbytes
    return buckets
