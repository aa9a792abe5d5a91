"""Each rule of `planner.layout` is the first to refuse a layout that breaks it, and says so."""

import pytest

from launch.framework.native import check_runnable
from planner.config import ExpertSlots, ParallelConfig, Placement
from planner.given import LayoutFile, plan_for
from planner.layout import PLACEMENT_RULES, check_layout, first_broken_config, runtime_refuses
from planner.rules import CONFIG_RULES
from profiler.codec import replace
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec

from . import facts

DENSE = facts.model()  # 6 layers, 4 heads, vocabulary 512
MOE = facts.model(
    family="qwen2_moe", num_layers=2, num_experts=4, num_experts_per_token=2,
    expert_ffn_hidden_size=30, shared_ffn_hidden_size=64,
)  # fmt: skip
JOB = facts.job()  # 8 sequences of 32
PLAIN = ParallelConfig(pp=1, dp_replicate=1, tp=1, micro_batch=1, recompute="none", schedule="1f1b")
Broken = tuple[ModelSpec, dict[str, object], dict[str, object]]
"""Model, what to change in the layout, what to change in the placement."""
TWO_RANKS = ExpertSlots(slots=((0, 1), (2, 3)))
BROKEN: dict[str, Broken] = {
    "heads-tp": (DENSE, {"tp": 8}, {}),
    "kv-heads-tp": (facts.model(num_kv_heads=2), {"tp": 4}, {}),
    "ffn-tp": (facts.model(ffn_hidden_size=190), {"tp": 4}, {}),
    "shared-ffn-tp": (replace(MOE, shared_ffn_hidden_size=66), {"tp": 4}, {}),
    "vocab-tp": (facts.model(vocab_size=510), {"tp": 4}, {}),
    "sequence-cp": (DENSE, {"cp": 3}, {}),
    "sequence-tp": (facts.model(num_heads=6, num_kv_heads=6, vocab_size=510), {"tp": 3}, {}),
    "hybrid-cp": (DENSE, {"cp": 4, "cp_method": "hybrid", "cp_heads": 4}, {}),
    "heads-cp": (DENSE, {"cp": 8, "cp_method": "ulysses"}, {}),
    "batch": (DENSE, {"dp_replicate": 3}, {}),
    "no-experts": (DENSE, {"dp_replicate": 2, "ep": 2}, {}),
    "ep-overlap": (MOE, {"dp_replicate": 2, "ep_overlap": 2}, {}),
    "expert-mesh": (MOE, {"dp_replicate": 2, "ep": 4}, {}),
    "expert-width-etp": (MOE, {"dp_replicate": 4, "etp": 4}, {}),
    "expert-shard": (
        replace(MOE, hidden_size=66, expert_ffn_hidden_size=30),
        {"dp_shard": 4, "zero": 1}, {},
    ),
    "capacity-group": (replace(MOE, capacity_factor=1.0, capacity_group=16), {"cp": 2}, {}),
    "zero-dp-shard": (DENSE, {"zero": 1}, {}),
    "schedule-vpp": (DENSE, {"pp": 2, "schedule": "interleaved"}, {}),
    "split-backward-zero": (
        DENSE, {"pp": 2, "schedule": "zero_bubble", "dp_shard": 2, "zero": 2}, {},
    ),
    "micro-batches": (DENSE, {}, {}),
    "blocks-pp": (DENSE, {"pp": 9}, {}),
    "table": (DENSE, {"pp": 2, "schedule": "table"}, {"table": ("0F0 0B0", "1F0 1B0")}),
    "stages": (DENSE, {}, {"stages": ((0, 7),)}),
    "stage-ends": (DENSE, {"pp": 2}, {"stages": ((0, 0), (0, 8))}),
    "stage-empty": (DENSE, {"pp": 3}, {"stages": ((0, 4), (4, 4), (4, 8))}),
    "ranks": (DENSE, {"tp": 2}, {"ranks": (1, 1)}),
    "devices": (DENSE, {"tp": 2}, {"devices": (1, 1)}),
    "recompute": (DENSE, {}, {"recompute": ("full", "none")}),
    "experts-ep": (MOE, {"dp_replicate": 2, "cp": 4, "ep": 8}, {}),
    "experts": (MOE, {"dp_replicate": 2, "ep": 2}, {"experts": (TWO_RANKS,)}),
}  # fmt: skip


def _layout(broken: Broken) -> tuple[ModelSpec, JobSpec, ParallelConfig, Placement]:
    model, changes, placing = broken
    config = replace(PLAIN, **changes)
    num_blocks, last = len(model.blocks), config.num_stages - 1
    even = [(i, num_blocks if i == last else i + 1) for i in range(config.num_stages)]
    job = replace(JOB, global_batch=2**15) if broken is BROKEN["micro-batches"] else JOB
    return model, job, config, replace(Placement(stages=tuple(even)), **placing)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_rule_refuses_what_breaks_it(rule: str) -> None:
    with pytest.raises(UserError, match=rf"\({rule}\)$") as caught:
        check_layout(*_layout(BROKEN[rule]))
    sentence = next(r.sentence for r in (*CONFIG_RULES, *PLACEMENT_RULES) if r.id == rule)
    assert sentence in str(caught.value)


def test_every_rule_is_tried() -> None:
    assert set(BROKEN) == {rule.id for rule in (*CONFIG_RULES, *PLACEMENT_RULES)}


def test_rules_of_the_degrees_alone_need_no_placement() -> None:
    for rule in CONFIG_RULES:
        model, job, config, _ = _layout(BROKEN[rule.id])
        assert first_broken_config(config, model, job) is rule


@pytest.mark.parametrize("model", [DENSE, MOE])
def test_the_plain_layout_can_be(model: ModelSpec) -> None:
    check_layout(*_layout((model, {}, {})))


@pytest.mark.parametrize(
    ("slots", "why"),
    [
        (((0, 1), (2,)), "layer 0 places no expert 3"),
        (((0, 1, 2, 3, 4), ()), "layer 0 places expert 4, of 4 from 0"),
        (((0, 1, 2, 3, 3), ()), "layer 0 places an expert twice on rank 0"),
        (((0, 1), (2, 3), ()), "layer 0 has slots for 3 ranks, ep is 2"),
    ],
)
def test_expert_slots_are_checked(slots: tuple[tuple[int, ...], ...], why: str) -> None:
    layer = ExpertSlots(slots=slots)
    broken = (MOE, {"dp_replicate": 2, "ep": 2}, {"experts": (layer, layer)})
    with pytest.raises(UserError, match=rf"{why} \(experts\)$"):
        check_layout(*_layout(broken))


def test_expert_shares_go_with_the_slots() -> None:
    good = ExpertSlots(slots=((0, 1, 2), (2, 3)), shares=((1, 1, 2), (1, 1)))
    changes = {"dp_replicate": 2, "ep": 2}
    check_layout(*_layout((MOE, changes, {"experts": (good, TWO_RANKS)})))
    bad = replace(good, shares=((1, 1), (2, 1, 1)))
    with pytest.raises(UserError, match=r"layer 0 has shares of another shape.*\(experts\)$"):
        check_layout(*_layout((MOE, changes, {"experts": (bad, TWO_RANKS)})))


def test_a_refused_table_says_why() -> None:
    changes = {"pp": 2, "schedule": "table", "micro_batch": 8}
    for rows, why in (
        ((), "`schedule: table` needs a `table`"),
        (("0F0",), "it has 1 rows, pp is 2"),
        (("0F0", "1F0 1B0"), "`0B0` is missing"),
        (("0F0 0I0", "1F0 1B0"), "without `0W0`"),
        (("0B0 0F0", "1F0 1B0"), "`0B0` is before `0F0`"),
    ):
        with pytest.raises(UserError, match=why):
            check_layout(*_layout((DENSE, changes, {"table": rows})))


def test_a_table_that_splits_backward_needs_whole_gradients() -> None:
    rows = ("0F0 0I0 0W0", "1F0 1B0")
    changes = {"pp": 2, "schedule": "table", "micro_batch": 4, "dp_shard": 2, "zero": 1}
    check_layout(*_layout((DENSE, changes, {"table": rows})))
    with pytest.raises(UserError, match=r"\(table\)$"):
        check_layout(*_layout((DENSE, changes | {"zero": 3}, {"table": rows})))


def test_what_can_be_and_the_runtime_does_not_train() -> None:
    hybrid = {"cp": 4, "cp_method": "hybrid", "cp_heads": 2}
    for changes, why in (
        (hybrid, "not hybrid"),
        ({"offload": "optimizer"}, "no offload of optimizer"),
        ({"offload": "activations"}, "no offload of activations"),
    ):
        layout = _layout((DENSE, changes, {}))
        check_layout(*layout)
        assert why in str(runtime_refuses(layout[2]))
    assert runtime_refuses(PLAIN) is None


def test_launch_refuses_what_the_runtime_does_not_train() -> None:
    layout = LayoutFile(dp_replicate=4, offload="optimizer")
    plan = plan_for(DENSE, JOB, facts.profile(), layout, "layout.yaml")
    with pytest.raises(UserError, match="the reference runtime does not train") as caught:
        check_runnable(plan)
    assert "no offload of optimizer" in str(caught.value)
    check_runnable(plan_for(DENSE, JOB, facts.profile(), LayoutFile(cp=4), "layout.yaml"))
