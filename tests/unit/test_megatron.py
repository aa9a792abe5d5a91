"""Megatron-LM's arguments: each is one of the pinned release, with values that it takes; layouts
and models that it cannot run are refused by name."""
# ruff: noqa: E501  (a table of layouts and messages)

import json
from dataclasses import replace as changed

import pytest

from launch.framework import megatron, megatron_model
from launch.framework.base import Need, array
from launch.recipe import recipe_of
from planner.config import ExpertSlots
from profiler.catalog import resolve_model
from profiler.errors import UserError
from tests.emitted import MEGATRON, megatron_plan, plan_of
from tests.frameworks.megatron_flags import PATH

KNOWN = json.loads(PATH.read_text(encoding="utf-8"))
RECIPES = ({}, {"lr_schedule": "wsd", "checkpoint_every": 5}, {"lr_schedule": "cosine"})


def options_of(plan, recipe):
    """(argument, values) of a plan, as they stand in the script."""
    _, emitted = megatron.emit(plan, recipe)
    start = emitted.body.index("ARGS=(") + 1
    lines = emitted.body[start : emitted.body.index(")")]
    words = [line.split() for line in lines if not line.startswith(("  #", "  $"))]
    return [(line[0], [word.strip("'\"") for word in line[1:]]) for line in words]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.get("lr_schedule", "plain"))
@pytest.mark.parametrize("name", MEGATRON)
def test_every_argument_is_one_of_the_release(name, recipe):
    options = options_of(megatron_plan(name), recipe_of(recipe))
    assert len({option for option, _ in options}) == len(options) > 40
    for option, values in options:
        known = KNOWN[option]
        if known["values"] == "+":
            assert values
        else:
            assert len(values) == known["values"]
        for value in values:
            if value.startswith("$"):
                continue
            {"int": int, "float": float}.get(known.get("type"), str)(value)
            assert value in known.get("choices", [value])


def value(options, name):
    return dict(options).get(name)


def test_ranks_keep_the_devices_of_the_plan():
    """tp4 dp2 pp2 with both stages on a node: pipeline inside, or the ranks would be dealt out."""
    plan = megatron_plan("pp-inside")
    ordered, _ = megatron.emit(plan, recipe_of({}))
    assert ordered.chosen.placement.devices == tuple(range(16))[:16]
    assert value(options_of(plan, recipe_of({})), "--use-tp-pp-dp-mapping") == []
    plain = megatron_plan("moe")
    assert value(options_of(plain, recipe_of({})), "--use-tp-pp-dp-mapping") is None


def test_a_map_of_ranks_becomes_an_order_of_devices():
    """The plan's rank of coordinate c is on device ranks[c]; Megatron's rank of c is c."""
    ranks = (4, 5, 6, 7, 0, 1, 2, 3)
    plan = plan_of("llama3-8b", "h100-1x8", tp=4, dp_replicate=2, placement={"ranks": ranks})
    ordered, _ = megatron.emit(plan, recipe_of({}))
    assert (ordered.chosen.placement.ranks, ordered.chosen.placement.devices) == ((), ranks)


def test_stages_in_letters():
    uneven = options_of(megatron_plan("uneven"), recipe_of({}))
    assert value(uneven, "--pipeline-model-parallel-layout") == ["Et*19|(t*21|)*2t*19L"]
    mla = options_of(megatron_plan("moe-mla"), recipe_of({}))
    assert value(mla, "--pipeline-model-parallel-layout") == ["Et*3|(t*4|)*14t*2mL"]
    even = options_of(megatron_plan("interleaved"), recipe_of({}))
    assert value(even, "--num-virtual-stages-per-pipeline-rank") == ["5"]


GPT = {"tp": 8}


@pytest.mark.parametrize(
    ("model", "cluster", "degrees", "why", "hint"),
    [
        ("llama3-8b", "h100-1x8", {"tp": 4, "pp": 2, "schedule": "gpipe"}, "no schedule gpipe", "--pin schedule=1f1b"),
        ("llama3-8b", "h100-1x8", {"pp": 4, "vpp": 2, "schedule": "zbv", "dp_shard": 2, "zero": 1, "offload": "activations"},
         "no schedule zbv; it offloads activations of chosen modules", "--pin schedule=1f1b,offload=none"),
        ("llama3-8b", "h100-1x8", {"pp": 2, "dp_shard": 4, "zero": 2}, "FSDP takes no pipeline stages", "--pin zero=1"),
        ("llama3-8b", "h100-4x8", {"tp": 4, "cp": 8, "cp_method": "ulysses"},
         "a2a needs the key/value heads", "--pin cp_method=ring"),
        ("mixtral-8x7b", "h100-1x8", {"dp_shard": 8, "zero": 1, "ep": 8, "ep_overlap": 2}, "tokens in chunks", "--pin ep_overlap=1"),
        ("gemma2-9b", "h100-1x8", GPT, "family `gemma2`", "another framework"),
        ("bloom-176b", "h100-1x8", GPT, "written for a norm behind the embedding; no arguments are written for ALiBi", "another framework"),
        ("qwen3-next-80b-a3b", "h100-1x8", {"tp": 2, "dp_shard": 4, "zero": 1, "ep": 8}, "no arguments are written for linear attention", "another framework"),
    ],
)  # fmt: skip
def test_what_it_cannot_run_is_refused_with_the_nearest_plan(model, cluster, degrees, why, hint):
    with pytest.raises(UserError, match=why) as caught:
        megatron.emit(plan_of(model, cluster, **degrees), recipe_of({}))
    assert hint in caught.value.hint


def test_placed_experts_are_refused_unless_they_are_where_they_lie():
    own = tuple((2 * k, 2 * k + 1) for k in range(4))
    plain = ExpertSlots(slots=own)
    moved = ExpertSlots(slots=(own[1], own[0], *own[2:]))
    degrees = {"tp": 2, "dp_shard": 4, "zero": 1, "ep": 4}
    for slots, refused in ((plain, False), (moved, True)):
        placement = {"experts": (slots,) * 32}
        plan = plan_of("mixtral-8x7b", "h100-1x8", placement=placement, **degrees)
        if refused:
            with pytest.raises(UserError, match="none are placed or copied"):
                megatron.emit(plan, recipe_of({}))
        else:
            megatron.emit(plan, recipe_of({}))


@pytest.mark.parametrize(
    ("layers", "block"),
    [
        (("full",) * 4 + ("none",) * 12, "4"),
        (("none",) * 16, None),
        (("none",) * 8 + ("full",) * 8, "refused"),
        (("selective",) * 16, "refused"),
    ],
)
def test_recomputed_layers(layers, block):
    """The first ones of every stage, equally many."""
    plan = plan_of("llama3-8b", "h100-1x8", tp=4, pp=2, placement={"recompute": layers * 2})
    if block == "refused":
        with pytest.raises(UserError, match="first layers of each stage"):
            megatron.emit(plan, recipe_of({}))
        return
    found = value(options_of(plan, recipe_of({})), "--recompute-num-layers")
    assert found == ([block] if block else None)


def test_words_from_files_are_quoted():
    """Nothing that a config.json says is run by the script."""
    plan = megatron_plan("zero1")
    evil = changed(plan.model, name="x\ntouch /tmp/y", rope_scaling="$(touch /tmp/z)`w`'")
    _, emitted = megatron.emit(changed(plan, model=evil), recipe_of({}))
    need = next(n for n in emitted.needs if n.name == "ROPE_ARGS")
    assert isinstance(need, Need)
    from launch.framework.base import script

    text = script(changed(plan, model=evil), emitted)
    assert "\ntouch" not in text
    assert """'set ROPE_ARGS: arguments of the model'"'"'s $(touch /tmp/z)`w`'""" in text
    assert array("A", [("c", [("--x", "a b")])]) == ("A=(", "  # c", "  --x 'a b'", ")")


def test_selective_recomputation_of_experts_in_low_precision():
    """Megatron-Core refuses moe_act with delayed scaling of fp8."""
    for precision, modules in (("bf16", ["core_attn", "moe_act"]), ("fp8", ["core_attn"])):
        degrees = {"tp": 2, "dp_shard": 4, "zero": 1, "recompute": "selective"}
        plan = plan_of("mixtral-8x7b", "h100-1x8", precision=precision, **degrees)
        assert value(options_of(plan, recipe_of({})), "--recompute-modules") == modules


@pytest.mark.parametrize(
    ("model", "changes", "why"),
    [
        ("mixtral-8x7b", {"num_experts_per_token": 1}, "weight of a single expert"),
        ("mixtral-8x7b", {"router_bias": True}, "a router's bias with softmax"),
        ("llama3-8b", {"value_head_dim": 64}, "value heads of another width"),
        ("gpt3-175b", {"num_mtp_layers": 1}, "MTP with learned positions"),
    ],
)
def test_models_that_it_raises_for_are_refused(model, changes, why):
    odd = changed(resolve_model(model), **changes)
    assert [r.why for r in megatron_model.refusals(odd) if why in r.why]


@pytest.mark.parametrize(
    ("model", "degrees", "why", "hint"),
    [
        ("llama3-8b", {"pp": 4, "vpp": 2, "schedule": "interleaved", "batch": 6}, "micro-batches by 4", "--pin schedule=1f1b"),
        ("llama3-8b", {"dp_replicate": 8, "offload": "optimizer"}, "offloads the distributed optimizer", "--pin zero=1"),
        ("mixtral-8x7b", {"dp_replicate": 2, "dp_shard": 4, "zero": 1, "ep": 8}, "as many instances", "--pin dp_replicate=1"),
    ],
)  # fmt: skip
def test_layouts_that_it_raises_for_are_refused(model, degrees, why, hint):
    with pytest.raises(UserError, match=why) as caught:
        megatron.emit(plan_of(model, "h100-1x8", **degrees), recipe_of({}))
    assert hint in caught.value.hint


def test_one_replica_offloads_its_optimizer_too():
    """Which Megatron takes of the distributed optimizer alone."""
    options = options_of(plan_of("llama3-8b", "h100-1x8", tp=8, offload="optimizer"), recipe_of({}))
    assert value(options, "--use-distributed-optimizer") == []


def test_the_seed_and_the_end_of_the_warm_up_are_what_it_takes():
    plan = megatron_plan("zero1")
    assert value(options_of(plan, recipe_of({})), "--seed") == ["1"]
    assert value(options_of(plan, recipe_of({"seed": 7})), "--seed") == ["7"]
    assert (
        "the seed is 1, the least that it takes." in megatron.emit(plan, recipe_of({}))[1].differs
    )
    all_warm = options_of(plan, recipe_of({"lr_warmup_steps": 12}))
    assert value(all_warm, "--lr-decay-iters") == ["13"]


def test_how_groups_of_experts_are_chosen_is_said():
    plan = megatron_plan("moe-mla")
    say = "a group of experts is chosen by"
    assert not [s for s in megatron.emit(plan, recipe_of({}))[1].differs if say in s]
    fewer = changed(plan, model=changed(plan.model, num_experts_per_token=4))
    assert f"{say} its 1 best scores, not by 2." in megatron.emit(fewer, recipe_of({}))[1].differs
