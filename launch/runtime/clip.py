"""Clipping by the norm of all gradients (Pascanu et al. 2013, arXiv:1211.5063).

    norm^2 = sum over ranks and chunks of |chunk|^2 / (ranks that hold an equal copy)

one all-reduce of a number over all ranks; then every gradient times min(1, limit / (norm + 1e-6)),
as `torch.nn.utils.clip_grad_norm_` has it.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from launch.runtime.pieces import Held
from launch.runtime.record import Recorder


@torch.no_grad()
def clip_(grads: list[Tensor], held: list[Held], limit: float, recorder: Recorder) -> float:
    """Clip in place; the norm before. Every rank of the world must call it."""
    device = grads[0].device if grads else torch.device("cpu")
    total = torch.zeros((), dtype=torch.float64, device=device)
    for grad, one in zip(grads, held, strict=True):
        for chunk, holders in zip(one.chunks, one.holders, strict=True):
            part = torch.linalg.vector_norm(
                grad[chunk.where], dtype=torch.promote_types(grad.dtype, torch.float32)
            )
            total += part.double().square() / holders
    world = dist.group.WORLD
    if world is not None and world.size() > 1:
        recorder.all_reduce(total, world, "world")()
    norm = float(total.sqrt())
    if norm > limit:
        for grad in grads:
            grad.mul_(limit / (norm + 1e-6))
    return norm
