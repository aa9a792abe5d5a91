"""What is trained: a decoder-only transformer as a chain of blocks.

A model is `embed, layer x num_layers, head`; a layer is `dense` (attention + SwiGLU) or `moe`
(attention + top-k routed SwiGLU experts, and where the model has them, one SwiGLU that every token
passes: shared experts). Parameter counts follow from the shapes alone:

    attention = h*(a*d) + 2*h*(g*d) + (a*d)*h   (+ biases of q, k, v; + q and k norms of size d)
    dense ffn = 3*h*f        norms = 2*h per layer, h before the head
    moe ffn   = e*3*h*x + h*e + 3*h*y           (+ h for the gate of the shared experts)

with h hidden, a heads, g key/value heads, d head dimension, f ffn width, e experts of width x, y
the width of the shared experts together.
Source of the shapes: the Hugging Face `config.json` fields named in `profiler.huggingface`.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from profiler.codec import record
from profiler.errors import UserError

BlockKind = Literal["embed", "dense", "moe", "head"]
Family = Literal["llama", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "dots1"]
RouterScore = Literal["softmax", "sigmoid"]
Positive = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]
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
    """Width of a dense layer's feed-forward network, and of an expert without a width of its own.
    """
    tie_embeddings: bool = False
    """The head uses the embedding matrix."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of q and k (Qwen3)."""
    num_experts: NotNegative = 0
    num_experts_per_token: NotNegative = 0
    first_dense_layers: NotNegative = 0
    """Layers before the first MoE layer that are dense (DeepSeek)."""
    expert_ffn_hidden_size: NotNegative = 0
    """Width of one routed expert; 0: `ffn_hidden_size`."""
    shared_ffn_hidden_size: NotNegative = 0
    """Width of the shared experts together; 0: there are none."""
    shared_gate: bool = False
    """The shared experts' output is scaled by a learned sigmoid of the token (Qwen2-MoE)."""
    router_score: RouterScore = "softmax"
    router_bias: bool = False
    """A bias that is no parameter is added to the scores when experts are chosen, not when they are
    weighted (DeepSeek-V3)."""
    norm_topk: bool = True
    """Weights of the chosen experts are divided by their sum."""
    routed_scale: PositiveFloat = 1.0
    """Factor on the routed experts' output."""
    num_expert_groups: Positive = 1
    """Groups of consecutive experts; a token goes to experts of `num_chosen_groups` of them, those
    with the largest sums of their two best scores (DeepSeek-V3)."""
    num_chosen_groups: Positive = 1
    capacity_factor: Annotated[float, Ge(0)] = 0.0
    """An expert takes at most capacity_factor * k / e of the tokens of each `capacity_group`,
    rounded up, and drops the rest; 0: nothing is dropped."""
    capacity_group: NotNegative = 0
    """Consecutive tokens of a sequence over which the capacity holds (a group of GShard, Lepikhin
    et al. 2020, section 2.2), so that what is dropped does not depend on the layout."""
    norm_eps: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 10000.0

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
        if self.first_dense_layers > self.num_layers:
            raise UserError(
                f"model `{self.name}`: {self.first_dense_layers} dense layers first, "
                f"but only {self.num_layers} layers"
            )
        if (self.capacity_factor > 0) != (self.capacity_group > 0):
            raise UserError(
                f"model `{self.name}`: `capacity_factor` and `capacity_group` go together"
            )
        _check_groups(self)

    @property
    def num_dense_layers(self) -> int:
        """Layers without routed experts."""
        return self.first_dense_layers if self.num_experts else self.num_layers

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts, which come last."""
        return self.num_layers - self.num_dense_layers

    @property
    def layer_kinds(self) -> tuple[BlockKind, ...]:
        """Kinds of layer that the model has, in the order of the chain."""
        return tuple(dict.fromkeys(self.blocks[1:-1]))

    @property
    def blocks(self) -> tuple[BlockKind, ...]:
        """The chain of blocks, embedding first."""
        dense: list[BlockKind] = ["dense"] * self.num_dense_layers
        moe: list[BlockKind] = ["moe"] * self.num_moe_layers
        return ("embed", *dense, *moe, "head")

    @property
    def attention_params(self) -> int:
        """Parameters of one attention, biases and q/k norms included."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        biases = q + 2 * kv if self.qkv_bias else 0
        norms = 2 * self.head_dim if self.qk_norm else 0
        return self.hidden_size * (2 * q + 2 * kv) + biases + norms

    @property
    def expert_width(self) -> int:
        """Width of one routed expert."""
        return self.expert_ffn_hidden_size or self.ffn_hidden_size

    @property
    def ffn_params(self) -> int:
        """Parameters of a dense layer's feed-forward network."""
        return 3 * self.hidden_size * self.ffn_hidden_size

    @property
    def expert_params(self) -> int:
        """Parameters of one routed expert."""
        return 3 * self.hidden_size * self.expert_width

    @property
    def shared_params(self) -> int:
        """Parameters of the shared experts of a MoE layer, their gate included."""
        return self.hidden_size * (3 * self.shared_ffn_hidden_size + self.shared_gate)

    def block_params(self, kind: BlockKind) -> int:
        """Parameters of one block; a tied head counts its norm alone."""
        if kind == "embed":
            return self.vocab_size * self.hidden_size
        if kind == "head":
            matrix = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
            return matrix + self.hidden_size
        ffn = self.ffn_params
        if kind == "moe":
            router = self.hidden_size * self.num_experts
            ffn = self.num_experts * self.expert_params + router + self.shared_params
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
        routed = self.num_experts_per_token * self.expert_params + self.shared_params
        active = (
            self.num_layers * self.attention_params
            + self.num_dense_layers * self.ffn_params
            + self.num_moe_layers * (routed + self.hidden_size * self.num_experts)
        )
        head = self.vocab_size * self.hidden_size
        scores = 6.0 * seq_len * self.num_heads * self.head_dim
        return 6.0 * (active + head) + self.num_layers * scores


def _check_groups(model: ModelSpec) -> None:
    groups, chosen = model.num_expert_groups, model.num_chosen_groups
    if groups == 1 and chosen == 1:
        return
    sizes = f"model `{model.name}`: {model.num_experts} experts in {groups} groups"
    if model.num_experts % groups or model.num_experts // groups < 2:
        raise UserError(f"{sizes} do not make equal groups of two or more")
    if chosen > groups or chosen * (model.num_experts // groups) < model.num_experts_per_token:
        raise UserError(
            f"{sizes}: {model.num_experts_per_token} experts cannot be chosen from {chosen} groups"
        )
