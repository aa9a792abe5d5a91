"""No field of a plan is lost on the way to a framework: whichever is changed, what is emitted
changes too, or it is refused, or the script says that it differs."""

import dataclasses

import pytest

from launch.framework.emitters import FRAMEWORKS, write
from launch.recipe import Recipe, recipe_of
from planner.config import ParallelConfig
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from tests.emitted import plan_of

SHARDED = {"dp_shard": 8, "zero": 3}
LAYOUTS = {
    "megatron": SHARDED | {"zero": 1},
    "megatron-bridge": SHARDED | {"zero": 1},
    "torchtitan": SHARDED,
    "torchtitan-0.2": SHARDED,
    "deepspeed": SHARDED,
    "accelerate": SHARDED,
    "nanotron": SHARDED | {"zero": 1},
}
OWN_SCRIPT = ("deepspeed", "accelerate")
"""Whose model is the user's script's."""
LINEAR = {f"linear_{name}": 4 for name in (
    "num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel"
)}  # fmt: skip
MODEL = {
    "vocab_size": {"vocab_size": 64000},
    "hidden_size": {"hidden_size": 2048},
    "num_layers": {"num_layers": 16},
    "num_heads": {"num_heads": 16},
    "num_kv_heads": {"num_kv_heads": 4},
    "head_dim": {"head_dim": 64},
    "ffn_hidden_size": {"ffn_hidden_size": 8192},
    "gated_ffn": {"gated_ffn": False},
    "activation": {"activation": "gelu"},
    "tie_embeddings": {"tie_embeddings": True},
    "qkv_bias": {"qkv_bias": True},
    "out_bias": {"out_bias": True},
    "ffn_bias": {"ffn_bias": True},
    "head_bias": {"head_bias": True},
    "layer_norm": {"layer_norm": True},
    "norm_bias": {"layer_norm": True, "norm_bias": False},
    "norms_per_layer": {"norms_per_layer": 4},
    "embed_norm": {"embed_norm": True},
    "position": {"position": "none"},
    "max_positions": {"position": "learned", "max_positions": 8192},
    "rope_scaling": {"rope_scaling": "yarn"},
    "qk_norm": {"qk_norm": True},
    "attention_gate": {"attention_gate": True},
    "attention_sinks": {"attention_sinks": True},
    "attention_pattern": {"attention_pattern": ("sliding", "full"), "window": 1024},
    "window": {"attention_pattern": ("sliding",), "window": 1024},
    "chunked_window": {"attention_pattern": ("sliding",), "window": 512, "chunked_window": True},
    "kv_lora_rank": {"kv_lora_rank": 512, "rope_head_dim": 64, "num_kv_heads": 32},
    "value_head_dim": {"value_head_dim": 64},
    "linear_num_key_heads": {"attention_pattern": ("linear",), **LINEAR},
    "num_mtp_layers": {"num_mtp_layers": 1},
    "norm_eps": {"norm_eps": 1e-3},
    "rope_theta": {"rope_theta": 12345.0},
}
EXPERTS = {
    "num_experts": {"num_experts": 64},
    "num_experts_per_token": {"num_experts_per_token": 4},
    "first_dense_layers": {"first_dense_layers": 1},
    "moe_every": {"moe_every": 2},
    "expert_ffn_hidden_size": {"expert_ffn_hidden_size": 512},
    "expert_bias": {"expert_bias": True},
    "shared_ffn_hidden_size": {"shared_ffn_hidden_size": 512},
    "shared_gate": {"shared_ffn_hidden_size": 512, "shared_gate": True},
    "router_score": {"router_score": "sigmoid"},
    "router_bias": {"router_bias": True},
    "router_linear_bias": {"router_linear_bias": True},
    "norm_topk": {"norm_topk": False},
    "routed_scale": {"routed_scale": 2.5},
    "num_expert_groups": {"num_expert_groups": 8, "num_chosen_groups": 4},
    "capacity_factor": {"capacity_factor": 1.0, "capacity_group": 64},
}
MLA = ("q_lora_rank", "rope_head_dim")
REFUSED = "refused:"
JOINT = (
    "num_chosen_groups", "capacity_group", *MLA, *(name for name in LINEAR if name not in MODEL)
)  # fmt: skip
"""Without a meaning of their own: changed with another one."""


def text_of(name, plan, recipe, folder):
    """All that is emitted, but for the plan's name and label; the refusal where there is one."""
    try:
        written = write(name, plan, recipe, folder, None)
        text = "\n".join((*written.files.values(), written.command))
    except UserError as e:
        text = f"{REFUSED} {e}"
    job, config = plan.job, plan.chosen.config
    head = f"{job.global_batch} sequences of {job.seq_len} tokens a step, {config.num_devices}"
    for told in (plan.id, config.label, head):
        text = text.replace(told, "")
    return text


def test_every_field_has_a_change():
    known = {f.name for f in dataclasses.fields(ModelSpec)} - {"name", "family"}
    assert known == {*MODEL, *EXPERTS, *JOINT}


@pytest.mark.parametrize("field", [*MODEL, *EXPERTS])
@pytest.mark.parametrize("name", [name for name in FRAMEWORKS if name not in OWN_SCRIPT])
def test_no_field_of_the_model_is_lost(name, field, tmp_path):
    of = "qwen3-30b-a3b" if field in EXPERTS else "llama3-8b"
    plan = plan_of(of, "h100-1x8", **LAYOUTS[name])
    model = dataclasses.replace(plan.model, **(MODEL | EXPERTS)[field])
    changed = dataclasses.replace(plan, model=model)
    recipe = recipe_of({})
    before = text_of(name, plan, recipe, tmp_path)
    assert before.startswith(REFUSED) or before != text_of(name, changed, recipe, tmp_path)


CONFIG = {
    "pp": {"pp": 2}, "dp_replicate": {"dp_replicate": 2}, "tp": {"tp": 2},
    "micro_batch": {"micro_batch": 2}, "recompute": {"recompute": "full"},
    "schedule": {"pp": 2, "schedule": "gpipe"},
    "vpp": {"pp": 2, "vpp": 2, "schedule": "interleaved"},
    "dp_shard": {"dp_shard": 4}, "zero": {"zero": 2}, "cp": {"cp": 2},
    "cp_method": {"cp": 2, "cp_method": "all_gather"},
    "cp_heads": {"cp": 4, "cp_method": "hybrid", "cp_heads": 2},
    "offload": {"offload": "optimizer"},
}  # fmt: skip
ROUTED = {
    "ep": {"ep": 4}, "etp": {"tp": 2, "etp": 2}, "ep_overlap": {"ep": 4, "ep_overlap": 2},
}  # fmt: skip
BASES = {
    "schedule": "pp",
    "vpp": "pp",
    "cp_method": "cp",
    "cp_heads": "cp",
    "etp": "tp",
    "ep_overlap": "ep",
}
"""The change that a field's own is compared with."""


@pytest.mark.parametrize("field", [*CONFIG, *ROUTED])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_no_field_of_the_layout_is_lost(name, field, tmp_path):
    assert {f.name for f in dataclasses.fields(ParallelConfig)} == {*CONFIG, *ROUTED}
    of = "qwen3-30b-a3b" if field in ROUTED else "llama3-8b"
    changes = CONFIG | ROUTED
    base = changes.get(BASES.get(field, ""), {})
    texts = {
        text_of(name, plan_of(of, "h100-4x8", **(LAYOUTS[name] | some)), recipe_of({}), tmp_path)
        for some in (base, changes[field])
    }
    assert len(texts) == 2 or all(text.startswith(REFUSED) for text in texts)


JOB = {"global_batch": {"batch": 128}, "seq_len": {"seq_len": 2048},
       "precision": {"precision": "fp32"}}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, f) for name in FRAMEWORKS for f in JOB if (name, f) != ("deepspeed", "seq_len")],
)
def test_no_field_of_the_job_is_lost(name, field, tmp_path):
    unused = {"optimizer", "memory_reserve"}  # one value, and the planner's
    assert {f.name for f in dataclasses.fields(JobSpec)} - unused == {*JOB}
    layout = LAYOUTS[name]
    texts = {
        text_of(name, plan_of("llama3-8b", "h100-1x8", **layout, **some), recipe_of({}), tmp_path)
        for some in ({}, JOB[field])
    }
    assert len(texts) == 2


RECIPE = {
    "data": {"data": "x.txt"}, "steps": {"steps": 20}, "warmup": {"warmup": 5}, "seed": {"seed": 7},
    "learning_rate": {"learning_rate": 1e-4}, "lr_schedule": {"lr_schedule": "cosine"},
    "lr_warmup_steps": {"lr_warmup_steps": 4}, "lr_total_steps": {"lr_total_steps": 50},
    "wsd_decay_share": {"lr_schedule": "wsd", "wsd_decay_share": 0.5},
    "min_lr_ratio": {"lr_schedule": "cosine", "min_lr_ratio": 0.2},
    "weight_decay": {"weight_decay": 0.1}, "beta1": {"beta1": 0.8}, "beta2": {"beta2": 0.99},
    "epsilon": {"epsilon": 1e-6}, "clip_norm": {"clip_norm": 1.0},
    "checkpoint_every": {"checkpoint_every": 5}, "keep_checkpoints": {"keep_checkpoints": 3},
    "rebalance_experts_every": {"rebalance_experts_every": 5}, "weights": {"weights": "w"},
    "resume": {"resume": "r"}, "trace": {"trace": True}, "record_routing": {"record_routing": 0.5},
    "max_restarts": {"max_restarts": 2},
}  # fmt: skip
SCRIPTS_OWN = {
    "deepspeed": {
        "steps", "warmup", "seed", "lr_total_steps", "checkpoint_every", "wsd_decay_share",
    },
    "accelerate": {
        "steps", "warmup", "seed", "lr_schedule", "lr_warmup_steps", "lr_total_steps",
        "weight_decay", "beta1", "beta2", "epsilon", "clip_norm", "checkpoint_every",
        "wsd_decay_share", "min_lr_ratio",
    },
}  # fmt: skip
"""What the script says, in any case, to be the user's script's."""
UNDER = {"wsd_decay_share": "wsd", "min_lr_ratio": "cosine", "lr_total_steps": "cosine"}
"""The schedule in which a field has a meaning."""


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, f) for name in FRAMEWORKS for f in RECIPE if f not in SCRIPTS_OWN.get(name, ())],
)
def test_no_field_of_the_recipe_is_lost(name, field, tmp_path):
    known = {f.name for f in dataclasses.fields(Recipe)}
    assert known - {"format_version", "kind", "rebalance_experts_gain"} == {*RECIPE}
    plan = plan_of("llama3-8b", "h100-1x8", **LAYOUTS[name])
    base = {"lr_schedule": UNDER[field]} if field in UNDER else {}
    texts = {text_of(name, plan, recipe_of(base | some), tmp_path) for some in ({}, RECIPE[field])}
    assert len(texts) == 2
