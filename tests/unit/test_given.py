"""Layouts that the user gives: what the cost model covers of them, and that it says the same as the
search does."""

import pytest

from planner.config import ExpertSlots
from planner.given import LayoutFile, even_blocks, plan_for
from planner.search import make_plan
from profiler.codec import replace
from profiler.errors import UserError
from tests.unit import facts
from tests.unit.spaces import analytic, pins, with_memory
from tests.unit.test_search_exact import KINDS

MODEL = facts.model(num_layers=8)
MOE = replace(MODEL, **KINDS["moe"])
JOB = facts.job()
CLUSTER = facts.cluster(2, 4)
EIGHT = (
    {"pp": 2, "dp_shard": 4, "zero": 1},
    {"dp_replicate": 2, "dp_shard": 4, "zero": 2},
    {"dp_shard": 8, "zero": 3, "recompute": "full"},
    {"cp": 2, "cp_method": "ulysses", "dp_replicate": 4},
    {"cp": 4, "cp_method": "hybrid", "cp_heads": 2, "dp_replicate": 2},
    {"cp": 2, "cp_method": "all_gather", "tp": 4, "recompute": "selective"},
    {"ep": 4, "dp_replicate": 8},
    {"ep": 2, "etp": 2, "tp": 2, "pp": 2, "dp_replicate": 2},
    {"pp": 8, "schedule": "gpipe", "micro_batch": 2},
    {"pp": 2, "vpp": 4, "schedule": "interleaved", "dp_replicate": 4},
    {"pp": 4, "schedule": "zero_bubble", "tp": 2},
    {"pp": 4, "vpp": 2, "schedule": "zbv", "dp_replicate": 2},
    {"pp": 4, "vpp": 2, "schedule": "dualpipev", "dp_replicate": 2},
    {"dp_replicate": 8, "offload": "optimizer"},
    {"pp": 2, "dp_replicate": 4, "offload": "activations"},
)
TABLE = tuple(" ".join(f"{s}{op}{k}" for op in "FB" for k in range(2)) for s in range(2))
SLOTS = ExpertSlots(slots=tuple((2 * r, 2 * r + 1) for r in range(4)))


def plan_of(model=MODEL, job=JOB, cluster=CLUSTER, profile=None, **layout):
    return plan_for(
        model, job, profile or analytic(model, job, cluster), LayoutFile(**layout), "layout.yaml"
    )


@pytest.mark.parametrize("layout", EIGHT, ids=lambda d: " ".join(f"{k}{v}" for k, v in d.items()))
def test_every_axis_is_covered(layout):
    plan = plan_of(MOE if "ep" in layout else MODEL, **layout)
    cost = plan.chosen.cost
    assert cost.step_s >= cost.bound_s > 0
    assert len(cost.stages) == layout.get("pp", 1)
    assert sum(cost.terms.values()) == pytest.approx(cost.step_s)
    assert plan.counts.enumerated == 0
    assert plan.bound_s == 0


@pytest.mark.parametrize(
    "layout",
    [
        {"pp": 2, "dp_replicate": 4, "schedule": "table", "table": TABLE},
        {"dp_replicate": 8, "recompute_layers": ("full", *["none"] * 7)},
        {"dp_replicate": 8, "ep": 4, "experts": (SLOTS,) * 8},
    ],
    ids=["table", "recompute by layer", "placed experts"],
)
def test_what_no_cost_model_covers_has_no_estimate(layout):
    plan = plan_of(MOE, **layout)
    assert plan.chosen.estimate is None
    with pytest.raises(UserError, match="the cost model does not cover it"):
        _ = plan.chosen.cost
    covered = {k: v for k, v in layout.items() if k not in ("table", "experts", "recompute_layers")}
    covered["schedule"] = "1f1b"
    assert plan_of(MOE, **covered).chosen.estimate is not None


def test_a_measured_profile_covers_what_its_entries_say():
    profile = facts.profile(2, 4)
    model = facts.model()
    assert plan_of(model, profile=profile, pp=2, tp=2, dp_replicate=2).chosen.estimate is not None
    for layout in (
        {"dp_shard": 8, "zero": 1},
        {"cp": 2, "dp_replicate": 4},
        {"dp_replicate": 8, "recompute": "selective"},
        {"dp_replicate": 8, "offload": "optimizer"},
        {"pp": 2, "dp_replicate": 4, "schedule": "zero_bubble"},
    ):
        assert plan_of(model, profile=profile, **layout).chosen.estimate is None


@pytest.mark.parametrize(
    "layout", [{"pp": 4, "schedule": "zero_bubble", "tp": 2}, {"dp_shard": 8, "zero": 3}]
)
def test_a_given_layout_costs_what_the_search_says(layout):
    profile = analytic(MODEL, JOB, with_memory(CLUSTER, 2**40))
    axes = {"pp": 1, "tp": 1, "dp_shard": 1, "schedule": "1f1b", "zero": 0, **layout}
    options = pins(mbs=[1], recompute=["none"], vpp=[1], **{k: [v] for k, v in axes.items()})
    found = make_plan(MODEL, JOB, profile, options).chosen
    given = plan_of(profile=profile, **layout, stages=found.placement.stages).chosen
    assert given == found


def test_given_stages_are_obeyed_even_where_they_are_uneven():
    even = plan_of(pp=2, dp_replicate=4).chosen
    uneven = plan_of(pp=2, dp_replicate=4, stages=((0, 2), (2, 10))).chosen
    assert uneven.placement.stages == ((0, 2), (2, 10))
    assert uneven.cost.step_s > even.cost.step_s


def test_what_is_priced_alike_is_kept_as_given():
    order = (4, 5, 6, 7, 0, 1, 2, 3)
    given = plan_of(pp=2, dp_replicate=4, ranks=order, interfaces=("eth0", "eth0")).chosen
    assert given.estimate is not None
    assert (given.placement.ranks, given.placement.interfaces) == (order, ("eth0", "eth0"))


def test_a_given_layout_needs_its_memory():
    small = with_memory(CLUSTER, 2**20)
    with pytest.raises(UserError, match="GiB on its fullest device") as caught:
        plan_of(cluster=small, dp_replicate=8)
    assert caught.value.kind == "infeasible"
    with pytest.raises(UserError, match="GiB on its fullest device"):
        plan_of(cluster=small, pp=8)


@pytest.mark.parametrize("num_blocks", [4, 7, 12])
@pytest.mark.parametrize("num_stages", [1, 3, 4])
def test_stages_left_out_share_the_blocks(num_blocks, num_stages):
    stages = even_blocks(num_blocks, num_stages)
    sizes = [end - first for first, end in stages]
    assert sum(sizes) == stages[-1][1] == num_blocks
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
