"""Which ranks of an ep group share a node, how fast each is, and plans whose experts follow."""

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.config import ParallelConfig, Placement
from planner.expert_placement import Rates, Unlike, load_of, parts_of
from planner.expert_ranks import Devices, devices_of, ranks_per_node, spread_ranks
from planner.grid import Grid
from planner.holdings import contiguous_slots
from planner.pipeline import moe_ranks
from planner.plan import SearchOptions
from planner.routed_plan import (
    degrees_to_place,
    experts_again,
    load_of_plan,
    loads_again,
    ranks_of,
    with_experts,
    with_layout,
    with_loads,
)
from planner.search import make_plan
from planner.where import groups_of_ranks
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster, resolve_model
from profiler.cluster import ClusterSpec
from profiler.codec import replace
from profiler.job import JobSpec
from profiler.profile import Profile
from tests.unit.made_routing import skewed_trace

JOB = JobSpec(global_batch=32, seq_len=2048)
MODEL = replace(resolve_model("qwen3-30b-a3b"), num_layers=4, num_experts=16, first_dense_layers=0)
TRACE = skewed_trace(tokens=3000, layers=4, experts=16, k=8, skew=0.8)


@functools.cache
def cluster(*names: str) -> ClusterSpec:
    return ClusterSpec(name="mix", groups=tuple(resolve_cluster(n).groups[0] for n in names))


def facts(*names: str, model: Any = MODEL) -> Profile:
    return analytic_profile(model, JOB, cluster(*names))


layouts = st.fixed_dictionaries(
    {
        "pp": st.sampled_from([1, 2, 3]),
        "edp": st.integers(1, 3),
        "ep": st.sampled_from([2, 4, 6, 8, 12]),
        "etp": st.sampled_from([1, 2, 4, 3]),
        "per_node": st.sampled_from([1, 2, 3, 4, 6, 8]),
        "tp": st.sampled_from([1, 2]),
    }
)


@settings(max_examples=150, deadline=None)
@given(layouts)
def test_ranks_of_a_node_are_those_that_the_grid_says(drawn: dict[str, int]) -> None:
    """Groups of the grid, one by one: the most that divide ep so that all runs share a node."""
    each, per_node = drawn["edp"] * drawn["ep"] * drawn["etp"], drawn["per_node"]
    tp = drawn["tp"] if each % drawn["tp"] == 0 else 1
    config = ParallelConfig(
        pp=drawn["pp"], dp_replicate=each // tp, tp=tp, ep=drawn["ep"], etp=drawn["etp"],
        micro_batch=1, recompute="none", schedule="1f1b",
    )  # fmt: skip
    grid = Grid(config, Placement(stages=()))
    nodes = [[rank // per_node for rank in group] for group in grid.groups("ep")]
    expected = max(
        size
        for size in range(1, config.ep + 1)
        if config.ep % size == 0
        and all(
            len(set(group[begin : begin + size])) == 1
            for group in nodes
            for begin in range(0, config.ep, size)
        )
    )
    node = np.arange(config.num_devices) // per_node
    seats = Devices(node=node, group=0 * node).seats(config.ep, config.etp)
    assert ranks_per_node(seats) == expected


def test_etp_sets_ranks_apart_and_shares_their_work() -> None:
    (node,) = cluster("h100-2x8").groups
    rates = Rates(compute_s=8.0, intra_s=1.0, inter_s=10.0)
    devices = devices_of(cluster("h100-2x8"))
    assert node.devices_per_node == 8
    whole, halves, parts = (spread_ranks(devices, [rates], 8, etp, 2) for etp in (1, 2, 16 // 8))
    assert (whole.ranks_per_node, halves.ranks_per_node) == (8, 4)
    assert (whole.rates, parts.slowdown) == (rates, None)
    # Half of the product, half of the other's tokens gathered, in half as many copies each.
    assert halves.rates == Rates(compute_s=4.5, intra_s=0.5, inter_s=5.0)
    # An etp group of 16 leaves its node: gathering is between nodes.
    wide = spread_ranks(devices, [rates], 1, 16, 16).rates
    assert wide.compute_s == pytest.approx((8 + 15 * 10) / 16)


def test_speeds_are_those_of_the_devices() -> None:
    profile = facts("a100-80-1x8", "h100-1x8")
    like = ranks_of(profile, JOB, 8)
    assert (like.slowdown, like.near_s, like.far_s, like.ranks_per_node) == (None,) * 3 + (8,)
    alone = [ranks_of(profile, JOB, 8, group=g).rates for g in (0, 1)]
    assert alone[0].compute_s > 2 * alone[1].compute_s
    assert like.rates == alone[0]  # a place is as slow as the slowest in any block
    for ep, etp in ((16, 1), (8, 2), (4, 4)):
        found = ranks_of(profile, JOB, ep, etp=etp)
        assert found.slowdown is not None
        assert found.far_s is not None
        assert found.ranks_per_node == ep // 2
        assert (found.slowdown[: ep // 2] == 1).all()
        assert found.far_s[0] == pytest.approx(alone[0].inter_s / etp)
        assert found.far_s[1] == pytest.approx(alone[1].inter_s / etp)
        if etp == 1:
            ratio = alone[1].compute_s / alone[0].compute_s
            assert found.slowdown[ep // 2 :] == pytest.approx(ratio)
    three = ranks_of(facts("a100-80-2x8", "h100-1x8"), JOB, 24)
    assert three.slowdown is not None
    assert (three.slowdown < 1).tolist() == [False] * 16 + [True] * 8


def test_loads_of_unlike_ranks_by_hand() -> None:
    """Two ranks, the second three times as fast: 60 and 40 of a hundred choices."""
    from profiler.routing.trace import RoutingCounts

    unlike = Unlike(
        compute_s=np.array([3.0, 1.0]), copy_s=np.array([2.0, 1.0]),
        group_compute_s=np.array([3.0, 1.0]), group_copy_s=np.array([2.0, 1.0]),
    )  # fmt: skip
    counts = RoutingCounts(windows=np.array([[[60, 40]]]))
    found = load_of(counts, [parts_of(contiguous_slots(2, 2), 2)], 1, window=1, unlike=unlike)
    assert found.imbalance == pytest.approx(1.2)
    assert found.group_computed == pytest.approx((1.2, 3.6))
    assert found.group_sent == pytest.approx((1.2, 2.4))
    turned = RoutingCounts(windows=np.array([[[20, 80]]]))
    found = load_of(turned, [parts_of(contiguous_slots(2, 2), 2)], 1, window=1, unlike=unlike)
    assert found.group_computed == pytest.approx((1.6 / 3, 1.6))
    assert found.group_sent == pytest.approx((1.0, 2.0))  # the slow one sends the mean all the same


def test_etp_changes_where_experts_go() -> None:
    """8 ranks are of one kind with whole experts, and reach over both with halves."""
    profile = facts("a100-80-1x8", "h100-1x8")
    routed, placements = with_loads(profile, TRACE, JOB, pin={"ep": ("8",), "tp": ("2",)})
    assert placements[8, 1, None] != placements[8, 2, None]
    assert placements[8, 1, 0] == placements[8, 1, 1] == placements[8, 1, None]
    assert (8, 2, 0) not in placements  # 16 devices
    loads = {(each.ep, each.etp, each.group): each for each in routed.expert_loads}
    assert set(loads) == {(8, 1, 0), (8, 1, 1), (8, 1, None), (8, 2, None)}
    slow, fast = loads[8, 2, None].group_computed
    assert slow < 1 < fast
    assert loads[8, 1, None].group_computed[0] == pytest.approx(loads[8, 1, None].imbalance)


def test_degrees_are_those_of_every_kind() -> None:
    found = degrees_to_place(facts("a100-80-1x4", "h100-3x8"), {"tp": ("1",)})
    assert {group for _, _, group in found} == {0, 1}  # nodes of unlike size are not mixed evenly
    assert {ep for ep, _, group in found if group == 0} == {2, 4}
    assert {ep for ep, _, group in found if group == 1} == {2, 4, 8, 16}
    assert degrees_to_place(facts("h100-2x8"), {"ep": ("8",), "etp": ("2", "4")}) == (
        (8, 2, None),
    )  # fmt: skip


def planned(profile: Profile, **pin: str) -> tuple[Any, Any]:
    """The plan and the placements for what is pinned."""
    wanted = {axis: (value,) for axis, value in pin.items()}
    routed, placements = with_loads(profile, TRACE, JOB, pin=wanted)
    options = SearchOptions(pin=wanted, forbid={})
    return with_experts(make_plan(MODEL, JOB, routed, options), placements), placements


def test_each_stage_of_a_mixed_pipeline_has_the_experts_of_its_kind() -> None:
    profile = facts("a100-80-1x8", "h100-1x8")
    plan, placements = planned(profile, pp="2", ep="8", tp="1", cp="1", mbs="1")
    chosen = plan.chosen
    kinds = groups_of_ranks(plan.cluster, chosen.config, chosen.placement)
    assert sorted(kinds) == [(0,), (1,)]
    for layer, rank in enumerate(moe_ranks(MODEL, chosen.config, chosen.placement)):
        (kind,) = kinds[rank]
        expected = placements[8, chosen.config.etp, kind][layer]
        assert chosen.placement.experts[layer] == expected
    load = load_of_plan(plan)
    assert load is not None
    assert load.imbalance > 1
    even = make_plan(MODEL, JOB, profile, plan.options).chosen
    assert chosen.cost.step_s > even.cost.step_s


def test_groups_over_both_kinds_are_placed_by_speed() -> None:
    """Consecutive experts on the same ranks take longer."""
    profile = facts("a100-80-1x8", "h100-1x8")
    plan, placements = planned(profile, pp="1", ep="16", tp="1")
    assert plan.chosen.placement.experts == placements[16, 1, None]
    plain = with_layout(profile, TRACE, JOB, (contiguous_slots(16, 16),) * 4)
    other = make_plan(MODEL, JOB, plain, plan.options)
    assert plan.chosen.cost.step_s < other.chosen.cost.step_s
    again = loads_again(facts("h100-2x8"), plan)
    (known,) = again.expert_loads
    assert (known.ep, known.group, known.group_sent) == (16, None, ())
    next_plan = experts_again(make_plan(MODEL, JOB, again, plan.options), plan)
    assert next_plan.chosen.placement.experts == plan.chosen.placement.experts


@pytest.mark.parametrize("etp", ["1", "2"])
def test_two_groups_of_one_kind_are_one_cluster(etp: str) -> None:
    """Placed over all devices, experts and their price are as on a cluster of like nodes."""
    pins = {"pp": "1", "ep": "8", "etp": etp, "tp": "2", "cp": "1", "mbs": "1"}
    one, _ = planned(facts("h100-2x8"), **pins)
    two, placements = planned(facts("h100-1x8", "h100-1x8"), **pins)
    assert two.chosen.config == one.chosen.config
    assert two.chosen.placement.experts == one.chosen.placement.experts
    assert two.chosen.placement.experts == placements[8, int(etp), None]
    assert two.chosen.cost.step_s == pytest.approx(one.chosen.cost.step_s, rel=1e-12)
    load, other = load_of_plan(one), load_of_plan(two)
    assert load is not None
    assert other is not None
    assert other.group_computed == pytest.approx((load.imbalance,) * 2)
    assert other.group_sent == pytest.approx((load.imbalance,) * 2)
