"""torchtitan's TOML and recipe: each field is one of its release, stages hold every module once, and
what it cannot run is refused."""
# ruff: noqa: E501  (a table of layouts and messages)

import ast
import json
import tomllib

import pytest

from launch.framework import torchtitan_recipe, torchtitan_toml
from launch.recipe import recipe_of
from profiler.errors import UserError
from tests.emitted import TITAN, plan_of, titan_plan
from tests.frameworks.torchtitan_fields import path_of

RECIPES = (
    {},
    {"lr_schedule": "wsd", "checkpoint_every": 5, "clip_norm": 1.0},
    {"lr_schedule": "cosine"},
)


def known(release):
    return json.loads(path_of(release).read_text(encoding="utf-8"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.get("lr_schedule", "plain"))
@pytest.mark.parametrize("name", TITAN)
def test_every_key_of_the_toml_is_one_of_the_release(name, recipe):
    _, emitted = torchtitan_toml.emit(titan_plan(name), recipe_of(recipe))
    fields = known(torchtitan_toml.RELEASE)
    tables = tomllib.loads(emitted.files["plan.toml"])
    assert set(tables) >= {"model", "parallelism", "training"}
    for table, values in tables.items():
        assert set(values) <= set(fields[table])
    ast.parse(emitted.files["planned_model.py"])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.get("lr_schedule", "plain"))
@pytest.mark.parametrize("name", TITAN)
def test_every_keyword_of_the_recipe_is_one_of_the_release(name, recipe):
    _, emitted = torchtitan_recipe.emit(titan_plan(name), recipe_of(recipe))
    fields = known(torchtitan_recipe.RELEASE)
    tree = ast.parse(emitted.files["planned.py"])
    seen = set()
    for node in ast.walk(tree):
        kind = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if kind in fields:
            assert {keyword.arg for keyword in node.keywords} <= set(fields[kind])
            seen.add(kind)
    assert seen >= {
        "Trainer.Config",
        "ParallelismConfig",
        "TrainingConfig",
        "CheckpointManager.Config",
    }


@pytest.mark.parametrize("name", ["tp-pp", "interleaved"])
def test_stages_hold_every_module_once(name):
    plan = titan_plan(name)
    _, emitted = torchtitan_toml.emit(plan, recipe_of({}))
    table = tomllib.loads(emitted.files["plan.toml"])["parallelism"]
    parts = table["module_fqns_per_model_part"]
    layers = [f"layers.{k}" for k in range(plan.model.num_layers)]
    assert [m for part in parts for m in part] == ["tok_embeddings", *layers, "norm", "output"]
    assert [sum("layers." in m for m in part) for part in parts] == list(
        plan.chosen.placement.layers_per_stage(plan.model.num_layers)
    )


def test_micro_batches_with_and_without_a_pipeline():
    """A pipeline gets the whole local batch and cuts it; without one it is accumulated."""
    for name, local in (("tp-pp", 64 // 2), ("fsdp", 1)):
        _, emitted = torchtitan_toml.emit(titan_plan(name), recipe_of({}))
        tables = tomllib.loads(emitted.files["plan.toml"])
        assert tables["training"]["local_batch_size"] == local
        assert tables["training"]["global_batch_size"] == 64


@pytest.mark.parametrize(
    ("emit", "model", "degrees", "why", "hint"),
    [
        (torchtitan_toml.emit, "llama3-8b", {"dp_shard": 8, "zero": 1}, "shards gradients with the optimizer", "--pin zero=2"),
        (torchtitan_toml.emit, "llama3-8b", {"dp_replicate": 4, "tp": 2}, "replicates nothing but whole models", "--pin zero=2"),
        (torchtitan_toml.emit, "llama3-8b", {"cp": 8, "cp_method": "ulysses"}, "no context parallelism by ulysses", "--pin cp_method=all_gather"),
        (torchtitan_toml.emit, "llama3-8b", {"tp": 2, "pp": 2}, "in bf16 only where it shards weights", "--pin zero=2"),
        (torchtitan_toml.emit, "qwen3-30b-a3b", {"tp": 2, "dp_shard": 2, "zero": 3}, "without ep are cut over tp", "--pin etp=2"),
        (torchtitan_toml.emit, "llama3-8b", {"tp": 8, "seq_len": 4104}, "two parts for each tp rank", "--pin tp=1"),
        (torchtitan_recipe.emit, "llama3-8b", {"pp": 8, "batch": 4}, "4 micro-batches are none of its 1f1b", "--pin schedule=gpipe"),
        (torchtitan_recipe.emit, "llama3-8b", {"pp": 4, "vpp": 2, "schedule": "interleaved", "batch": 11}, "11 micro-batches", "--pin schedule=gpipe"),
        (torchtitan_recipe.emit, "llama3-8b", {"pp": 4, "vpp": 2, "schedule": "dualpipev", "batch": 7}, "7 micro-batches", "--pin schedule=gpipe"),
        (torchtitan_recipe.emit, "llama3-8b", {"cp": 8}, "gathers keys and values over cp", "--pin cp_method=all_gather"),
        (torchtitan_toml.emit, "llama3-8b", {"dp_shard": 8, "zero": 3, "precision": "fp8"}, "no file is written for fp8", "--precision bf16"),
        (torchtitan_toml.emit, "llama3-8b", {"pp": 8, "schedule": "zero_bubble", "precision": "fp8"}, "fp8; no schedule zero_bubble", "--pin schedule=1f1b --precision bf16"),
        (torchtitan_toml.emit, "mixtral-8x7b", {"dp_shard": 8, "zero": 3}, "no model of family `mixtral`", "another framework"),
        (torchtitan_toml.emit, "qwen3-30b-a3b", {"dp_replicate": 4, "dp_shard": 2, "zero": 3, "ep": 4}, "stays within one replica", "--pin dp_replicate=1"),
        (torchtitan_recipe.emit, "qwen3-30b-a3b", {"dp_shard": 8, "zero": 3, "ep": 4, "ep_overlap": 2}, "tokens in chunks", "--pin ep_overlap=1"),
        (torchtitan_recipe.emit, "qwen3-30b-a3b", {"dp_shard": 4, "tp": 2, "zero": 3, "ep": 4, "etp": 2}, "no tensor parallelism of experts", "--pin etp=1"),
    ],
)  # fmt: skip
def test_refusals(emit, model, degrees, why, hint):
    with pytest.raises(UserError, match=why) as caught:
        emit(plan_of(model, "h100-1x8", **degrees), recipe_of({}))
    assert hint in caught.value.hint
