"""Megatron-Bridge's recipe: each keyword is a field of the release, and says what Megatron-LM's
argument says."""

import ast
import json
from dataclasses import replace

import pytest

from launch.framework import megatron_bridge
from launch.recipe import recipe_of
from profiler.errors import UserError
from tests.emitted import MEGATRON, megatron_plan, plan_of
from tests.frameworks.bridge_fields import PATH

KNOWN = json.loads(PATH.read_text(encoding="utf-8"))
RECIPES = ({}, {"lr_schedule": "wsd", "checkpoint_every": 5})
NAMES = [name for name in MEGATRON if name != "moe-mla"]  # its rotary scaling is refused


def calls(name, recipe):
    """Class -> its keywords in `planned.py`."""
    _, emitted = megatron_bridge.emit(megatron_plan(name), recipe_of(recipe))
    tree = ast.parse(emitted.files["planned.py"])
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in KNOWN:
            found[ast.unparse(node.func)] = {k.arg: ast.unparse(k.value) for k in node.keywords}
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=["plain", "wsd"])
@pytest.mark.parametrize("name", NAMES)
def test_every_keyword_is_a_field_of_the_release(name, recipe):
    found = calls(name, recipe)
    assert len(found) >= 12
    for kind, keywords in found.items():
        assert set(keywords) <= set(KNOWN[kind])


def test_it_says_what_the_arguments_say():
    model = calls("interleaved", {})["GPTModelProvider"]
    assert model["virtual_pipeline_model_parallel_size"] == "5"
    assert model["share_embeddings_and_output_weights"] == "False"
    assert model["recompute_modules"] == "['core_attn']"
    uneven = calls("uneven", {})["GPTModelProvider"]
    assert uneven["pipeline_model_parallel_layout"] == "'Et*19|(t*21|)*2t*19L'"
    assert uneven["pipeline_dtype"] == "torch.bfloat16"
    moe = calls("moe", {})
    assert moe["GPTModelProvider"]["num_moe_experts"] == "8"
    assert moe["DistributedDataParallelConfig"]["use_distributed_optimizer"] == "True"
    assert calls("pp-inside", {})["DistributedInitConfig"]["use_tp_pp_dp_mapping"] == "True"


def test_rotary_scaling_without_a_recipe_is_refused():
    with pytest.raises(UserError, match="rotary scaling yarn"):
        megatron_bridge.emit(megatron_plan("moe-mla"), recipe_of({}))
    plan = plan_of("llama3.2-1b", "h100-1x8", dp_shard=8, zero=1)
    scaled = replace(plan, model=replace(plan.model, rope_scaling="llama3"))
    _, emitted = megatron_bridge.emit(scaled, recipe_of({}))
    assert "ROPE_SCALING_FACTOR" in [need.name for need in emitted.needs]
    assert 'os.environ["ROPE_SCALING_FACTOR"]' in emitted.files["planned.py"]
