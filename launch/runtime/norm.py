"""RMSNorm, and how a module reads a weight that every rank of a tensor-parallel group holds."""

import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn, ones
from torch.distributed.tensor import DTensor, Partial


def replicated(weight: Tensor) -> Tensor:
    """The plain tensor of a weight that may be a replicated DTensor.

    Each rank's gradient is its tokens' part of a sum over the group, which is taken once per step.
    """
    if isinstance(weight, DTensor):
        return weight.to_local(grad_placements=[Partial()])
    return weight


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dim (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`, which is this rank's shard where the weight is a DTensor."""
        return F.rms_norm(x, (x.shape[-1],), replicated(self.weight), self.eps)
