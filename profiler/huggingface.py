"""Hugging Face `config.json` -> `ModelSpec`, for model types llama, qwen2, qwen3 and mixtral.

Names and defaults are those of the configuration classes of the `transformers` library
(LlamaConfig, Qwen2Config, Qwen3Config, MixtralConfig). A default is used only where leaving the key
out is usual; sizes that those classes would silently invent (`hidden_size` 4096, say) must be
given. Keys of no consequence for cost are passed over. What would change the count of parameters or
FLOPs and is not modelled is refused: biases other than Qwen2's, sliding-window attention, an
activation other than SwiGLU's. `rope_scaling` changes angles alone: it costs nothing and is passed
over.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, cast, get_args

from annotated_types import Gt, Le

from profiler.codec import build, parse, place_of, read_text, record
from profiler.errors import UserError
from profiler.model import Family, ModelSpec
from profiler.yaml_nodes import Lines

FILE_NAME = "config.json"
FAMILIES: tuple[Family, ...] = get_args(Family)

Size = Annotated[int, Gt(0), Le(2**31 - 1)]
Count = Annotated[int, Gt(0), Le(100_000)]
PositiveFloat = Annotated[float, Gt(0)]

# Defaults by family where the key is absent; `null` means one key/value head per head.
_KV_HEADS: dict[Family, int] = {"qwen2": 32, "qwen3": 32, "mixtral": 8}
_NORM_EPS: dict[Family, float] = {"llama": 1e-6, "qwen2": 1e-6, "qwen3": 1e-6, "mixtral": 1e-5}
_ROPE_THETA: dict[Family, float] = {"llama": 1e4, "qwen2": 1e4, "qwen3": 1e4, "mixtral": 1e6}
_QWEN3_HEAD_DIM = 128
_MIXTRAL_CONTEXT = 4096 * 32


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
    layer_types: tuple[str, ...] | None = None
    num_local_experts: Count = 8
    num_experts_per_tok: Count = 2


_KEYS = tuple(ConfigFile.__dataclass_fields__)
_ROPE_KEYS = tuple(RopeParameters.__dataclass_fields__)
# A key means something only to the families that know it.
_ONLY: dict[str, tuple[Family, ...]] = {
    "attention_bias": ("llama", "qwen3"),
    "mlp_bias": ("llama",),
    "use_sliding_window": ("qwen2", "qwen3"),
    "sliding_window": ("mixtral",),
    "layer_types": ("qwen2", "qwen3"),
    "num_local_experts": ("mixtral",),
    "num_experts_per_tok": ("mixtral",),
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
    refused = _refused(config, family)
    if refused is not None:
        key, message = refused
        raise UserError(message, place=place_of((key,), place, lines or {}, text))
    try:
        return _spec(config, family, name, given_kv_heads="num_key_value_heads" in known)
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


def _refused(config: ConfigFile, family: Family) -> tuple[str, str] | None:
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
    context = config.max_position_embeddings or _MIXTRAL_CONTEXT
    if config.sliding_window is not None and config.sliding_window < context:
        window = config.sliding_window
        message = f"sliding-window attention ({window} of {context} tokens) is not supported"
        return "sliding_window", message
    return None


def _spec(config: ConfigFile, family: Family, name: str, *, given_kv_heads: bool) -> ModelSpec:
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads
    if kv_heads is None:
        kv_heads = heads if given_kv_heads else _KV_HEADS.get(family, heads)
    rope = config.rope_parameters.rope_theta if config.rope_parameters else None
    is_moe = family == "mixtral"
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
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        num_experts=config.num_local_experts if is_moe else 0,
        num_experts_per_token=config.num_experts_per_tok if is_moe else 0,
        norm_eps=config.rms_norm_eps or _NORM_EPS[family],
        rope_theta=config.rope_theta or rope or _ROPE_THETA[family],
    )


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
