"""`ModelSpec` -> Hugging Face `config.json`: the inverse of `profiler.huggingface`.

The keys are those that the published files of a family use; both `rope_theta` and
`rope_parameters` are given, because `transformers` before 5 reads the one and later versions the
other. What is written is read back and compared, so that a model which its family cannot express is
refused instead of exported as another one. `capacity_factor` and `capacity_group` are rules of
training and are left out, as is what a `ModelSpec` does not know: context length and token ids.
"""

from dataclasses import fields
from typing import Any

from profiler.codec import replace
from profiler.errors import UserError
from profiler.huggingface import model_from_config
from profiler.model import Family, ModelSpec
from profiler.model_support import runs_on_reference

_CLASSES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "dots1": "Dots1ForCausalLM",
}


def config_json(model: ModelSpec) -> dict[str, Any]:
    """Content of the `config.json` that `profiler.huggingface` reads as `model`.

    Raises `UserError` where the model has what its family has not.
    """
    _refuse_others(model)
    config = {
        "architectures": [_CLASSES[model.family]],
        "model_type": model.family,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": model.tie_embeddings,
        **_expert_keys(model),
    }
    _check(model, config)
    return config


def _refuse_others(model: ModelSpec) -> None:
    why = runs_on_reference(model)
    if why is not None:
        known = ", ".join(_CLASSES)
        raise UserError(
            f"model `{model.name}` cannot be written as a `config.json`: {why}",
            hint=f"only models that the reference runtime trains are, of the families {known}",
        )


def _expert_keys(model: ModelSpec) -> dict[str, Any]:
    if model.family == "mixtral":
        return {
            "intermediate_size": model.expert_width,
            "num_local_experts": model.num_experts,
            "num_experts_per_tok": model.num_experts_per_token,
        }
    if model.family not in ("qwen2_moe", "qwen3_moe", "dots1"):
        return {}
    keys: dict[str, Any] = {
        "moe_intermediate_size": model.expert_width,
        "num_experts_per_tok": model.num_experts_per_token,
        "norm_topk_prob": model.norm_topk,
    }
    if model.family == "dots1":
        return keys | {
            "n_routed_experts": model.num_experts,
            "n_shared_experts": model.shared_ffn_hidden_size // model.expert_width,
            "first_k_dense_replace": model.first_dense_layers,
            "routed_scaling_factor": model.routed_scale,
            "n_group": model.num_expert_groups,
            "topk_group": model.num_chosen_groups,
            "sliding_window": None,  # left out, it would be 4096 from layer 62 on
        }
    keys |= {
        "num_experts": model.num_experts,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(model.first_dense_layers)),
    }
    if model.family == "qwen2_moe":
        shared = model.shared_ffn_hidden_size
        keys |= {"shared_expert_intermediate_size": shared, "qkv_bias": model.qkv_bias}
    return keys


def _check(model: ModelSpec, config: dict[str, Any]) -> None:
    refusal = f"model `{model.name}` cannot be written as a `{model.family}` model of Hugging Face"
    try:
        found = model_from_config(config, model.name, "config.json")
    except UserError as e:
        raise UserError(f"{refusal}: {e.message}") from None
    field = first_difference(model, found)
    if field is not None:
        told, kept = getattr(model, field), getattr(found, field)
        raise UserError(f"{refusal}: its `{field}` would be {kept}, not {told}")


def first_difference(one: ModelSpec, other: ModelSpec) -> str | None:
    """First field in which two models differ, names and capacity apart; None: they are one."""
    a, b = _essence(one), _essence(other)
    return next((f.name for f in fields(a) if getattr(a, f.name) != getattr(b, f.name)), None)


def _essence(model: ModelSpec) -> ModelSpec:
    """The model without its name and its capacity, each width at one place."""
    width = model.expert_width if model.num_experts else 0
    ffn = model.ffn_hidden_size if model.num_dense_layers else width
    return replace(
        model,
        name="",
        ffn_hidden_size=ffn,
        expert_ffn_hidden_size=width,
        capacity_factor=0.0,
        capacity_group=0,
    )
