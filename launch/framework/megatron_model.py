"""A model's shape as arguments of Megatron-LM's `pretrain_gpt.py`.

Names and meanings: `megatron/training/arguments.py` and `megatron/core/transformer/
transformer_config.py` of megatron-core 0.19.2. Its GPT has no dropout here, untied embeddings
unless the model ties them, and a vocabulary of exactly the model's size.
"""

from collections.abc import Callable, Iterator

from launch.framework.base import Need, Refusal
from profiler.model import Family, ModelSpec

Option = tuple[str, ...]
"""An argument and its values."""

FAMILIES: tuple[Family, ...] = (
    "llama", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "dots1", "gpt2", "internlm",
    "phi3", "deepseek_v2", "deepseek_v3", "kimi_k2",
)  # fmt: skip
"""Whose modelling code the arguments below say in full: of others something would be lost that a
`ModelSpec` does not have either (caps on logits, parallel residuals, partly rotary heads)."""

_PARTS: tuple[tuple[str, Callable[[ModelSpec], object]], ...] = (
    ("linear attention", lambda m: "linear" in m.attention_pattern),
    ("windows that begin anew", lambda m: m.chunked_window),
    ("another number of norms than two a layer", lambda m: m.norms_per_layer != 2),
    ("a norm behind the embedding", lambda m: m.embed_norm),
    ("a LayerNorm without a bias", lambda m: m.layer_norm and not m.norm_bias),
    ("ALiBi", lambda m: m.position == "alibi"),
    ("MTP with learned positions", lambda m: m.num_mtp_layers and m.position == "learned"),
    ("value heads of another width", lambda m: not m.is_mla and m.v_head_dim != m.head_dim),
    ("a router's bias with softmax", lambda m: m.router_bias and m.router_score == "softmax"),
    ("a gated GELU", lambda m: m.gated_ffn and m.activation != "silu"),
    ("SiLU without a gate", lambda m: not m.gated_ffn and m.activation == "silu"),
    ("a bias of the head", lambda m: m.head_bias),
    ("biases of some matrices alone", lambda m: not _biases_known(m)),
    ("expert capacity in groups of tokens", lambda m: m.capacity_factor),
    (
        "the normalised weight of a single expert, which is 1 and learns nothing",
        lambda m: m.num_experts and m.norm_topk and m.num_experts_per_token == 1,
    ),
    (
        "groups of which no expert's scores are summed",
        lambda m: m.num_expert_groups > 1 and m.num_experts_per_token < m.num_chosen_groups,
    ),
    (
        "sigmoid routing without normalised weights",
        lambda m: (
            m.router_score == "sigmoid" and not m.norm_topk and m.num_experts_per_token > 1
        ),
    ),
)  # fmt: skip


def _biases_known(m: ModelSpec) -> bool:
    """All matrices have biases, or none but q, k and v."""
    all_of = m.out_bias and m.ffn_bias and m.qkv_bias
    none_of = not (m.out_bias or m.ffn_bias or m.expert_bias or m.router_linear_bias)
    return bool(all_of or none_of)


def refusals(model: ModelSpec) -> Iterator[Refusal]:
    """Parts that the arguments cannot say."""
    for part, has in _PARTS:
        if has(model):
            yield Refusal(f"no arguments are written for {part}")
    if model.family not in FAMILIES:
        yield Refusal(f"family `{model.family}` is more than its arguments say")


def shape(m: ModelSpec, seq_len: int) -> list[Option]:
    """Sizes and the parts of a layer."""
    options: list[Option] = [
        ("--num-layers", str(m.num_layers)),
        ("--hidden-size", str(m.hidden_size)),
        ("--ffn-hidden-size", str(m.ffn_hidden_size)),
        ("--num-attention-heads", str(m.num_heads)),
        ("--padded-vocab-size", str(m.vocab_size)),
        ("--max-position-embeddings", str(max(seq_len, m.max_positions))),
        ("--normalization", "LayerNorm" if m.layer_norm else "RMSNorm"),
        ("--norm-epsilon", f"{m.norm_eps:g}"),
        ("--attention-dropout", "0.0"),
        ("--hidden-dropout", "0.0"),
    ]
    if m.gated_ffn:
        options.append(("--swiglu",))
    elif m.activation == "relu2":
        options.append(("--squared-relu",))
    if not m.out_bias:
        options.append(("--disable-bias-linear",))
        if m.qkv_bias:
            options.append(("--add-qkv-bias",))
    if not m.tie_embeddings:
        options.append(("--untie-embeddings-and-output-weights",))
    if m.num_mtp_layers:
        options.append(("--mtp-num-layers", str(m.num_mtp_layers)))
    return options


def attention(m: ModelSpec) -> list[Option]:
    """Heads, positions, windows."""
    options: list[Option] = [("--position-embedding-type", _position(m))]
    if m.position == "rope":
        options += [("--rotary-base", f"{m.rope_theta:.0f}")]
        options += [("$ROPE_ARGS",)] if m.rope_scaling else []
    options.append(("--kv-channels", str(m.head_dim)))
    if m.is_mla:
        options += _latent(m)
    elif m.num_kv_heads != m.num_heads:
        options += [("--group-query-attention",), ("--num-query-groups", str(m.num_kv_heads))]
    if m.qk_norm:
        options.append(("--qk-layernorm",))
    if m.attention_gate:
        options.append(("--attention-output-gate",))
    if m.attention_sinks:
        options.append(("--softmax-type", "learnable"))
    if "sliding" in m.attention_pattern:
        # Of the tokens looked back on, Megatron does not count the token itself.
        options.append(("--window-size", f"{m.window - 1},0"))
        slides = [int(m.attention_of(layer) == "sliding") for layer in range(m.num_layers)]
        options.append(("--window-attn-skip-freq", _pattern(slides)))
    return options


def _position(m: ModelSpec) -> str:
    return {"rope": "rope", "learned": "learned_absolute", "none": "none"}[m.position]


def _latent(m: ModelSpec) -> list[Option]:
    """MLA, whose compressed q and k/v have norms (DeepSeek-V2, arXiv 2405.04434)."""
    q = [("--q-lora-rank", str(m.q_lora_rank))] if m.q_lora_rank else []
    return [
        ("--multi-latent-attention",),
        *q,
        ("--kv-lora-rank", str(m.kv_lora_rank)),
        ("--qk-head-dim", str(m.head_dim)),
        ("--qk-pos-emb-head-dim", str(m.rope_head_dim)),
        ("--v-head-dim", str(m.v_head_dim)),
        *([] if m.qk_norm else [("--qk-layernorm",)]),
        # Its own default stretches the angles.
        *([] if m.rope_scaling else [("--rope-type", "rope")]),
    ]


def experts(m: ModelSpec) -> list[Option]:
    """Routed and shared experts, and how tokens choose; empty for a dense model."""
    if not m.num_moe_layers:
        return []
    options: list[Option] = [
        ("--num-experts", str(m.num_experts)),
        ("--moe-ffn-hidden-size", str(m.expert_width)),
        ("--moe-router-topk", str(m.num_experts_per_token)),
        ("--moe-router-score-function", m.router_score),
        ("--moe-token-dispatcher-type", "alltoall"),
        ("--moe-grouped-gemm",),
    ]
    if m.num_dense_layers:
        kinds = [int(kind == "moe") for kind in m.blocks[1 : 1 + m.num_layers]]
        options.append(("--moe-layer-freq", _pattern(kinds)))
    if m.router_score == "softmax" and not m.norm_topk:
        options.append(("--moe-router-pre-softmax",))
    if m.router_bias:
        options.append(("--moe-router-enable-expert-bias",))
    if m.routed_scale != 1.0:
        options.append(("--moe-router-topk-scaling-factor", f"{m.routed_scale:g}"))
    if m.num_expert_groups > 1:
        options.append(("--moe-router-num-groups", str(m.num_expert_groups)))
        options.append(("--moe-router-group-topk", str(m.num_chosen_groups)))
    if m.shared_ffn_hidden_size:
        options.append(("--moe-shared-expert-intermediate-size", str(m.shared_ffn_hidden_size)))
    if m.shared_gate:
        options.append(("--moe-shared-expert-gate",))
    return options


def _pattern(flags: list[int]) -> str:
    """`[0,1,1,1]` as Megatron evaluates it: `([0]*1+[1]*3)`."""
    runs: list[list[int]] = []
    for flag in flags:
        if runs and runs[-1][0] == flag:
            runs[-1][1] += 1
        else:
            runs.append([flag, 1])
    return "(" + "+".join(f"[{flag}]*{number}" for flag, number in runs) + ")"


def needs(m: ModelSpec) -> list[Need]:
    """What the plan's model does not say of itself."""
    if not m.rope_scaling:
        return []
    example = {
        "llama3": "--use-rope-scaling --rope-scaling-factor FACTOR",
        "yarn": "--rope-type yarn --rotary-scaling-factor FACTOR ...",
    }.get(m.rope_scaling, "...")
    meaning = f"arguments of the model's {m.rope_scaling} rope_scaling, {example}"
    return [Need(name="ROPE_ARGS", meaning=meaning)]
