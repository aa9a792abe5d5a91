"""DeepSeek-V2 and -V3 and what has their shape (Kimi-K2; Moonlight is a `deepseek_v3`): multi-head
latent attention, shared experts, first dense layers, and V3's multi-token prediction.

    deepseek_v2  experts scored by softmax; with `group_limited_greedy`, out of the groups with the
                 best single scores
    deepseek_v3  scored by sigmoid; the k largest of score + bias (`noaux_tc`), as dots1
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
    family_of,
    given,
    moe_fields,
    refuse,
    rope_fields,
)
from profiler.model import ModelSpec


@record
class DeepseekKeys(Common):
    """Keys of `deepseek_v2` (DeepseekV2Config) and `deepseek_v3` (DeepseekV3Config)."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    q_lora_rank: Size | None
    """`null`: q is not compressed (V2-Lite); the key must be there."""
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    n_routed_experts: Count | None
    n_shared_experts: Count | None = None
    num_experts_per_tok: Count | None = None
    moe_intermediate_size: Size | None = None
    first_k_dense_replace: NotNegative = 0
    moe_layer_freq: Count = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: PositiveFloat = 1.0
    n_group: Count | None = None
    topk_group: Count | None = None
    scoring_func: str | None = None
    topk_method: str | None = None
    num_nextn_predict_layers: NotNegative = 0


def _spec(config: DeepseekKeys, name: str, present: Collection[str]) -> ModelSpec:
    refuse("attention_bias", config.attention_bias, "`attention_bias` true (biases in MLA)")
    refuse("mlp_bias", config.mlp_bias, "`mlp_bias` true (biases in the feed-forward network)")
    heads = config.num_attention_heads
    return ModelSpec(
        name=name,
        family=family_of(config),
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads or heads,
        head_dim=config.qk_nope_head_dim,
        ffn_hidden_size=config.intermediate_size,
        activation=activation(config.hidden_act),
        tie_embeddings=config.tie_word_embeddings,
        q_lora_rank=config.q_lora_rank or 0,
        kv_lora_rank=config.kv_lora_rank,
        rope_head_dim=config.qk_rope_head_dim,
        value_head_dim=config.v_head_dim,
        num_mtp_layers=config.num_nextn_predict_layers,
        norm_eps=config.rms_norm_eps,
        **rope_fields(config, 1e4),
        **(_experts(config) if config.n_routed_experts is not None else {}),
    )


def _experts(config: DeepseekKeys) -> dict[str, Any]:
    width = given(config.moe_intermediate_size, "moe_intermediate_size")
    first, freq = config.first_k_dense_replace, config.moe_layer_freq
    placed: dict[str, int] = {"first_dense_layers": first}
    if freq != 1:
        layers = range(config.num_hidden_layers)
        placed = moe_fields([i >= first and i % freq == 0 for i in layers], "moe_layer_freq")
    return placed | {
        "num_experts": given(config.n_routed_experts, "n_routed_experts"),
        "num_experts_per_token": given(config.num_experts_per_tok, "num_experts_per_tok"),
        "expert_ffn_hidden_size": width,
        "shared_ffn_hidden_size": (config.n_shared_experts or 0) * width,
        "norm_topk": config.norm_topk_prob,
        "routed_scale": config.routed_scaling_factor,
        **_routing(config),
    }


def _routing(config: DeepseekKeys) -> dict[str, Any]:
    second = config.model_type == "deepseek_v2"
    score = config.scoring_func or ("softmax" if second else "sigmoid")
    method = config.topk_method or ("greedy" if second else "noaux_tc")
    if score not in ("softmax", "sigmoid"):
        what = f"experts scored by `{score[:40]}` are not supported"
        raise FaultyKeyError("scoring_func", f"{what}: only `softmax` and `sigmoid` are")
    if method not in ("greedy", "group_limited_greedy", "noaux_tc"):
        what = f"experts chosen by `{method[:40]}` are not supported"
        raise FaultyKeyError("topk_method", f"{what}: only `greedy` and its kin and `noaux_tc` are")
    grouped = method != "greedy"
    return {
        "router_score": score,
        "router_bias": method == "noaux_tc",
        "num_expert_groups": (config.n_group or 1) if grouped else 1,
        "num_chosen_groups": (config.topk_group or 1) if grouped else 1,
    }


READERS: dict[str, Reader] = {
    "deepseek_v2": Reader(DeepseekKeys, _spec),
    "deepseek_v3": Reader(DeepseekKeys, _spec, ("mlp_bias",)),
    "kimi_k2": Reader(DeepseekKeys, _spec, ("mlp_bias",)),
}
