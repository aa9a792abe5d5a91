"""SwiGLU (Shazeer 2020, arXiv:2002.05202): `down(silu(gate(x)) * up(x))`."""

import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def _product(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def gated(gate: Tensor, up: Tensor, *, again: bool) -> Tensor:
    """`silu(gate) * up`; `again`: backward computes it again instead of keeping it and the silu."""
    if again:
        out: Tensor = checkpoint(_product, gate, up, use_reentrant=False, preserve_rng_state=False)
        return out
    return _product(gate, up)


class FeedForward(nn.Module):
    """SwiGLU of one width."""

    def __init__(self, hidden: int, width: int, *, again: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, width, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.down = nn.Linear(width, hidden, bias=False)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        y: Tensor = self.down(gated(self.gate(x), self.up(x), again=self.again))
        return y
