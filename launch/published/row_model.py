"""A row's model: a catalogued shape with the row's columns over it, or the columns alone.

What neither says is assumed: 64 heads, head width hidden / heads, as many key/value heads as heads,
feed-forward 4 * hidden (gated: 8/3, in steps of 256), vocabulary 51,200 of a GPT and 131,072 of
Grok, gated where the name is that of a family that is. Layers follow from a size in the name,
(P - V h) / (12 h^2), in whole pipeline stages; and where the name states a size, the head is tied
or not by which comes nearer to it. Truncated models keep one of their first dense layers.
"""

import functools
import re
from typing import Any

from launch.published.cells import (
    UnusableRowError,
    count,
    extends,
    nearest,
    number,
    plain,
    shown,
    size_in,
    yes,
)
from launch.published.table import Cells
from profiler.catalog.load import load_model, names
from profiler.codec import replace
from profiler.errors import UserError
from profiler.model import ModelSpec

_GATED = re.compile(
    "llama|deepseek|qwen|mixtral|mistral|internlm|moonlight|kimi|gemma|grok|gpt.?oss"
)
_TIED = re.compile("gpt|mpt|bloom")
_MLA = re.compile(
    r"kv_lora ([1-9][0-9]{0,5}) qk ([1-9][0-9]{0,5})\+([1-9][0-9]{0,5}) v ([1-9][0-9]{0,5})", re.I
)
_VOCABS = (("grok", 131072), ("250k", 250880))


@functools.cache
def _shapes() -> dict[str, ModelSpec]:
    """Plain name -> catalogued model, longest names first."""
    found = {plain(name): load_model(name) for name in names("model")}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def model_of(cells: Cells) -> ModelSpec:
    """The row's model; `UnusableRowError` where its columns make none."""
    base = _catalogued(cells)
    try:
        return _on_top(base, cells) if base else _alone(cells)
    except UserError as e:
        raise UnusableRowError(f"no such model can be: {shown(e.message, 90)}") from None


def _catalogued(cells: Cells) -> ModelSpec | None:
    """The catalogue's model that the row names, unless the row's hidden size is another."""
    hidden = number(cells, "hidden")
    for text in (cells.get("model_key", ""), cells.get("model", "")):
        key = plain(text)
        for name, shape in _shapes().items():
            if extends(key, name) and hidden in (None, shape.hidden_size):
                return shape
    return None


def _on_top(base: ModelSpec, cells: Cells) -> ModelSpec:
    """A catalogued shape with what the row says."""
    layers = count(cells, "layers", base.num_layers)
    heads = count(cells, "heads", base.num_heads)
    given: dict[str, Any] = {
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads if base.is_mla else count(cells, "kv_heads", base.num_kv_heads),
        "vocab_size": _vocab(cells, base.vocab_size),
        "ffn_hidden_size": count(cells, "ffn_hidden", base.ffn_hidden_size),
    }
    if base.num_experts:
        given["num_experts"] = count(cells, "n_experts", base.num_experts)
        given["num_experts_per_token"] = count(cells, "topk", base.num_experts_per_token)
        given["expert_ffn_hidden_size"] = count(cells, "moe_ffn_hidden", base.expert_width)
        given["shared_ffn_hidden_size"] = _shared(cells, base.shared_ffn_hidden_size)
    if layers < base.num_layers:
        given["first_dense_layers"] = min(base.first_dense_layers, 1)
        given["num_mtp_layers"] = 0
    return replace(base, **given)


def _shared(cells: Cells, default: int) -> int:
    """Width of the shared experts together; a stated 0 is none."""
    stated = number(cells, "shared_expert_ffn")
    return 0 if stated == 0 else count(cells, "shared_expert_ffn", default)


def _vocab(cells: Cells, default: int | None) -> int:
    text = f"{cells.get('vocab', '')} {cells.get('model', '')}".lower()
    value = number(cells, "vocab")
    if value is not None and "k" not in cells["vocab"].lower():
        return count(cells, "vocab")
    known = next((v for word, v in _VOCABS if word in text), None)
    return known or (count(cells, "vocab") if value is not None else default or 51200)


def _alone(cells: Cells) -> ModelSpec:
    """A model from the row's columns alone."""
    name = cells.get("model", "")
    key = f"{cells.get('model_key', '')} {name}".lower()
    hidden = _or_named(cells, "hidden", key)
    heads = count(cells, "heads", 64)
    experts = int(number(cells, "n_experts") or 0) and count(cells, "n_experts")
    given = yes(cells, "gated")
    gated = bool(_GATED.search(key)) if given is None else given
    wide = -(-8 * hidden // 3 // 256) * 256 if gated else 4 * hidden
    ffn = count(cells, "ffn_hidden", wide)
    vocab = _vocab(cells, None)
    fields: dict[str, Any] = {
        "name": name or "model",
        "family": "llama" if gated else "gpt2",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_layers": _layers(cells, hidden, vocab),
        "num_heads": heads,
        "num_kv_heads": count(cells, "kv_heads", heads),
        "head_dim": count(cells, "head_dim", max(1, hidden // heads)),
        "ffn_hidden_size": ffn,
        "gated_ffn": gated,
        "num_experts": experts,
        "num_experts_per_token": count(cells, "topk", 1) if experts else 0,
        "expert_ffn_hidden_size": count(cells, "moe_ffn_hidden", ffn) if experts else 0,
    }
    if experts:
        fields["shared_ffn_hidden_size"] = _shared(cells, 0)
    fields |= _attention(cells.get("attn", ""), heads)
    untied = ModelSpec(**fields)
    return replace(untied, tie_embeddings=_is_tied(cells, untied, key))


def _attention(text: str, heads: int) -> dict[str, Any]:
    """Fields that the words of the column `attn` give."""
    found = _MLA.search(text)
    if found:
        kv, nope, rope, value = map(int, found.groups())
        q = re.search(r"(?<!no )\bq_lora ([1-9][0-9]{0,5})", text, re.I)
        return {
            "num_kv_heads": heads, "kv_lora_rank": kv, "head_dim": nope, "rope_head_dim": rope,
            "value_head_dim": value, "q_lora_rank": int(q[1]) if q else 0,
        }  # fmt: skip
    window = re.search(r"sliding window ([1-9][0-9]{0,8}) every other", text, re.I)
    if window:
        return {"attention_pattern": ("sliding", "full"), "window": int(window[1])}
    return {}


def _or_named(cells: Cells, column: str, key: str) -> int:
    """A column that nothing stands for where the catalogue has no model of that name."""
    if number(cells, column) is None:
        near = nearest(cells.get("model", ""), (m.name for m in _shapes().values())) if key else ""
        known = f": the catalogue has no model `{shown(cells.get('model', ''))}`{near}"
        raise UnusableRowError(f"no `{column}`{known if key.strip() else ''}")
    return count(cells, column)


def _layers(cells: Cells, hidden: int, vocab: int) -> int:
    size = size_in(cells.get("model", ""))
    if number(cells, "layers") is not None or size is None:
        return _or_named(cells, "layers", cells.get("model", ""))
    stages = count(cells, "pp", 1)
    layers = max(1, round((size - vocab * hidden) / (12 * hidden**2) / stages)) * stages
    return count({"layers": str(layers)}, "layers")


def _is_tied(cells: Cells, untied: ModelSpec, key: str) -> bool:
    given = yes(cells, "tied")
    if given is not None:
        return given
    size = size_in(untied.name)
    if size is not None and not _TIED.search(key):
        table = untied.vocab_size * untied.hidden_size
        return abs(untied.num_params - table - size) < abs(untied.num_params - size)
    return bool(_TIED.search(key))
