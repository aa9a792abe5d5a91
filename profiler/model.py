"""What is trained: a decoder-only transformer as a chain of blocks.

A model is `embed, layer x num_layers, mtp x num_mtp_layers, head`; a layer is `dense` (attention +
feed-forward network) or `moe` (attention + top-k routed experts, and where the model has them,
shared experts that every token passes). Its attention is full, sliding (a window of tokens) or
linear (a recurrent state); heads are grouped (num_kv_heads) or compressed (MLA, DeepSeek-V2). A
`mtp` block (multi-token prediction, DeepSeek-V3) projects the hidden state and the next token's
embedding to one, passes it through one more layer, and shares the embedding and the head.
`profiler.model_counts` counts parameters and FLOPs from these shapes alone.
Source of the shapes: the Hugging Face `config.json` keys named in `profiler.huggingface`.
"""

from collections import Counter
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from profiler import model_counts as counts
from profiler.codec import record
from profiler.model_checks import check_model

BlockKind = Literal["embed", "dense", "moe", "mtp", "head"]
Family = Literal[
    "llama", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "dots1",
    "gpt2", "gpt_neox", "bloom", "mpt", "nemotron", "internlm", "phi", "phi3", "gemma2",
    "gemma3_text", "llama4_text", "gpt_oss", "grok-1", "deepseek_v2", "deepseek_v3", "kimi_k2",
    "qwen3_next",
]  # fmt: skip
"""`model_type` of Hugging Face."""
RouterScore = Literal["softmax", "sigmoid"]
Activation = Literal["silu", "gelu", "relu2"]
Attention = Literal["full", "sliding", "linear"]
Position = Literal["rope", "learned", "alibi", "none"]
Positive = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]
NotNegative = Annotated[int, Ge(0)]


@record
class ModelSpec:
    """Shape of one model. Sizes are element counts; `num_experts` 0 means a dense model."""

    name: str
    """Name for people; takes no part in any computation."""
    family: Family
    """Architecture family: what its fields do not say (angles of rotary embedding, caps on logits,
    the place of norms) is as the family's modelling code in `transformers` does it."""
    vocab_size: Positive
    hidden_size: Positive
    num_layers: Annotated[int, Gt(0), Le(10**5)]
    num_heads: Positive
    num_kv_heads: Positive
    """Of MLA, as many as heads."""
    head_dim: Positive
    """Of q, k and v; of MLA, the part of q and k without position."""
    ffn_hidden_size: Positive
    """Width of a dense layer's feed-forward network, and of an expert without a width of its own.
    """
    gated_ffn: bool = True
    """Three matrices, activation(x gate) * (x up) down; False: two."""
    activation: Activation = "silu"
    """relu2: squared ReLU (Nemotron-4, arXiv 2402.16819)."""
    tie_embeddings: bool = False
    """The head uses the embedding matrix."""
    qkv_bias: bool = False
    out_bias: bool = False
    """Bias of the attention's output projection."""
    ffn_bias: bool = False
    """Biases of a dense feed-forward network's matrices."""
    head_bias: bool = False
    """Bias of the head (Phi-2)."""
    layer_norm: bool = False
    """LayerNorm instead of RMSNorm, also before the head."""
    norm_bias: bool = True
    """A LayerNorm has a bias (MPT's has none); an RMSNorm has none in any case."""
    norms_per_layer: Positive = 2
    """Norms of width `hidden_size` in a layer (Gemma 4, Phi 1)."""
    embed_norm: bool = False
    """A norm behind the embedding (BLOOM)."""
    position: Position = "rope"
    """rope: rotary, no parameters; learned: a matrix of `max_positions` rows in `embed`."""
    max_positions: NotNegative = 0
    """Rows of the learned position embedding; 0 with any other."""
    rope_scaling: Annotated[str, MaxLen(40)] = ""
    """Rule by which rotary angles are stretched to a longer context (yarn, llama3); empty: none.
    Changes neither counts nor times."""
    qk_norm: bool = False
    """RMSNorm over each head of q and k (Qwen3)."""
    attention_gate: bool = False
    """The q projection also gives a gate of the size of q on the output (Qwen3-Next)."""
    attention_sinks: bool = False
    """One learned logit per head (gpt-oss)."""
    attention_pattern: Annotated[tuple[Attention, ...], MinLen(1), MaxLen(10**5)] = ("full",)
    """Attention of the layers, repeated from the first to the last."""
    window: NotNegative = 0
    """Tokens a sliding layer looks back on, its own included; 0: no layer slides."""
    chunked_window: bool = False
    """The window begins anew every `window` tokens (Llama 4) instead of sliding."""
    q_lora_rank: NotNegative = 0
    """MLA: width q is compressed to; 0: it is not."""
    kv_lora_rank: NotNegative = 0
    """MLA: width k and v are compressed to; 0: the attention is no MLA."""
    rope_head_dim: NotNegative = 0
    """MLA: rotary part of a q or k head, beside `head_dim`; k's is one for all heads."""
    value_head_dim: NotNegative = 0
    """Width of a v head; 0: `head_dim`."""
    linear_num_key_heads: NotNegative = 0
    """Of linear layers (gated delta net, arXiv 2412.06464): heads of q and k."""
    linear_num_value_heads: NotNegative = 0
    linear_key_head_dim: NotNegative = 0
    linear_value_head_dim: NotNegative = 0
    linear_conv_kernel: NotNegative = 0
    """Tokens that the causal convolution over q, k and v spans."""
    num_experts: NotNegative = 0
    num_experts_per_token: NotNegative = 0
    first_dense_layers: NotNegative = 0
    """Layers before the first MoE layer that are dense (DeepSeek)."""
    moe_every: Positive = 1
    """After those, each `moe_every`-th layer is MoE and the others are dense (Llama 4 Maverick)."""
    expert_ffn_hidden_size: NotNegative = 0
    """Width of one routed expert; 0: `ffn_hidden_size`."""
    expert_bias: bool = False
    """Biases of a routed expert's matrices (gpt-oss)."""
    shared_ffn_hidden_size: NotNegative = 0
    """Width of the shared experts together; 0: there are none."""
    shared_gate: bool = False
    """The shared experts' output is scaled by a learned sigmoid of the token (Qwen2-MoE)."""
    router_score: RouterScore = "softmax"
    router_bias: bool = False
    """A bias that is no parameter is added to the scores when experts are chosen, not when they are
    weighted (DeepSeek-V3)."""
    router_linear_bias: bool = False
    """The router's matrix has a learned bias (gpt-oss)."""
    norm_topk: bool = True
    """Weights of the chosen experts are divided by their sum."""
    routed_scale: PositiveFloat = 1.0
    """Factor on the routed experts' output."""
    num_expert_groups: Positive = 1
    """Groups of consecutive experts; a token goes to experts of `num_chosen_groups` of them, those
    with the largest sums of their two best scores (DeepSeek-V3) or the best score (DeepSeek-V2)."""
    num_chosen_groups: Positive = 1
    capacity_factor: Annotated[float, Ge(0)] = 0.0
    """An expert takes at most capacity_factor * k / e of the tokens of each `capacity_group`,
    rounded up, and drops the rest; 0: nothing is dropped."""
    capacity_group: NotNegative = 0
    """Consecutive tokens of a sequence over which the capacity holds (a group of GShard, Lepikhin
    et al. 2020, section 2.2), so that what is dropped does not depend on the layout."""
    num_mtp_layers: NotNegative = 0
    """Multi-token-prediction modules that are trained with the model (DeepSeek-V3)."""
    norm_eps: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 10000.0

    def __post_init__(self) -> None:
        check_model(self)

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts, `mtp` blocks not counted."""
        if not self.num_experts:
            return 0
        return (self.num_layers - self.first_dense_layers) // self.moe_every

    @property
    def num_dense_layers(self) -> int:
        """Layers without routed experts, `mtp` blocks not counted."""
        return self.num_layers - self.num_moe_layers

    @property
    def blocks(self) -> tuple[BlockKind, ...]:
        """The chain of blocks, embedding first; layer i is block i + 1."""
        mtp: list[BlockKind] = ["mtp"] * self.num_mtp_layers
        return ("embed", *self._layers, *mtp, "head")

    @property
    def _layers(self) -> list[BlockKind]:
        if not self.num_experts:
            return ["dense"] * self.num_layers
        layers: list[BlockKind] = ["dense"] * self.num_layers
        for layer in range(
            self.first_dense_layers + self.moe_every - 1, self.num_layers, self.moe_every
        ):
            layers[layer] = "moe"
        return layers

    @property
    def layer_kinds(self) -> tuple[BlockKind, ...]:
        """Kinds of block between `embed` and `head`, in the order of the chain; `mtp` is one."""
        return tuple(dict.fromkeys(self.blocks[1:-1]))

    @property
    def is_mla(self) -> bool:
        """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
        return self.kv_lora_rank > 0

    @property
    def qk_head_dim(self) -> int:
        """Width of a head of q and k."""
        return self.head_dim + self.rope_head_dim

    @property
    def v_head_dim(self) -> int:
        """Width of a head of v."""
        return self.value_head_dim or self.head_dim

    def attention_of(self, layer: int) -> Attention:
        """Attention of a layer, counted from 0; an `mtp` block has that of the last layer."""
        return self.attention_pattern[min(layer, self.num_layers - 1) % len(self.attention_pattern)]

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Attention of each layer in order, `mtp` blocks not counted."""
        pattern = self.attention_pattern
        return (pattern * -(-self.num_layers // len(pattern)))[: self.num_layers]

    @property
    def layer_counts(self) -> Counter[tuple[BlockKind, Attention]]:
        """How many layers there are of each kind and attention, `mtp` blocks not counted."""
        return Counter(zip(self._layers, self.attentions, strict=True))

    @property
    def attention_params(self) -> int:
        """Parameters of one full or sliding attention, biases, sinks and inner norms included."""
        return counts.attention_params(self)

    @property
    def linear_attention_params(self) -> int:
        """Parameters of one linear attention, its convolution and norm included."""
        return counts.linear_attention_params(self)

    @property
    def expert_width(self) -> int:
        """Width of one routed expert."""
        return self.expert_ffn_hidden_size or self.ffn_hidden_size

    @property
    def ffn_params(self) -> int:
        """Parameters of a dense layer's feed-forward network."""
        return counts.ffn_params(self, self.ffn_hidden_size, bias=self.ffn_bias)

    @property
    def expert_params(self) -> int:
        """Parameters of one routed expert."""
        return counts.ffn_params(self, self.expert_width, bias=self.expert_bias)

    @property
    def shared_params(self) -> int:
        """Parameters of the shared experts of a MoE layer, their gate included."""
        return counts.shared_params(self)

    @property
    def router_params(self) -> int:
        """Parameters of the router of a MoE layer."""
        return (self.hidden_size + self.router_linear_bias) * self.num_experts

    @property
    def norm_params(self) -> int:
        """Parameters of one norm of width `hidden_size`."""
        return self.hidden_size * (2 if self.layer_norm and self.norm_bias else 1)

    def layer_params(self, layer: int) -> int:
        """Parameters of a layer, counted from 0."""
        return counts.layer_params(self, self._layers[layer], self.attention_of(layer))

    def block_params(self, kind: BlockKind) -> int:
        """Parameters of one block; a tied head counts its norm and bias alone.

        Where the layers of a kind have attentions of different sizes: their mean, rounded up.
        """
        return counts.block_params(self, kind)

    @property
    def num_params(self) -> int:
        """All parameters, a tied matrix once, those of `mtp` blocks included."""
        return counts.num_params(self)

    def mean_context(self, attention: Attention, seq_len: int) -> float:
        """Tokens that a token of a sequence attends to on average, causal mask and window applied;
        0 for linear attention."""
        return counts.mean_context(self, attention, seq_len)

    def flops_per_token(self, seq_len: int) -> float:
        """Model FLOPs of forward + backward per token (the numerator of MFU).

        6 per active matrix parameter, plus the products of attention over the tokens each layer
        sees: 6*s*a*d per layer where it is full and causal (PaLM, Chowdhery et al. 2022, appendix
        B, halved for the causal mask). The embedding look-up counts nothing.
        """
        return counts.flops_per_token(self, seq_len)
