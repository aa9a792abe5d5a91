"""Hugging Face `config.json` -> `ModelSpec`, for the model types of `profiler.model.Family`.

Names and defaults are those of the configuration classes of the `transformers` library
(LlamaConfig, Qwen2Config, Qwen3Config, MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig, Dots1Config),
and how experts are chosen is what its modelling files do:

    mixtral    softmax over all experts, the k largest, divided by their sum
    qwen2_moe  the same, divided only with `norm_topk_prob`; a gated shared expert
    qwen3_moe  the same, divided only with `norm_topk_prob`; no shared expert
    dots1      sigmoid; the k largest of score + bias in the best `topk_group` of `n_group` groups,
               weighted by the score alone, times `routed_scaling_factor`; shared experts

A default is used only where leaving the key out is usual; sizes that those classes would silently
invent (`hidden_size` 4096, say) must be given. Keys of no consequence for cost are passed over.
What would change the count of parameters or FLOPs and is not modelled is refused: biases other than
Qwen2's, sliding-window attention, an activation other than SwiGLU's, dense layers between MoE
layers. `rope_scaling` changes angles alone: it costs nothing and is passed over.
"""

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

from annotated_types import Ge, Gt, Le

from profiler.codec import build, parse, place_of, read_text, record
from profiler.errors import UserError
from profiler.model import Family, ModelSpec
from profiler.yaml_nodes import Lines

FILE_NAME = "config.json"
FAMILIES: tuple[Family, ...] = get_args(Family)

Size = Annotated[int, Gt(0), Le(2**31 - 1)]
Count = Annotated[int, Gt(0), Le(100_000)]
NotNegative = Annotated[int, Ge(0), Le(100_000)]
PositiveFloat = Annotated[float, Gt(0)]
T = TypeVar("T")

# Defaults by family where the key is absent; `null` means one key/value head per head.
_KV_HEADS: dict[Family, int] = {
    "qwen2": 32, "qwen3": 32, "mixtral": 8, "qwen2_moe": 16, "qwen3_moe": 4, "dots1": 32,
}  # fmt: skip
_NORM_EPS: dict[Family, float] = {"mixtral": 1e-5}  # the others: 1e-6
_ROPE_THETA: dict[Family, float] = {"mixtral": 1e6}  # the others: 1e4
_NUM_EXPERTS: dict[Family, int] = {"mixtral": 8, "qwen2_moe": 60, "qwen3_moe": 128}
_EXPERTS_PER_TOKEN: dict[Family, int] = {"mixtral": 2, "qwen2_moe": 4, "qwen3_moe": 8}
_QWEN3_HEAD_DIM = 128
_CONTEXT: dict[Family, int] = {"mixtral": 4096 * 32, "dots1": 2048}
_DOTS_WINDOW = 4096
_DOTS_FIRST_WINDOWED_LAYER = 62

# Where a family keeps its number of routed experts: first as its published files do, then as
# `transformers` 5 writes it.
_EXPERT_KEYS: dict[Family, tuple[str, ...]] = {
    "mixtral": ("num_local_experts", "num_experts"),
    "qwen2_moe": ("num_experts",),
    "qwen3_moe": ("num_experts", "num_local_experts"),
    "dots1": ("n_routed_experts", "num_local_experts"),
}


@record
class RopeParameters:
    """Where newer files keep the base of the rotary embedding."""

    rope_theta: PositiveFloat | None = None


@record
class ConfigFile:
    """The keys of a `config.json` that are read."""

    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Size | None = None
    rms_norm_eps: PositiveFloat | None = None
    rope_theta: PositiveFloat | None = None
    rope_parameters: RopeParameters | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = None
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
    decoder_sparse_step: int = 1
    moe_layer_freq: int = 1
    mlp_only_layers: tuple[NotNegative, ...] | None = None
    first_k_dense_replace: NotNegative | None = None
    norm_topk_prob: bool | None = None
    routed_scaling_factor: PositiveFloat = 1.0
    n_group: Count | None = None
    topk_group: Count | None = None
    scoring_func: str | None = None
    topk_method: str | None = None


_KEYS = tuple(ConfigFile.__dataclass_fields__)
_ROPE_KEYS = tuple(RopeParameters.__dataclass_fields__)
_QWEN_MOE: tuple[Family, ...] = ("qwen2_moe", "qwen3_moe")
# A key means something only to the families that know it.
_ONLY: dict[str, tuple[Family, ...]] = {
    "attention_bias": ("llama", "qwen3", "qwen3_moe", "dots1"),
    "mlp_bias": ("llama",),
    "use_sliding_window": ("qwen2", "qwen3", *_QWEN_MOE),
    "sliding_window": ("mixtral", "dots1"),
    "max_window_layers": ("dots1",),
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


def read_model(path: Path) -> ModelSpec:
    """Read a `config.json`, or the folder that holds it; the folder's name becomes the model's.

    Raises `UserError` with file and line for anything wrong with the file.
    """
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise UserError(
                f"the folder holds no `{FILE_NAME}`",
                hint="give a Hugging Face model folder, or its config file",
                place=str(path),
            )
        path = path / FILE_NAME
    text = read_text(path)
    tree, lines = parse(text, str(path))
    name = path.resolve().parent.name if path.name == FILE_NAME else path.stem
    return model_from_config(tree, name or "model", str(path), lines=lines, text=text)


def model_from_config(
    tree: dict[str, Any],
    name: str,
    place: str,
    *,
    lines: Lines | None = None,
    text: str | None = None,
) -> ModelSpec:
    """Content of a `config.json` -> shape of the model, called `name`.

    `place` is what errors call the file; `lines` or its `text` let them name the line. Raises
    `UserError` for an unsupported model type, a missing key, a wrong type, or a feature that is
    not modelled.
    """
    if not isinstance(tree, dict):
        raise UserError("a model config is a JSON object", place=place)
    family = _family(tree, place, lines, text)
    known = {k: tree[k] for k in _KEYS if k in tree and family in _ONLY.get(k, FAMILIES)}
    rope = known.get("rope_parameters")
    if isinstance(rope, dict):
        known["rope_parameters"] = {k: rope[k] for k in _ROPE_KEYS if k in rope}
    config = build(ConfigFile, known, place, lines=lines, text=text)
    refused = _refused(config, family, known)
    if refused is not None:
        key, message = refused
        raise UserError(message, place=place_of((key,), place, lines or {}, text))
    try:
        return _spec(config, family, name, known)
    except UserError as e:
        raise UserError(e.message, hint=e.hint, place=e.place or place) from None


def _family(tree: dict[str, Any], place: str, lines: Lines | None, text: str | None) -> Family:
    if "model_type" not in tree:
        raise UserError("key `model_type` is missing", place=place)
    found = tree["model_type"]
    if found in FAMILIES and isinstance(found, str):
        return cast(Family, found)
    shown = str(found)[:40]
    near = difflib.get_close_matches(shown, FAMILIES, n=1)
    asked = f"; did you mean `{near[0]}`?" if near else ""
    raise UserError(
        f"model type `{shown}` is not supported",
        hint=f"supported: {', '.join(FAMILIES)}{asked}",
        place=place_of(("model_type",), place, lines or {}, text),
    )


def _refused(config: ConfigFile, family: Family, given: Collection[str]) -> tuple[str, str] | None:
    """(key, message) of the first feature that would be counted wrong; None where there is none."""
    if config.attention_bias:
        return "attention_bias", "`attention_bias` true (biases on q, k, v and o) is not supported"
    if config.mlp_bias:
        return "mlp_bias", "`mlp_bias` true (biases in the feed-forward network) is not supported"
    if config.hidden_act not in ("silu", "swish"):
        act = config.hidden_act[:40]
        return "hidden_act", f"activation `{act}` is not supported: only `silu` (SwiGLU) is"
    if config.use_sliding_window:
        return "use_sliding_window", "sliding-window attention is not supported"
    if any(kind != "full_attention" for kind in config.layer_types or ()):
        return "layer_types", "layers other than `full_attention` are not supported"
    # A window at least as long as the context leaves no token out.
    context = config.max_position_embeddings or _CONTEXT.get(family, 0)
    window = _window(config, family, given)
    if window is not None and window < context:
        message = f"sliding-window attention ({window} of {context} tokens) is not supported"
        return "sliding_window", message
    return _refused_experts(config)


def _window(config: ConfigFile, family: Family, given: Collection[str]) -> int | None:
    """Tokens that a layer without a type of its own looks back on; None: all of them."""
    if family != "dots1":
        return config.sliding_window
    first = config.max_window_layers
    first = _DOTS_FIRST_WINDOWED_LAYER if first is None else first
    if config.layer_types is not None or config.num_hidden_layers <= first:
        return None
    return config.sliding_window if "sliding_window" in given else _DOTS_WINDOW


def _refused_experts(config: ConfigFile) -> tuple[str, str] | None:
    for key in ("decoder_sparse_step", "moe_layer_freq"):
        if getattr(config, key) != 1:
            return (
                key,
                f"`{key}` {getattr(config, key)} (dense and MoE layers in turn) is not supported",
            )
    dense = set(config.mlp_only_layers or ())
    if dense != set(range(len(dense))):
        message = "dense layers that are not the first ones (`mlp_only_layers`) are not supported"
        return "mlp_only_layers", message
    # What DeepSeek-V3 calls its rule in these two keys, and dots.llm1 in the first.
    if config.scoring_func not in (None, "sigmoid", "noaux_tc"):
        what = config.scoring_func[:40]
        return "scoring_func", f"experts scored by `{what}` are not supported: only `sigmoid` is"
    if config.topk_method not in (None, "noaux_tc"):
        what = config.topk_method[:40]
        return "topk_method", f"experts chosen by `{what}` are not supported: only `noaux_tc` is"
    return None


def _spec(config: ConfigFile, family: Family, name: str, given: Collection[str]) -> ModelSpec:
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads
    if kv_heads is None:
        kv_heads = heads if "num_key_value_heads" in given else _KV_HEADS.get(family, heads)
    rope = config.rope_parameters.rope_theta if config.rope_parameters else None
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
        tie_embeddings=config.tie_word_embeddings,
        qkv_bias=family == "qwen2" or (family == "qwen2_moe" and config.qkv_bias),
        qk_norm=family in ("qwen3", "qwen3_moe", "dots1"),
        norm_eps=config.rms_norm_eps or _NORM_EPS.get(family, 1e-6),
        rope_theta=config.rope_theta or rope or _ROPE_THETA.get(family, 1e4),
        **_expert_fields(config, family),
    )


def _expert_fields(config: ConfigFile, family: Family) -> dict[str, Any]:
    """Fields of a `ModelSpec` that say what its experts are; none for a dense family."""
    if family not in _EXPERT_KEYS:
        return {}
    keys = _EXPERT_KEYS[family]
    num_experts = next((n for key in keys if (n := getattr(config, key)) is not None), None)
    fields: dict[str, Any] = {
        "num_experts": _given(num_experts or _NUM_EXPERTS.get(family), keys[0]),
        "num_experts_per_token": _given(
            config.num_experts_per_tok or _EXPERTS_PER_TOKEN.get(family), "num_experts_per_tok"
        ),
    }
    if family == "mixtral":
        return fields
    width = _given(config.moe_intermediate_size, "moe_intermediate_size")
    fields |= {
        "expert_ffn_hidden_size": width,
        "first_dense_layers": len(set(config.mlp_only_layers or ())),
        "norm_topk": bool(config.norm_topk_prob),
    }
    if family == "qwen2_moe":
        shared = config.shared_expert_intermediate_size
        fields |= {
            "shared_ffn_hidden_size": _given(shared, "shared_expert_intermediate_size"),
            "shared_gate": True,
        }
    if family == "dots1":
        fields |= {
            "first_dense_layers": config.first_k_dense_replace or 0,
            "shared_ffn_hidden_size": _given(config.n_shared_experts, "n_shared_experts") * width,
            "router_score": "sigmoid",
            "router_bias": True,
            "routed_scale": config.routed_scaling_factor,
            "num_expert_groups": config.n_group or 1,
            "num_chosen_groups": config.topk_group or 1,
        }
    return fields


def _given(value: T | None, key: str) -> T:
    if value is None:
        raise UserError(f"key `{key}` is missing")
    return value


def _default_head_dim(config: ConfigFile, family: Family) -> int:
    if family == "qwen3":
        return _QWEN3_HEAD_DIM
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"`hidden_size` {config.hidden_size} does not divide into "
            f"{config.num_attention_heads} heads",
            hint="give `head_dim`",
        )
    return config.hidden_size // config.num_attention_heads
