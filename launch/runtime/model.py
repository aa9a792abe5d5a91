"""The model that the reference runtime trains: blocks of a `ModelSpec`, and stages of them.

    dense layer:  x = x + o(attention(rope(q), rope(k), v));  x = x + down(silu(gate(x')) * up(x'))

with pre-normalisation by RMSNorm (Zhang & Sennrich 2019), rotary positions in the half-split form
(Su et al. 2021, as GPT-NeoX and the Hugging Face Llama lay them out), grouped-query attention
(Ainslie et al. 2023) and SwiGLU (Shazeer 2020). A parameter has the same fully qualified name in
every layout (`blocks.3.attention.q.weight`: block 3 of the model's chain), and its first values
follow from that name and the seed alone, so that every layout starts from equal weights.
"""

import functools
import hashlib
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from torch.utils.checkpoint import checkpoint

from planner.config import Recompute
from profiler.errors import UserError
from profiler.model import BlockKind, ModelSpec

INIT_STD = 0.02
"""Standard deviation of every matrix and bias at the start (GPT-2, Radford et al. 2019)."""


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dim."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`, which is this rank's shard where the weight is a DTensor."""
        weight: Tensor = self.weight
        if isinstance(weight, DTensor):
            # Each rank's gradient is its tokens' part of a sum over the tensor-parallel group.
            weight = weight.to_local(grad_placements=[Partial()])
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


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


class Attention(nn.Module):
    """Causal grouped-query attention; under tensor parallelism, this rank's share of the heads."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        h, d, bias = model.hidden_size, model.head_dim, model.qkv_bias
        self.q = nn.Linear(h, model.num_heads * d, bias=bias)
        self.k = nn.Linear(h, model.num_kv_heads * d, bias=bias)
        self.v = nn.Linear(h, model.num_kv_heads * d, bias=bias)
        self.o = nn.Linear(model.num_heads * d, h, bias=False)
        self.q_norm = RMSNorm(d, model.norm_eps) if model.qk_norm else None
        self.k_norm = RMSNorm(d, model.norm_eps) if model.qk_norm else None
        self.head_dim, self.theta = d, model.rope_theta

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        q, k, v = (self._heads(linear(x)) for linear in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = rope_tables(self.head_dim, self.theta, q.shape[1], q.device, q.dtype)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
            is_causal=True, enable_gqa=q.shape[2] != k.shape[2],
        )  # fmt: skip
        y: Tensor = self.o(out.transpose(1, 2).flatten(2))
        return y

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        h, f = model.hidden_size, model.ffn_hidden_size
        self.gate = nn.Linear(h, f, bias=False)
        self.up = nn.Linear(h, f, bias=False)
        self.down = nn.Linear(f, h, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class DenseLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(model.hidden_size, model.norm_eps)
        self.attention = Attention(model)
        self.ffn_norm = RMSNorm(model.hidden_size, model.norm_eps)
        self.ffn = FeedForward(model)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
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


def build_block(kind: BlockKind, model: ModelSpec) -> nn.Module:
    """One block with PyTorch's default first values, on the current default device.

    embed: token ids [b, s] -> [b, s, h]; dense: [b, s, h] -> [b, s, h]; head: [b, s, h] -> [b, s,
    v]. Raises `UserError` for a MoE layer.
    """
    if kind == "embed":
        return nn.Embedding(model.vocab_size, model.hidden_size)
    if kind == "dense":
        return DenseLayer(model)
    if kind == "head":
        return Head(model)
    raise UserError(
        f"model `{model.name}` has MoE layers, which the reference runtime does not train yet",
        hint="choose a dense model",
    )


class Stage(nn.Module):
    """Blocks [first, end) of `model.blocks`, run one after the other.

    `loss`, where the stage holds the head, turns (logits, targets) into a scalar.
    """

    def __init__(
        self,
        model: ModelSpec,
        first: int,
        end: int,
        *,
        recompute: Recompute = "none",
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.kinds = {str(i): model.blocks[i] for i in range(first, end)}
        self.blocks = nn.ModuleDict({i: build_block(k, model) for i, k in self.kinds.items()})
        self.recompute = recompute
        self.loss = loss

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """Token ids or activations -> activations or logits; with `targets`, the loss."""
        for name, block in self.blocks.items():
            if self.recompute == "full" and self.kinds[name] in ("dense", "moe"):
                # The layers draw no random numbers, so there is no generator state to restore.
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
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


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def init_parameters(module: nn.Module, prefix: str, seed: int, tied: str | None = None) -> None:
    """Fill parameters by (seed, `prefix` + name): ones for norms, else normal with `INIT_STD`.

    The draw has the full shape and is made on the CPU; a DTensor takes its shard of it. `tied` is
    the name of the embedding matrix where the head shares it: the head then draws by that name.
    """
    for name, parameter in module.named_parameters():
        full_name = prefix + name
        if "norm." in full_name:
            full = torch.ones(parameter.shape)
        else:
            drawn_as = tied if tied and full_name.endswith("output.weight") else full_name
            full = torch.empty(parameter.shape)
            full.normal_(std=INIT_STD, generator=_generator(seed, drawn_as))
        full = full.to(parameter.device)
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            full = distribute_tensor(full, mesh, placements, src_data_rank=None)
        parameter.copy_(full)
