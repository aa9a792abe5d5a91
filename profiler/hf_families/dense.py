"""Dense families beside Llama's: Nemotron, InternLM, Phi, Phi-3, Gemma 2 and 3.

nemotron     LayerNorm, squared ReLU without a gate, no biases
internlm     Llama with biases of q, k, v and o where `bias` says so
phi          LayerNorm, GELU, biases everywhere, the head's too, one norm for both branches
phi3         Llama's shape in fused matrices (also Phi-4)
gemma2       GeGLU, four norms a layer, every other layer slides, tied head
gemma3_text  the same with norms of q and k; each sixth layer is full
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
    attention_fields,
    family_of,
    given,
    head_dim,
    kinds_of,
    refuse,
    rope_fields,
)
from profiler.model import Attention, ModelSpec


@record
class DenseKeys(Common):
    """Keys that all of these families have."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Size | None = None


@record
class NemotronKeys(DenseKeys):
    """Keys of `nemotron` (NemotronConfig)."""

    head_dim: Size | None = None
    hidden_act: str = "relu2"
    norm_eps: PositiveFloat = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False


@record
class InternlmKeys(DenseKeys):
    """Keys of `internlm` (configuration_internlm.py of internlm/internlm-7b)."""

    bias: bool = True
    rms_norm_eps: PositiveFloat = 1e-6


@record
class PhiKeys(DenseKeys):
    """Keys of `phi` (PhiConfig)."""

    hidden_act: str = "gelu_new"
    layer_norm_eps: PositiveFloat = 1e-5
    qk_layernorm: bool = False


@record
class Phi3Keys(DenseKeys):
    """Keys of `phi3` (Phi3Config)."""

    rms_norm_eps: PositiveFloat = 1e-5
    sliding_window: Size | None = None


@record
class GemmaKeys(DenseKeys):
    """Keys of `gemma2` (Gemma2Config) and `gemma3_text` (Gemma3TextConfig). Google's files of Gemma
    3 leave out what equals the defaults of that class; it alone has them for sizes."""

    vocab_size: Size = 262_208
    num_attention_heads: Count = 8
    num_key_value_heads: Count | None = 4
    head_dim: Size = 256
    hidden_act: str | None = None  # type: ignore[assignment]
    hidden_activation: str | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    sliding_window: Size | None = 4096
    layer_types: tuple[str, ...] | None = None
    sliding_window_pattern: Count | None = None
    tie_word_embeddings: bool = True


def _common(config: DenseKeys, name: str) -> dict[str, Any]:
    heads = config.num_attention_heads
    return {
        "name": name,
        "family": family_of(config),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": config.num_key_value_heads or heads,
        "ffn_hidden_size": config.intermediate_size,
        "tie_embeddings": config.tie_word_embeddings,
        **rope_fields(config, 1e4),
    }


def _default_head_dim(config: DenseKeys) -> int:
    return head_dim(config.hidden_size, config.num_attention_heads)


def _nemotron(config: NemotronKeys, name: str, present: Collection[str]) -> ModelSpec:
    return ModelSpec(
        **_common(config, name),
        head_dim=config.head_dim or _default_head_dim(config),
        gated_ffn=False,
        activation=activation(config.hidden_act),
        qkv_bias=config.attention_bias,
        out_bias=config.attention_bias,
        ffn_bias=config.mlp_bias,
        layer_norm=True,
        norm_eps=config.norm_eps,
    )


def _internlm(config: InternlmKeys, name: str, present: Collection[str]) -> ModelSpec:
    return ModelSpec(
        **_common(config, name),
        head_dim=_default_head_dim(config),
        activation=activation(config.hidden_act),
        qkv_bias=config.bias,
        out_bias=config.bias,
        norm_eps=config.rms_norm_eps,
    )


def _phi(config: PhiKeys, name: str, present: Collection[str]) -> ModelSpec:
    refuse("qk_layernorm", config.qk_layernorm, "`qk_layernorm` true (LayerNorm of q and k)")
    return ModelSpec(
        **_common(config, name),
        head_dim=_default_head_dim(config),
        gated_ffn=False,
        activation=activation(config.hidden_act),
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        head_bias=True,
        layer_norm=True,
        norms_per_layer=1,
        norm_eps=config.layer_norm_eps,
    )


def _phi3(config: Phi3Keys, name: str, present: Collection[str]) -> ModelSpec:
    window = config.sliding_window
    kinds: tuple[Attention, ...] = ("full",) if window is None else ("sliding",)
    return ModelSpec(
        **_common(config, name),
        head_dim=_default_head_dim(config),
        activation=activation(config.hidden_act),
        norm_eps=config.rms_norm_eps,
        **attention_fields(kinds, window, config.max_position_embeddings or 4096),
    )


def _gemma(config: GemmaKeys, name: str, present: Collection[str]) -> ModelSpec:
    third = config.model_type == "gemma3_text"
    key = "hidden_activation" if config.hidden_activation else "hidden_act"
    act = config.hidden_activation or config.hidden_act or "gelu_pytorch_tanh"
    layers = config.num_hidden_layers
    if config.layer_types is not None:
        kinds = kinds_of(config.layer_types, layers)
        refuse("layer_types", "linear" in kinds, "a Gemma with linear attention")
    else:
        every = (config.sliding_window_pattern or 6) if third else 2
        kinds = tuple("sliding" if (i + 1) % every else "full" for i in range(layers))
    if config.sliding_window is None:
        kinds = ("full",)
    context = config.max_position_embeddings or (131_072 if third else 8192)
    fields = _common(config, name)
    if third:
        fields |= rope_fields(config, 1e6)
    return ModelSpec(
        **fields,
        head_dim=config.head_dim,
        activation=activation(act, key),
        qkv_bias=config.attention_bias,
        out_bias=config.attention_bias,
        norms_per_layer=4,
        qk_norm=third,
        norm_eps=config.rms_norm_eps,
        **attention_fields(kinds, config.sliding_window, context),
    )


def _gemma2(config: GemmaKeys, name: str, present: Collection[str]) -> ModelSpec:
    for key in ("vocab_size", "num_attention_heads", "num_key_value_heads"):
        given(True if key in present else None, key)
    return _gemma(config, name, present)


READERS: dict[str, Reader] = {
    "nemotron": Reader(NemotronKeys, _nemotron),
    "internlm": Reader(InternlmKeys, _internlm),
    "phi": Reader(PhiKeys, _phi),
    "phi3": Reader(Phi3Keys, _phi3),
    "gemma2": Reader(GemmaKeys, _gemma2, ("sliding_window_pattern",)),
    "gemma3_text": Reader(GemmaKeys, _gemma),
}
