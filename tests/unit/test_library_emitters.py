"""DeepSpeed's, Accelerate's and nanotron's files: batches add up, degrees are the plan's, keys are
theirs, and what they cannot run is refused with the nearest plan."""
# ruff: noqa: E501  (a table of layouts and messages)

import json
from math import prod

import pytest
import yaml

from launch.framework import accelerate, deepspeed, nanotron
from launch.recipe import recipe_of
from profiler.errors import UserError
from tests.emitted import (
    ACCELERATE,
    DEEPSPEED,
    NANOTRON,
    accelerate_plan,
    deepspeed_plan,
    nanotron_plan,
    plan_of,
)

NANOTRON_KEYS = {
    "general": "project run seed step consumed_train_samples benchmark_csv_path ignore_sanity_checks",
    "parallelism": "dp pp tp pp_engine tp_mode tp_linear_async_communication recompute_layer moe_layer_recompute tp_recompute_allgather expert_parallel_size context_parallel_size",
    "model": "model_config init_method dtype make_vocab_size_divisible_by ddp_bucket_cap_mb",
    "tokenizer": "tokenizer_name_or_path tokenizer_revision tokenizer_max_length",
    "tokens": "sequence_length train_steps micro_batch_size batch_accumulation_per_replica val_check_interval limit_val_batches limit_test_batches",
    "optimizer": "optimizer_factory zero_stage weight_decay clip_grad accumulate_grad_in_fp32 learning_rate_scheduler weight_decay_exclude_named_params",
    "checkpoints": "checkpoints_path checkpoint_interval save_initial_state save_final_state resume_checkpoint_path load_lr_scheduler load_optimizer checkpoints_path_is_shared_file_system",
    "logging": "log_level log_level_replica iteration_step_info_interval",
}
"""Fields of the dataclasses in src/nanotron/config of huggingface/nanotron at 00708b80, 19f88fbe."""


@pytest.mark.parametrize("name", DEEPSPEED)
def test_deepspeed_batches_add_up(name):
    plan = deepspeed_plan(name)
    _, emitted = deepspeed.emit(plan, recipe_of({"clip_norm": 1.0}))
    found = json.loads(emitted.files["deepspeed.json"])
    parts = (found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"])
    replicas = plan.chosen.config.num_replicas
    assert found["train_batch_size"] == prod(parts) * replicas == plan.job.global_batch
    assert found["zero_optimization"]["stage"] == plan.chosen.config.zero
    assert found["bf16"] == {"enabled": True}
    assert found.get("tensor_parallel", {"autotp_size": 1})["autotp_size"] == plan.chosen.config.tp
    assert found.get("pipeline", {"stages": 1})["stages"] == plan.chosen.config.pp


def test_deepspeed_sums_gradients_in_fp32_and_has_a_schedule():
    recipe = recipe_of({"lr_schedule": "cosine", "lr_warmup_steps": 3})
    _, emitted = deepspeed.emit(deepspeed_plan("zero3"), recipe)
    found = json.loads(emitted.files["deepspeed.json"])
    assert found["data_types"] == {"grad_accum_dtype": "fp32"}
    assert found["scheduler"]["type"] == "WarmupCosineLR"
    assert found["scheduler"]["params"]["warmup_num_steps"] == 3
    plain = plan_of("llama3-8b", "h100-1x8", dp_replicate=8)
    _, emitted = deepspeed.emit(plain, recipe_of({"lr_schedule": "wsd"}))
    found = json.loads(emitted.files["deepspeed.json"])
    assert not {"data_types", "scheduler"} & set(found)
    said = " ".join(emitted.differs)
    assert "gradients are summed in bf16" in said
    assert "it has no wsd" in said


def test_nanotron_is_told_of_the_data_and_of_what_decays():
    """Else it asserts that the data's vocabulary, which it does not know, is the model's."""
    _, emitted = nanotron.emit(nanotron_plan("tp-pp"), recipe_of({"lr_schedule": "cosine"}))
    found = yaml.safe_load(emitted.files["nanotron.yaml"])
    dataset = found["data_stages"][0]["data"]["dataset"]
    assert dataset["vocab_size"] == 128256
    assert dataset["tokenizer_name"] == found["tokenizer"]["tokenizer_name_or_path"]
    assert found["optimizer"]["weight_decay_exclude_named_params"] == [".*norm.*", ".*bias"]
    assert found["optimizer"]["learning_rate_scheduler"]["lr_decay_steps"] == 12


def test_deepspeed_offloads():
    _, emitted = deepspeed.emit(deepspeed_plan("zero3"), recipe_of({}))
    zero = json.loads(emitted.files["deepspeed.json"])["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_has_the_degrees(name):
    plan = accelerate_plan(name)
    _, emitted = accelerate.emit(plan, recipe_of({}))
    found = yaml.safe_load(emitted.files["accelerate.yaml"])
    assert found["num_processes"] == plan.chosen.config.num_devices
    if name == "ddp":
        assert found["distributed_type"] == "MULTI_GPU"
        return
    sizes = {k.rpartition("config_")[2]: v for k, v in found["parallelism_config"].items()}
    sizes.pop("cp_comm_strategy", None)
    assert prod(sizes.values()) == plan.chosen.config.num_devices
    assert sizes["tp_size"] == plan.chosen.config.tp


@pytest.mark.parametrize("recipe", [{}, {"lr_schedule": "wsd", "checkpoint_every": 5}])
@pytest.mark.parametrize("name", NANOTRON)
def test_nanotron_keys_are_its_own(name, recipe):
    plan = nanotron_plan(name)
    _, emitted = nanotron.emit(plan, recipe_of(recipe))
    found = yaml.safe_load(emitted.files["nanotron.yaml"])
    assert set(found) - {"data_stages"} <= set(NANOTRON_KEYS)
    for section, keys in NANOTRON_KEYS.items():
        assert set(found.get(section, {})) <= set(keys.split())
    parallelism, tokens = found["parallelism"], found["tokens"]
    degrees = (parallelism["dp"], parallelism["pp"], parallelism["tp"])
    assert prod(degrees) == plan.chosen.config.num_devices
    batch = tokens["micro_batch_size"] * tokens["batch_accumulation_per_replica"]
    assert batch * parallelism["dp"] == plan.job.global_batch
    assert found["model"]["model_config"]["attention_bias"] == plan.model.qkv_bias


@pytest.mark.parametrize(
    ("emit", "degrees", "why", "hint"),
    [
        (deepspeed.emit, {"cp": 8}, "its file has no cp", "--pin cp=1"),
        (deepspeed.emit, {"pp": 2, "tp": 4}, "AutoTP goes with no pipeline", "--pin pp=1"),
        (deepspeed.emit, {"pp": 2, "dp_shard": 4, "zero": 2}, "ZeRO 1 at most", "--pin zero=1"),
        (deepspeed.emit, {"tp": 2, "dp_shard": 4, "zero": 3}, "AutoTP takes ZeRO 2", "--pin zero=2"),
        (deepspeed.emit, {"dp_replicate": 2, "dp_shard": 4, "zero": 2}, "shards over all replicas", "--pin dp_replicate=1"),
        (deepspeed.emit, {"pp": 2, "dp_shard": 4, "zero": 1, "layers": (20, 12)}, "evenly or by parameters", "--pin pp=1"),
        (accelerate.emit, {"pp": 8}, "it has no pp", "--pin pp=1"),
        (accelerate.emit, {"dp_shard": 8, "zero": 1}, "FSDP2 shards gradients", "--pin zero=2"),
        (accelerate.emit, {"dp_replicate": 2, "tp": 4}, "nothing but whole models", "--pin zero=2"),
        (accelerate.emit, {"dp_shard": 8, "zero": 3, "recompute": "selective"}, "whole layers or none", "--pin recompute=full"),
        (nanotron.emit, {"dp_shard": 8, "zero": 3}, "its ZeRO is of stage 1", "--pin zero=1"),
        (nanotron.emit, {"pp": 4, "vpp": 2, "schedule": "interleaved", "tp": 2}, "it has no vpp; it has no schedule interleaved", "--pin vpp=1,schedule=1f1b"),
        (nanotron.emit, {"pp": 8, "batch": 4}, "its 1f1b takes 7 micro-batches at least", "--pin schedule=gpipe"),
        (nanotron.emit, {"cp": 8}, "it has no cp", "--pin cp=1"),
    ],
)  # fmt: skip
def test_refusals(emit, degrees, why, hint):
    with pytest.raises(UserError, match=why) as caught:
        emit(plan_of("llama3-8b", "h100-1x8", **degrees), recipe_of({}))
    assert hint in caught.value.hint
