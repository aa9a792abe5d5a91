"""GPT-2 and what follows its shape: GPT-NeoX, BLOOM, MPT. LayerNorm, and a plain MLP of two
matrices.

    gpt2      learned positions, biases everywhere, tied head (also GPT-3 and Megatron's GPT)
    gpt_neox  rotary, biases everywhere, attention and MLP side by side, each with its norm
    bloom     ALiBi, biases everywhere, a norm behind the embedding, tied head
    mpt       ALiBi, or learned or rotary positions; `no_bias` takes all biases away, the norms' too
"""

from collections.abc import Collection
from typing import Any

from profiler.codec import record
from profiler.hf_families.base import (
    Common,
    Count,
    PositiveFloat,
    Reader,
    Size,
    activation,
    family_of,
    given,
    head_dim,
    refuse,
    rope_fields,
)
from profiler.model import ModelSpec


@record
class Gpt2Keys(Common):
    """Keys of `gpt2` (GPT2Config)."""

    n_embd: Size
    n_layer: Count
    n_head: Count
    n_positions: Size
    n_inner: Size | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: PositiveFloat = 1e-5
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True


@record
class NeoxKeys(Common):
    """Keys of `gpt_neox` (GPTNeoXConfig)."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Count
    hidden_act: str = "gelu"
    layer_norm_eps: PositiveFloat = 1e-5
    attention_bias: bool = True
    rotary_emb_base: PositiveFloat | None = None


@record
class BloomKeys(Common):
    """Keys of `bloom` (BloomConfig); published files have either name of a size."""

    hidden_size: Size | None = None
    n_embed: Size | None = None
    n_layer: Count | None = None
    num_hidden_layers: Count | None = None
    n_head: Count | None = None
    num_attention_heads: Count | None = None
    layer_norm_epsilon: PositiveFloat = 1e-5
    tie_word_embeddings: bool = True


@record
class MptAttention:
    """Keys of MPT's `attn_config`."""

    alibi: bool = True
    rope: bool = False
    qk_ln: bool = False
    attn_type: str = "multihead_attention"
    kv_n_heads: Count | None = None


@record
class MptFfn:
    """Keys of MPT's `ffn_config`."""

    ffn_type: str = "mptmlp"


@record
class MptKeys(Common):
    """Keys of `mpt` (MptConfig, and `mpt_causal_lm` of mosaicml/llm-foundry)."""

    d_model: Size
    n_heads: Count
    n_layers: Count
    max_seq_len: Size
    expansion_ratio: Count = 4
    attn_config: MptAttention | None = None
    ffn_config: MptFfn | None = None
    learned_pos_emb: bool = True
    no_bias: bool = True
    norm_type: str = "low_precision_layernorm"
    layer_norm_epsilon: PositiveFloat = 1e-5
    tie_word_embeddings: bool = True


def _common(config: Common, name: str, *, hidden: int, heads: int, key: str) -> dict[str, Any]:
    return {
        "name": name,
        "family": family_of(config),
        "vocab_size": config.vocab_size,
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": head_dim(hidden, heads, key),
        "gated_ffn": False,
        "activation": "gelu",
        "tie_embeddings": config.tie_word_embeddings,
        "qkv_bias": True,
        "out_bias": True,
        "ffn_bias": True,
        "layer_norm": True,
    }


def _gpt2(config: Gpt2Keys, name: str, present: Collection[str]) -> ModelSpec:
    refuse("add_cross_attention", config.add_cross_attention, "`add_cross_attention` true")
    fields = _common(config, name, hidden=config.n_embd, heads=config.n_head, key="n_embd")
    return ModelSpec(
        **fields
        | {
            "num_layers": config.n_layer,
            "ffn_hidden_size": config.n_inner or 4 * config.n_embd,
            "activation": activation(config.activation_function, "activation_function"),
            "position": "learned",
            "max_positions": config.n_positions,
            "norm_eps": config.layer_norm_epsilon,
        }
    )


def _neox(config: NeoxKeys, name: str, present: Collection[str]) -> ModelSpec:
    hidden, heads = config.hidden_size, config.num_attention_heads
    fields = _common(config, name, hidden=hidden, heads=heads, key="hidden_size")
    return ModelSpec(
        **fields
        | {
            "num_layers": config.num_hidden_layers,
            "ffn_hidden_size": config.intermediate_size,
            "activation": activation(config.hidden_act),
            "qkv_bias": config.attention_bias,
            "out_bias": config.attention_bias,
            "norm_eps": config.layer_norm_eps,
            **rope_fields(config, config.rotary_emb_base or 1e4),
        }
    )


def _bloom(config: BloomKeys, name: str, present: Collection[str]) -> ModelSpec:
    hidden = given(config.hidden_size or config.n_embed, "hidden_size")
    heads = given(config.n_head or config.num_attention_heads, "n_head")
    fields = _common(config, name, hidden=hidden, heads=heads, key="hidden_size")
    return ModelSpec(
        **fields
        | {
            "num_layers": given(config.n_layer or config.num_hidden_layers, "n_layer"),
            "ffn_hidden_size": 4 * hidden,
            "embed_norm": True,
            "position": "alibi",
            "norm_eps": config.layer_norm_epsilon,
        }
    )


def _mpt(config: MptKeys, name: str, present: Collection[str]) -> ModelSpec:
    attention = config.attn_config or MptAttention()
    refuse("attn_config", attention.qk_ln, "`qk_ln` true (LayerNorm of q and k)")
    ffn = config.ffn_config or MptFfn()
    refuse("ffn_config", ffn.ffn_type != "mptmlp", f"`ffn_type` `{ffn.ffn_type[:40]}`")
    fields = _common(config, name, hidden=config.d_model, heads=config.n_heads, key="d_model")
    kv_heads = 1 if attention.attn_type == "multiquery_attention" else attention.kv_n_heads
    bias = not config.no_bias
    return ModelSpec(
        **fields
        | {
            "num_layers": config.n_layers,
            "num_kv_heads": kv_heads or config.n_heads,
            "ffn_hidden_size": config.expansion_ratio * config.d_model,
            **dict.fromkeys(("qkv_bias", "out_bias", "ffn_bias", "norm_bias"), bias),
            "layer_norm": "rms" not in config.norm_type,
            "norm_eps": config.layer_norm_epsilon,
            **_mpt_position(config, attention),
        }
    )


def _mpt_position(config: MptKeys, attention: MptAttention) -> dict[str, Any]:
    if attention.rope:
        return {"position": "rope"}
    if attention.alibi:
        return {"position": "alibi"}
    if config.learned_pos_emb:
        return {"position": "learned", "max_positions": config.max_seq_len}
    return {"position": "none"}


READERS: dict[str, Reader] = {
    "gpt2": Reader(Gpt2Keys, _gpt2),
    "gpt_neox": Reader(NeoxKeys, _neox),
    "bloom": Reader(BloomKeys, _bloom),
    "mpt": Reader(MptKeys, _mpt, nested={"attn_config": MptAttention, "ffn_config": MptFfn}),
}
