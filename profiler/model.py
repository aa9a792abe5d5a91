"""What is trained: a decoder-only transformer as a chain of blocks.

A model is `embed, layer x num_layers, head`; a layer is `dense` (attention + SwiGLU) or `moe`
(attention + top-k routed SwiGLU experts). Parameter counts follow from the shapes alone:

    attention = h*(a*d) + 2*h*(g*d) + (a*d)*h   (+ biases of q, k, v; + q and k norms of size d)
    dense ffn = 3*h*f        moe ffn = e*3*h*f + h*e        norms = 2*h per layer, h before the head

with h hidden, a heads, g key/value heads, d head dimension, f ffn width, e experts.
Source of the shapes: the Hugging Face `config.json` fields named in `profiler.huggingface`.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from profiler.codec import record
from profiler.errors import UserError

BlockKind = Literal["embed", "dense", "moe", "head"]
Family = Literal["llama", "qwen2", "qwen3", "mixtral"]
Positive = Annotated[int, Gt(0)]
NotNegative = Annotated[int, Ge(0)]


@record
class ModelSpec:
    """Shape of one model. Sizes are element counts; `num_experts` 0 means a dense model."""

    name: str
    """Name for people; takes no part in any computation."""
    family: Family
    """Architecture family, which fixes norms, activation and biases."""
    vocab_size: Positive
    hidden_size: Positive
    num_layers: Annotated[int, Gt(0), Le(10**5)]
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    ffn_hidden_size: Positive
    """Width of the feed-forward network, per expert in a MoE layer."""
    tie_embeddings: bool = False
    """The head uses the embedding matrix."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of q and k (Qwen3)."""
    num_experts: NotNegative = 0
    num_experts_per_token: NotNegative = 0
    norm_eps: Annotated[float, Gt(0)] = 1e-5
    rope_theta: Annotated[float, Gt(0)] = 10000.0

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model `{self.name}`: {self.num_heads} heads do not divide "
                f"into {self.num_kv_heads} key/value heads"
            )
        if self.num_experts_per_token > self.num_experts:
            raise UserError(
                f"model `{self.name}`: {self.num_experts_per_token} experts per token, "
                f"but only {self.num_experts} experts"
            )
        if (self.num_experts > 0) != (self.num_experts_per_token > 0):
            raise UserError(
                f"model `{self.name}`: `num_experts` and `num_experts_per_token` go together"
            )

    @property
    def layer_kind(self) -> BlockKind:
        """Kind of every layer."""
        return "moe" if self.num_experts else "dense"

    @property
    def blocks(self) -> tuple[BlockKind, ...]:
        """The chain of blocks, embedding first."""
        return ("embed", *(self.layer_kind for _ in range(self.num_layers)), "head")

    @property
    def attention_params(self) -> int:
        """Parameters of one attention, biases and q/k norms included."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        biases = q + 2 * kv if self.qkv_bias else 0
        norms = 2 * self.head_dim if self.qk_norm else 0
        return self.hidden_size * (2 * q + 2 * kv) + biases + norms

    @property
    def expert_params(self) -> int:
        """Parameters of one SwiGLU network (the whole FFN of a dense layer)."""
        return 3 * self.hidden_size * self.ffn_hidden_size

    def block_params(self, kind: BlockKind) -> int:
        """Parameters of one block; a tied head counts its norm alone."""
        if kind == "embed":
            return self.vocab_size * self.hidden_size
        if kind == "head":
            matrix = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
            return matrix + self.hidden_size
        ffn = self.expert_params
        if kind == "moe":
            ffn = self.num_experts * self.expert_params + self.hidden_size * self.num_experts
        return self.attention_params + ffn + 2 * self.hidden_size

    @property
    def num_params(self) -> int:
        """All parameters, a tied matrix once."""
        return sum(self.block_params(kind) for kind in self.blocks)

    def flops_per_token(self, seq_len: int) -> float:
        """Model FLOPs of forward + backward per token (the numerator of MFU).

        6 per active matrix parameter, plus 6*s*a*d per layer for causal attention scores and
        values (PaLM, Chowdhery et al. 2022, appendix B, halved for the causal mask). The embedding
        look-up counts nothing.
        """
        active = self.attention_params + (
            self.num_experts_per_token * self.expert_params + self.hidden_size * self.num_experts
            if self.num_experts
            else self.expert_params
        )
        head = self.vocab_size * self.hidden_size
        scores = 6.0 * seq_len * self.num_heads * self.head_dim
        return 6.0 * (self.num_layers * active + head) + self.num_layers * scores
