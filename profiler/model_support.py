"""Which models the reference runtime (`launch/runtime`) can train, and so `profile` can measure.

The runtime builds a layer from a fixed set of parts; a `ModelSpec` describes more. What it has no
part for is refused by name, also within its families: a Llama with biases everywhere, say. So is a
stretched rotary embedding, with which the runtime would compute another function than the model.
"""

from collections.abc import Callable

from profiler.errors import UserError
from profiler.model import Family, ModelSpec

REFERENCE_FAMILIES: tuple[Family, ...] = (
    "llama", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "dots1",
)  # fmt: skip

_PARTS: tuple[tuple[str, Callable[[ModelSpec], object]], ...] = (
    ("multi-head latent attention (MLA)", lambda m: m.is_mla),
    ("linear attention", lambda m: "linear" in m.attention_pattern),
    ("sliding-window attention", lambda m: "sliding" in m.attention_pattern),
    ("attention sinks", lambda m: m.attention_sinks),
    ("a gate on the attention's output", lambda m: m.attention_gate),
    ("value heads of another width", lambda m: m.value_head_dim not in (0, m.head_dim)),
    ("multi-token prediction", lambda m: m.num_mtp_layers),
    ("dense layers between MoE layers", lambda m: m.num_experts and m.moe_every > 1),
    ("a feed-forward network without a gate", lambda m: not m.gated_ffn),
    ("another activation than SiLU", lambda m: m.activation != "silu"),
    ("LayerNorm", lambda m: m.layer_norm),
    ("another number of norms than two a layer", lambda m: m.norms_per_layer != 2),
    ("a norm behind the embedding", lambda m: m.embed_norm),
    ("positions other than rotary ones", lambda m: m.position != "rope"),
    ("a scaled rotary embedding", lambda m: m.rope_scaling),
    (
        "biases beside those of q, k and v",
        lambda m: m.out_bias or m.ffn_bias or m.expert_bias or m.head_bias or m.router_linear_bias,
    ),
)


def runs_on_reference(model: ModelSpec) -> str | None:
    """Why the reference runtime cannot train the model, in words; None where it can."""
    for part, has in _PARTS:
        if has(model):
            return f"it has {part}"
    if model.family not in REFERENCE_FAMILIES:
        return f"its family is `{model.family}`"
    return None


def check_reference(model: ModelSpec, *, hint: str, place: str | None = None) -> None:
    """Raise `UserError` for a model that the reference runtime cannot train."""
    why = runs_on_reference(model)
    if why is not None:
        message = f"the reference runtime does not train model `{model.name}`: {why}"
        raise UserError(message, hint=hint, place=place)
