"""Mixtures of experts beside Mixtral's kin: Llama 4, gpt-oss, Grok-1, Qwen3-Next.

llama4_text  each `interleave_moe_layer_step`-th layer is MoE with one shared expert; layers
             with rotary positions see chunks of `attention_chunk_size` tokens, each fourth has
             no positions and sees all; q and k are normalised without parameters
gpt_oss      biases on all matrices, also the router's and the experts'; sinks; every other
             layer slides
grok-1       GeGLU experts, four norms a layer
qwen3_next   three layers of gated delta net to one of full attention with an output gate; a
             gated shared expert
"""

from collections.abc import Collection
from typing import Any

from profiler.codec import record
from profiler.hf_families.base import (
    Common,
    Count,
    FaultyKeyError,
    NotNegative,
    PositiveFloat,
    Reader,
    Size,
    activation,
    attention_fields,
    family_of,
    head_dim,
    kinds_of,
    moe_fields,
    refuse,
    rope_fields,
)
from profiler.model import Attention, ModelSpec


@record
class MoeKeys(Common):
    """Keys that all of these families have."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    num_experts_per_tok: Count
    head_dim: Size | None = None
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat | None = None
    max_position_embeddings: Size | None = None
    attention_bias: bool = False
    layer_types: tuple[str, ...] | None = None


@record
class Llama4Keys(MoeKeys):
    """Keys of `llama4_text` (Llama4TextConfig)."""

    intermediate_size_mlp: Size
    num_local_experts: Count
    interleave_moe_layer_step: Count = 1
    moe_layers: tuple[NotNegative, ...] | None = None
    attention_chunk_size: Size | None = 8192
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: Count = 4


@record
class GptOssKeys(MoeKeys):
    """Keys of `gpt_oss` (GptOssConfig)."""

    num_local_experts: Count
    sliding_window: Size | None = 128
    attention_bias: bool = True


@record
class GrokKeys(MoeKeys):
    """Keys of `grok-1` (configuration_grok_1.py of the ports to Hugging Face)."""

    num_local_experts: Count
    hidden_act: str = "gelu"


@record
class Qwen3NextKeys(MoeKeys):
    """Keys of `qwen3_next` (Qwen3NextConfig)."""

    num_experts: Count
    moe_intermediate_size: Size
    shared_expert_intermediate_size: Size
    linear_num_key_heads: Count
    linear_num_value_heads: Count
    linear_key_head_dim: Size
    linear_value_head_dim: Size
    linear_conv_kernel_dim: Count
    full_attention_interval: Count = 4
    norm_topk_prob: bool = True
    decoder_sparse_step: Count = 1
    mlp_only_layers: tuple[NotNegative, ...] | None = None
    num_nextn_predict_layers: NotNegative = 0


def _common(config: MoeKeys, name: str, *, theta: float, eps: float) -> dict[str, Any]:
    width = config.head_dim or head_dim(config.hidden_size, config.num_attention_heads)
    return {
        "name": name,
        "family": family_of(config),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": width,
        "ffn_hidden_size": config.intermediate_size,
        "activation": activation(config.hidden_act),
        "tie_embeddings": config.tie_word_embeddings,
        "qkv_bias": config.attention_bias,
        "out_bias": config.attention_bias,
        "num_experts_per_token": config.num_experts_per_tok,
        "norm_eps": config.rms_norm_eps or eps,
        **rope_fields(config, theta),
    }


def _llama4(config: Llama4Keys, name: str, present: Collection[str]) -> ModelSpec:
    layers, step = range(config.num_hidden_layers), config.interleave_moe_layer_step
    key = "interleave_moe_layer_step" if config.moe_layers is None else "moe_layers"
    chosen = set(config.moe_layers or range(step - 1, len(layers), step))
    fields = _common(config, name, theta=5e5, eps=1e-5)
    fields |= {
        "head_dim": config.head_dim or 128,
        "ffn_hidden_size": config.intermediate_size_mlp,
        "num_experts": config.num_local_experts,
        "expert_ffn_hidden_size": config.intermediate_size,
        "shared_ffn_hidden_size": config.intermediate_size,
        "router_score": "sigmoid",
        "norm_topk": False,
        **moe_fields([i in chosen for i in layers], key),
        **_chunks(config),
    }
    return ModelSpec(**fields)


def _chunks(config: Llama4Keys) -> dict[str, Any]:
    layers = config.num_hidden_layers
    if config.layer_types is not None:
        kinds = kinds_of(config.layer_types, layers)
        refuse("layer_types", "linear" in kinds, "a Llama 4 with linear attention")
    elif config.no_rope_layers:
        if len(config.no_rope_layers) != layers:
            told = f"`no_rope_layers` names {len(config.no_rope_layers)} layers"
            raise FaultyKeyError("no_rope_layers", f"{told}, but there are {layers}")
        kinds = tuple("sliding" if rope else "full" for rope in config.no_rope_layers)
    else:
        every = config.no_rope_layer_interval
        kinds = tuple("sliding" if (i + 1) % every else "full" for i in range(layers))
    if config.attention_chunk_size is None:
        kinds = ("full",)
    context = config.max_position_embeddings or 4096 * 32
    fields = attention_fields(kinds, config.attention_chunk_size, context)
    return fields | {"chunked_window": "window" in fields}


def _gpt_oss(config: GptOssKeys, name: str, present: Collection[str]) -> ModelSpec:
    layers = config.num_hidden_layers
    kinds: tuple[Attention, ...]
    if config.layer_types is not None:
        kinds = kinds_of(config.layer_types, layers)
        refuse("layer_types", "linear" in kinds, "a gpt-oss with linear attention")
    else:
        kinds = tuple("full" if i % 2 else "sliding" for i in range(layers))
    if config.sliding_window is None:
        kinds = ("full",)
    fields = _common(config, name, theta=150_000.0, eps=1e-5)
    return ModelSpec(
        **fields | {"head_dim": config.head_dim or 64},
        num_experts=config.num_local_experts,
        attention_sinks=True,
        expert_bias=True,
        router_linear_bias=True,
        **attention_fields(kinds, config.sliding_window, config.max_position_embeddings),
    )


def _grok(config: GrokKeys, name: str, present: Collection[str]) -> ModelSpec:
    return ModelSpec(
        **_common(config, name, theta=1e4, eps=1e-5),
        num_experts=config.num_local_experts,
        norms_per_layer=4,
    )


def _qwen3_next(config: Qwen3NextKeys, name: str, present: Collection[str]) -> ModelSpec:
    layers = range(config.num_hidden_layers)
    if config.layer_types is not None:
        kinds = kinds_of(config.layer_types, len(layers))
        refuse("layer_types", "sliding" in kinds, "a Qwen3-Next with sliding attention")
    else:
        every = config.full_attention_interval
        kinds = tuple("linear" if (i + 1) % every else "full" for i in layers)
    step, dense = config.decoder_sparse_step, set(config.mlp_only_layers or ())
    key = "mlp_only_layers" if dense else "decoder_sparse_step"
    fields = _common(config, name, theta=1e4, eps=1e-6)
    return ModelSpec(
        **fields | {"head_dim": config.head_dim or 256},
        qk_norm=True,
        attention_gate=True,
        num_experts=config.num_experts,
        expert_ffn_hidden_size=config.moe_intermediate_size,
        shared_ffn_hidden_size=config.shared_expert_intermediate_size,
        shared_gate=True,
        norm_topk=config.norm_topk_prob,
        num_mtp_layers=config.num_nextn_predict_layers,
        **(_linear(config) if "linear" in kinds else {}),
        **attention_fields(kinds, None, None),
        **moe_fields([i not in dense and (i + 1) % step == 0 for i in layers], key),
    )


def _linear(config: Qwen3NextKeys) -> dict[str, Any]:
    return {
        "linear_num_key_heads": config.linear_num_key_heads,
        "linear_num_value_heads": config.linear_num_value_heads,
        "linear_key_head_dim": config.linear_key_head_dim,
        "linear_value_head_dim": config.linear_value_head_dim,
        "linear_conv_kernel": config.linear_conv_kernel_dim,
    }


READERS: dict[str, Reader] = {
    "llama4_text": Reader(Llama4Keys, _llama4),
    "gpt_oss": Reader(GptOssKeys, _gpt_oss),
    "grok-1": Reader(GrokKeys, _grok, ("layer_types", "attention_bias")),
    "qwen3_next": Reader(Qwen3NextKeys, _qwen3_next),
}
