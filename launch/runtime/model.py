"""The model that the reference runtime trains: blocks of a `ModelSpec`, and stages of them.

    layer:  x = x + o(attention(rope(q), rope(k), v));  x = x + ffn(x')

with pre-normalisation by RMSNorm, rotary positions in the half-split form (Su et al. 2021, as
GPT-NeoX and the Hugging Face Llama lay them out), grouped-query attention (Ainslie et al. 2023),
and as ffn SwiGLU or a mixture of experts. A parameter has the same fully qualified name in every
layout (`blocks.3.attention.q.weight`: block 3 of the model's chain).
"""

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from launch.runtime.attention import whole_attention
from launch.runtime.experts import MoE
from launch.runtime.feedforward import FeedForward
from launch.runtime.norm import RMSNorm
from planner.config import Recompute
from profiler.model import BlockKind, ModelSpec


@functools.lru_cache(maxsize=8)
def rope_tables(
    head_dim: int, theta: float, seq_len: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [seq_len, 1, head_dim], computed in float64 once per process."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    angle = torch.arange(seq_len, dtype=torch.float64, device=device)[:, None] / theta**exponent
    angle = torch.cat((angle, angle), dim=-1)[:, None, :]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x [b, s, heads, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@dataclasses.dataclass(frozen=True)
class Context:
    """This rank's part of each sequence, under context parallelism."""

    positions: Tensor
    """Of its tokens, [s / cp]."""
    seq_len: int
    """Of the whole sequence."""
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Causal attention of this rank's queries [b, s, heads, d] over all keys and values."""


class Attention(nn.Module):
    """Causal grouped-query attention; under tensor parallelism, this rank's share of the heads."""

    def __init__(self, model: ModelSpec, *, again: bool = False) -> None:
        """`again`: backward computes everything between the products with weights once more."""
        super().__init__()
        h, d, bias = model.hidden_size, model.head_dim, model.qkv_bias
        self.q = nn.Linear(h, model.num_heads * d, bias=bias)
        self.k = nn.Linear(h, model.num_kv_heads * d, bias=bias)
        self.v = nn.Linear(h, model.num_kv_heads * d, bias=bias)
        self.o = nn.Linear(model.num_heads * d, h, bias=False)
        self.q_norm = RMSNorm(d, model.norm_eps) if model.qk_norm else None
        self.k_norm = RMSNorm(d, model.norm_eps) if model.qk_norm else None
        self.head_dim, self.theta, self.again = d, model.rope_theta, again
        self.context: Context | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        q, k, v = (self._heads(linear(x)) for linear in (self.q, self.k, self.v))
        if self.again:
            out = checkpoint(self._core, q, k, v, use_reentrant=False, preserve_rng_state=False)
        else:
            out = self._core(q, k, v)
        y: Tensor = self.o(out.flatten(2))
        return y

    def _core(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        context = self.context
        seq_len = context.seq_len if context else q.shape[1]
        cos, sin = rope_tables(self.head_dim, self.theta, seq_len, q.device, q.dtype)
        if context:
            cos, sin = cos[context.positions], sin[context.positions]
        attend = context.attend if context else whole_attention
        return attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim)


class Layer(nn.Module):
    """Attention and feed-forward network, each behind a norm and around a residual."""

    def __init__(self, model: ModelSpec, kind: BlockKind, recompute: Recompute = "none") -> None:
        super().__init__()
        again, h = recompute == "selective", model.hidden_size
        self.attention_norm = RMSNorm(h, model.norm_eps)
        self.attention = Attention(model, again=again)
        self.ffn_norm = RMSNorm(h, model.norm_eps)
        self.ffn: nn.Module = (
            MoE(model, again=again)
            if kind == "moe"
            else FeedForward(h, model.ffn_hidden_size, again=again)
        )
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        if self.recompute == "full":
            # The layers draw no random numbers, so there is no generator state to restore.
            y: Tensor = checkpoint(self._run, x, use_reentrant=False, preserve_rng_state=False)
            return y
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        y: Tensor = x + self.ffn(self.ffn_norm(x))
        return y


class Head(nn.Module):
    """Final norm and output matrix."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.norm = RMSNorm(model.hidden_size, model.norm_eps)
        self.output = nn.Linear(model.hidden_size, model.vocab_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> logits [b, s, v]."""
        y: Tensor = self.output(self.norm(x))
        return y


def build_block(kind: BlockKind, model: ModelSpec, recompute: Recompute = "none") -> nn.Module:
    """One block with PyTorch's default first values, on the current default device.

    embed: token ids [b, s] -> [b, s, h]; dense, moe: [b, s, h] -> [b, s, h]; head: [b, s, h] ->
    [b, s, v].
    """
    if kind == "embed":
        return nn.Embedding(model.vocab_size, model.hidden_size)
    if kind == "head":
        return Head(model)
    return Layer(model, kind, recompute)


class Stage(nn.Module):
    """Blocks [first, end) of `model.blocks`, run one after the other; there may be none.

    `recompute` is per block of the stage; `loss`, where the stage holds the head, turns (logits,
    targets) into a scalar.
    """

    def __init__(
        self,
        model: ModelSpec,
        first: int,
        end: int,
        *,
        recompute: tuple[Recompute, ...] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.kinds = {str(i): model.blocks[i] for i in range(first, end)}
        again: list[Recompute] = list(recompute or ["none"] * len(self.kinds))
        self.blocks = nn.ModuleDict(
            {
                i: build_block(kind, model, r)
                for (i, kind), r in zip(self.kinds.items(), again, strict=True)
            }
        )
        self.loss = loss

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """Token ids or activations -> activations or logits; with `targets`, the loss."""
        if not self.blocks:
            return x.clone()  # the pipeline takes its outputs apart from its inputs
        for block in self.blocks.values():
            x = block(x)
        if targets is not None and self.loss is not None:
            return self.loss(x, targets)
        return x

    def tie(self) -> None:
        """One matrix for embedding and head, where this stage holds both."""
        embed = next((self.blocks[i] for i, k in self.kinds.items() if k == "embed"), None)
        head = next((self.blocks[i] for i, k in self.kinds.items() if k == "head"), None)
        if isinstance(embed, nn.Embedding) and isinstance(head, Head):
            head.output.weight = embed.weight
