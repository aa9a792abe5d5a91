"""Gradients of a step made whole: summed over the ranks that hold parts of them.

Sums, each a flat all-reduce after the rank's last backward:
- `tp`: gradients of replicated weights (norms, routers), of which each tensor-parallel rank has the
  part of its tokens;
- `dp`: all others over the ranks that hold the same weights and see other tokens, in buckets as in
  PyTorch DDP (Li et al. 2020, arXiv:2006.15704), with the loss riding in the last one (losses are
  scaled so that the sum is the mean). Where FSDP has summed over dp_shard x cp, `dp_replicate`;
- `edp`: those of experts, over the ranks that hold the same experts;
- `ep`: those of experts with several holders;
- `tied`: the shared matrix of embedding and head, where two ranks or two blocks hold it.

The optimizer works on plain local tensors: AdamW is elementwise, so a shard needs nothing of the
others, and DTensor's dispatch stays out of it.
"""

import dataclasses
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from launch.runtime.pieces import Held, local_tensor
from launch.runtime.record import Recorder

BUCKET_BYTES = 25 * 2**20
Group = dist.ProcessGroup | None


def plain_held(module: nn.Module) -> list[Held]:
    """Parameters of a module outside a model, which have no canonical names."""
    held = []
    for parameter in module.parameters():
        partial = isinstance(parameter, DTensor) and not any(
            p.is_shard() for p in parameter.placements
        )
        held.append(
            Held(parameter=parameter, chunks=(), is_expert=False, holders=(), is_partial=partial)
        )
    return held


def take_grad(held: Held) -> Tensor:
    """This rank's gradient as a plain local tensor; the parameter's own is released."""
    parameter = held.parameter
    grad, parameter.grad = parameter.grad, None
    if grad is None:
        return torch.zeros_like(held.local)
    if isinstance(grad, DTensor) and isinstance(parameter, DTensor):
        is_sum = any(p.is_partial() for p in grad.placements)
        if not is_sum and grad.placements != parameter.placements:
            grad = grad.redistribute(placements=parameter.placements)
    return local_tensor(grad)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """Where sums go over; None where there is nothing to sum."""

    tp: Group = None
    dp: Group = None
    dp_axis: str = "dp"
    loss: Group = None
    """Of the loss, where it cannot ride in the last bucket of `dp`."""
    edp: Group = None
    ep: Group = None
    tied: Group = None


class GradientSync:
    """Sums gradients of one rank's stages."""

    def __init__(
        self,
        held: list[Held],
        recorder: Recorder,
        groups: Groups,
        *,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._held, self._recorder, self._groups = held, recorder, groups
        self._bucket_bytes = bucket_bytes
        self._tied = [
            i for i, h in enumerate(held) if h.chunks and h.chunks[0].name == "blocks.0.weight"
        ]

    @torch.no_grad()
    def run(self, grads: list[Tensor], loss: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Whole gradients, given this rank's in the order of `held`, and the loss summed over the
        data-parallel ranks (None in, None out)."""
        grads, groups = list(grads), self._groups
        if groups.tp is not None:
            self._sum([i for i, h in enumerate(self._held) if h.is_partial], grads, groups.tp, "tp")
        dense = [i for i, h in enumerate(self._held) if not h.is_expert]
        if groups.dp is not None:
            rides = groups.loss is None and loss is not None
            extra = [loss.to(grads[0].dtype)] if rides and loss is not None else []
            out = self._sum(dense, grads, groups.dp, groups.dp_axis, extra)
            loss = out[0] if rides else loss
        if loss is not None and groups.loss is not None:
            loss = loss.clone()
            self._recorder.all_reduce(loss, groups.loss, "dp")()
        if groups.edp is not None:
            experts = [i for i, h in enumerate(self._held) if h.is_expert]
            whole = [i for i in experts if not isinstance(self._held[i].parameter, DTensor)]
            self._sum(whole, grads, groups.edp, "edp")
        if groups.ep is not None:
            self._sum_replicas(grads, groups.ep)
        self._sum_tied(grads)
        return grads, loss

    def _sum(
        self, which: list[int], grads: list[Tensor], group: dist.ProcessGroup, axis: str,
        extra: list[Tensor] | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """Replace grads[which] by their sums; all buckets are started before the first is waited
        for. Returns the sums of `extra`, which ride along."""
        tensors = [grads[i] for i in which] + (extra or [])
        reduced: list[Tensor] = []
        finishers = []
        for bucket in in_buckets(tensors, self._bucket_bytes):
            parts, finish = self._start(bucket, group, axis)
            reduced += parts
            finishers.append(finish)
        for finish in finishers:
            finish()
        for i, part in zip(which, reduced, strict=False):
            grads[i] = part
        return reduced[len(which) :]

    def _start(
        self, tensors: list[Tensor], group: dist.ProcessGroup, axis: str
    ) -> tuple[list[Tensor], Callable[[], None]]:
        """Views of one flat buffer whose sum is under way, and the wait for it."""
        whole = flat(tensors)
        finish = self._recorder.all_reduce(whole, group, axis)
        parts = torch.split(whole, [t.numel() for t in tensors])
        return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)], finish

    def _sum_replicas(self, grads: list[Tensor], group: dist.ProcessGroup) -> None:
        """Experts with several holders: each rank adds its slots' gradients into a buffer of all
        such experts of a layer, which is summed, and takes its slots' sums out of it."""
        for held, grad in zip(self._held, grads, strict=True):
            if not held.replicated:
                continue
            buffer = grad.new_zeros((len(held.replicated), *held.slot_size))
            own = [
                (held.replicated.index(c.expert), c.where)
                for c in held.chunks
                if c.expert in held.replicated
            ]
            for row, where in own:
                buffer[row] += grad[where]
            self._recorder.all_reduce(buffer, group, "ep")()
            for row, where in own:
                grad[where] = buffer[row]

    def _sum_tied(self, grads: list[Tensor]) -> None:
        if len(self._tied) == 2:  # two blocks of this rank hold a copy each
            first, second = self._tied
            grads[first] = grads[first] + grads[second]
            grads[second] = grads[first].clone()  # clipping works in place
        elif self._tied and self._groups.tied is not None:
            shared = grads[self._tied[0]] = grads[self._tied[0]].contiguous()
            self._recorder.all_reduce(shared, self._groups.tied, "tied")()


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
