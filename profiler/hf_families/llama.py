"""Families that the reference runtime trains: Llama, Qwen2, Qwen3, Mixtral and their MoE kin.

How experts are chosen is what the modelling files of `transformers` do:

    mixtral    softmax over all experts, the k largest, divided by their sum
    qwen2_moe  the same, divided only with `norm_topk_prob`; a gated shared expert
    qwen3_moe  the same, divided only with `norm_topk_prob`; no shared expert
    dots1      sigmoid; the k largest of score + bias in the best `topk_group` of `n_group` groups,
               weighted by the score alone, times `routed_scaling_factor`; shared experts
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
    SizeOrNone,
    activation,
    attention_fields,
    family_of,
    given,
    head_dim,
    kinds_of,
    moe_fields,
    rope_fields,
)
from profiler.model import Attention, Family, ModelSpec

# Defaults by family where the key is absent; `null` means one key/value head per head.
_KV_HEADS: dict[Family, int] = {
    "qwen2": 32, "qwen3": 32, "mixtral": 8, "qwen2_moe": 16, "qwen3_moe": 4, "dots1": 32,
}  # fmt: skip
_NORM_EPS: dict[Family, float] = {"mixtral": 1e-5}  # the others: 1e-6
_ROPE_THETA: dict[Family, float] = {"mixtral": 1e6}  # the others: 1e4
_NUM_EXPERTS: dict[Family, int] = {"mixtral": 8, "qwen2_moe": 60, "qwen3_moe": 128}
_EXPERTS_PER_TOKEN: dict[Family, int] = {"mixtral": 2, "qwen2_moe": 4, "qwen3_moe": 8}
_QWEN3_HEAD_DIM = 128
_CONTEXT: dict[Family, int] = {"mixtral": 4096 * 32, "dots1": 2048}  # the others: 32768
_WINDOW = 4096
_FIRST_WINDOWED_LAYER: dict[Family, int] = {"dots1": 62}  # Qwen's: 28
_WINDOW_IN_ALL_LAYERS: tuple[Family, ...] = ("mixtral", "qwen3_moe")

# Where a family keeps its number of routed experts: first as its published files do, then as
# `transformers` 5 writes it.
_EXPERT_KEYS: dict[Family, tuple[str, ...]] = {
    "mixtral": ("num_local_experts", "num_experts"),
    "qwen2_moe": ("num_experts",),
    "qwen3_moe": ("num_experts", "num_local_experts"),
    "dots1": ("n_routed_experts", "num_local_experts"),
}


@record
class LlamaKeys(Common):
    """The keys of these families."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Size | None = None
    rms_norm_eps: PositiveFloat | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: SizeOrNone | None = None
    """0, as transformers writes it for Qwen2-MoE, is none."""
    max_window_layers: NotNegative | None = None
    layer_types: tuple[str, ...] | None = None
    qkv_bias: bool = True
    num_local_experts: Count | None = None
    num_experts: Count | None = None
    n_routed_experts: Count | None = None
    num_experts_per_tok: Count | None = None
    moe_intermediate_size: Size | None = None
    shared_expert_intermediate_size: Size | None = None
    n_shared_experts: Count | None = None
    decoder_sparse_step: Count = 1
    moe_layer_freq: Count = 1
    mlp_only_layers: tuple[NotNegative, ...] | None = None
    first_k_dense_replace: NotNegative | None = None
    norm_topk_prob: bool | None = None
    routed_scaling_factor: PositiveFloat = 1.0
    n_group: Count | None = None
    topk_group: Count | None = None
    scoring_func: str | None = None
    topk_method: str | None = None


_QWEN_MOE: tuple[Family, ...] = ("qwen2_moe", "qwen3_moe")
_QWEN: tuple[Family, ...] = ("qwen2", "qwen3", *_QWEN_MOE)
# A key means something only to the families that know it.
_ONLY: dict[str, tuple[Family, ...]] = {
    "attention_bias": ("llama", "qwen3", "qwen3_moe", "dots1"),
    "mlp_bias": ("llama",),
    "use_sliding_window": _QWEN,
    "sliding_window": ("mixtral", "dots1", *_QWEN),
    "max_window_layers": ("dots1", "qwen2", "qwen3", "qwen2_moe"),
    "layer_types": ("qwen2", "qwen3", "qwen2_moe", "dots1"),
    "qkv_bias": ("qwen2_moe",),
    **{
        key: tuple(family for family, keys in _EXPERT_KEYS.items() if key in keys)
        for key in ("num_local_experts", "num_experts", "n_routed_experts")
    },
    "num_experts_per_tok": ("mixtral", *_QWEN_MOE, "dots1"),
    "moe_intermediate_size": (*_QWEN_MOE, "dots1"),
    "shared_expert_intermediate_size": ("qwen2_moe",),
    "n_shared_experts": ("dots1",),
    "decoder_sparse_step": _QWEN_MOE,
    "moe_layer_freq": ("dots1",),
    "mlp_only_layers": _QWEN_MOE,
    "first_k_dense_replace": ("dots1",),
    "norm_topk_prob": (*_QWEN_MOE, "dots1"),
    "routed_scaling_factor": ("dots1",),
    "n_group": ("dots1",),
    "topk_group": ("dots1",),
    "scoring_func": ("dots1",),
    "topk_method": ("dots1",),
}


def _spec(config: LlamaKeys, name: str, present: Collection[str]) -> ModelSpec:
    family = family_of(config)
    _refuse_routing(config)
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads
    if kv_heads is None:
        kv_heads = heads if "num_key_value_heads" in present else _KV_HEADS.get(family, heads)
    bias = family == "qwen2" or (family == "qwen2_moe" and config.qkv_bias)
    return ModelSpec(
        name=name,
        family=family,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=config.head_dim or _default_head_dim(config, family),
        ffn_hidden_size=config.intermediate_size,
        activation=activation(config.hidden_act),
        tie_embeddings=config.tie_word_embeddings,
        qkv_bias=bias or config.attention_bias,
        out_bias=config.attention_bias,
        ffn_bias=config.mlp_bias,
        qk_norm=family in ("qwen3", "qwen3_moe", "dots1"),
        norm_eps=config.rms_norm_eps or _NORM_EPS.get(family, 1e-6),
        **rope_fields(config, _ROPE_THETA.get(family, 1e4)),
        **_attention(config, family, present),
        **_expert_fields(config, family),
    )


def _default_head_dim(config: LlamaKeys, family: Family) -> int:
    if family == "qwen3":
        return _QWEN3_HEAD_DIM
    return head_dim(config.hidden_size, config.num_attention_heads)


def _attention(config: LlamaKeys, family: Family, present: Collection[str]) -> dict[str, Any]:
    kinds: tuple[Attention, ...] = ("full",)
    if family == "llama":
        return {}
    if config.layer_types is not None:
        kinds = kinds_of(config.layer_types, config.num_hidden_layers)
        window = config.sliding_window or None
    else:
        window = _window(config, family, present)
        if window is not None:
            kinds = _kinds_by_number(config, family)
    if "linear" in kinds:
        raise FaultyKeyError("layer_types", f"`{family}` has no layers of type `linear_attention`")
    context = config.max_position_embeddings or _CONTEXT.get(family, 32768)
    return attention_fields(kinds, window, context)


def _window(config: LlamaKeys, family: Family, present: Collection[str]) -> int | None:
    """Tokens that a layer which slides looks back on; None: none slides."""
    if family in _QWEN and not config.use_sliding_window:
        return None
    if family == "mixtral" or "sliding_window" in present:
        return config.sliding_window or None
    return _WINDOW


def _kinds_by_number(config: LlamaKeys, family: Family) -> tuple[Attention, ...]:
    """Attention of the layers of a file that does not list it."""
    layers = config.num_hidden_layers
    if family in _WINDOW_IN_ALL_LAYERS:
        return tuple("sliding" for _ in range(layers))
    first = config.max_window_layers
    first = _FIRST_WINDOWED_LAYER.get(family, 28) if first is None else first
    return tuple("full" if i < first else "sliding" for i in range(layers))


def _refuse_routing(config: LlamaKeys) -> None:
    # What DeepSeek-V3 calls its rule in these two keys, and dots.llm1 in the first.
    if config.scoring_func not in (None, "sigmoid", "noaux_tc"):
        what = f"experts scored by `{config.scoring_func[:40]}` are not supported"
        raise FaultyKeyError("scoring_func", f"{what}: only `sigmoid` is")
    if config.topk_method not in (None, "noaux_tc"):
        what = f"experts chosen by `{config.topk_method[:40]}` are not supported"
        raise FaultyKeyError("topk_method", f"{what}: only `noaux_tc` is")


def _expert_fields(config: LlamaKeys, family: Family) -> dict[str, Any]:
    """Fields of a `ModelSpec` that say what its experts are; none for a dense family."""
    if family not in _EXPERT_KEYS:
        return {}
    keys = _EXPERT_KEYS[family]
    num_experts = next((n for key in keys if (n := getattr(config, key)) is not None), None)
    fields: dict[str, Any] = {
        "num_experts": given(num_experts or _NUM_EXPERTS.get(family), keys[0]),
        "num_experts_per_token": given(
            config.num_experts_per_tok or _EXPERTS_PER_TOKEN.get(family), "num_experts_per_tok"
        ),
    }
    if family == "mixtral":
        return fields
    width = given(config.moe_intermediate_size, "moe_intermediate_size")
    fields |= {"expert_ffn_hidden_size": width, "norm_topk": bool(config.norm_topk_prob)}
    if family == "dots1":
        return fields | _dots_fields(config, width)
    fields |= _qwen_layers(config)
    if family == "qwen2_moe":
        shared = config.shared_expert_intermediate_size
        fields |= {
            "shared_ffn_hidden_size": given(shared, "shared_expert_intermediate_size"),
            "shared_gate": True,
        }
    return fields


def _qwen_layers(config: LlamaKeys) -> dict[str, Any]:
    step, dense = config.decoder_sparse_step, set(config.mlp_only_layers or ())
    layers = range(config.num_hidden_layers)
    key = "mlp_only_layers" if dense else "decoder_sparse_step"
    return moe_fields([i not in dense and (i + 1) % step == 0 for i in layers], key)


def _dots_fields(config: LlamaKeys, width: int) -> dict[str, Any]:
    first, freq = config.first_k_dense_replace or 0, config.moe_layer_freq
    layers = range(config.num_hidden_layers)
    placed: dict[str, int] = {"first_dense_layers": first}
    if freq != 1:
        placed = moe_fields([i >= first and i % freq == 0 for i in layers], "moe_layer_freq")
    return placed | {
        "shared_ffn_hidden_size": given(config.n_shared_experts, "n_shared_experts") * width,
        "router_score": "sigmoid",
        "router_bias": True,
        "routed_scale": config.routed_scaling_factor,
        "num_expert_groups": config.n_group or 1,
        "num_chosen_groups": config.topk_group or 1,
    }


def _reader(family: Family) -> Reader:
    passed_over = [key for key, families in _ONLY.items() if family not in families]
    return Reader(LlamaKeys, _spec, passed_over)


_FAMILIES: tuple[Family, ...] = (
    "llama", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "dots1",
)  # fmt: skip
READERS: dict[str, Reader] = {family: _reader(family) for family in _FAMILIES}
