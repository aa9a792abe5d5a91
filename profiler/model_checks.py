"""What the fields of a `ModelSpec` must have in common; `UserError` where they have not."""

from typing import TYPE_CHECKING

from profiler.errors import UserError

if TYPE_CHECKING:
    from profiler.model import ModelSpec


def check_model(model: "ModelSpec") -> None:
    """Raise `UserError` for fields that contradict each other."""
    for check in (_check_experts, _check_groups, _check_heads, _check_attention, _check_position):
        message = check(model)
        if message is not None:
            raise UserError(f"model `{model.name}`: {message}")


def _check_heads(m: "ModelSpec") -> str | None:
    if m.num_heads % m.num_kv_heads:
        return f"{m.num_heads} heads do not divide into {m.num_kv_heads} key/value heads"
    if not m.kv_lora_rank and (m.q_lora_rank or m.rope_head_dim):
        return "`q_lora_rank` and `rope_head_dim` need `kv_lora_rank`"
    if m.kv_lora_rank and not m.rope_head_dim:
        return "`kv_lora_rank` needs `rope_head_dim`"
    if m.kv_lora_rank and m.num_kv_heads != m.num_heads:
        return f"with `kv_lora_rank`, {m.num_heads} heads have as many key/value heads"
    if m.kv_lora_rank and (m.qkv_bias or m.qk_norm or m.attention_gate):
        return "`kv_lora_rank` goes with none of `qkv_bias`, `qk_norm` and `attention_gate`"
    return None


def _check_attention(m: "ModelSpec") -> str | None:
    if len(m.attention_pattern) > m.num_layers:
        length = len(m.attention_pattern)
        return f"a pattern of {length} attentions, but only {m.num_layers} layers"
    if ("sliding" in m.attention_pattern) != (m.window > 0):
        return "`sliding` in `attention_pattern` and `window` go together"
    if m.chunked_window and not m.window:
        return "`chunked_window` needs `window`"
    linear = (
        m.linear_num_key_heads,
        m.linear_num_value_heads,
        m.linear_key_head_dim,
        m.linear_value_head_dim,
        m.linear_conv_kernel,
    )
    if "linear" in m.attention_pattern:
        if not all(linear):
            return "`linear` in `attention_pattern` needs all of the fields `linear_*`"
        if m.linear_num_value_heads % m.linear_num_key_heads:
            values, keys = m.linear_num_value_heads, m.linear_num_key_heads
            return f"{values} value heads of linear attention do not divide into {keys} key heads"
    elif any(linear):
        return "fields `linear_*` need `linear` in `attention_pattern`"
    return None


def _check_position(m: "ModelSpec") -> str | None:
    if (m.position == "learned") != (m.max_positions > 0):
        return "`max_positions` and a learned `position` go together"
    if m.rope_scaling and m.position != "rope":
        return "`rope_scaling` needs `position` `rope`"
    return None


def _check_experts(m: "ModelSpec") -> str | None:
    if m.num_experts_per_token > m.num_experts:
        return f"{m.num_experts_per_token} experts per token, but only {m.num_experts} experts"
    if (m.num_experts > 0) != (m.num_experts_per_token > 0):
        return "`num_experts` and `num_experts_per_token` go together"
    if m.first_dense_layers > m.num_layers:
        return f"{m.first_dense_layers} dense layers first, but only {m.num_layers} layers"
    if m.moe_every > max(1, m.num_layers - m.first_dense_layers):
        return f"a MoE layer each {m.moe_every} layers, but too few layers"
    if (m.capacity_factor > 0) != (m.capacity_group > 0):
        return "`capacity_factor` and `capacity_group` go together"
    return None


def _check_groups(m: "ModelSpec") -> str | None:
    groups, chosen = m.num_expert_groups, m.num_chosen_groups
    if groups == 1 and chosen == 1:
        return None
    sizes = f"{m.num_experts} experts in {groups} groups"
    if m.num_experts % groups or m.num_experts // groups < 2:
        return f"{sizes} do not make equal groups of two or more"
    if chosen > groups or chosen * (m.num_experts // groups) < m.num_experts_per_token:
        return f"{sizes}: {m.num_experts_per_token} experts cannot be chosen from {chosen} groups"
    return None
