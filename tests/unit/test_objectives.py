"""Other aims than the fastest step, and devices that stay idle."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.cli import render
from launch.framework.native import agents_of, command
from launch.recipe import recipe_of
from planner.explain import explain
from planner.objective import (
    MOST_SIZES,
    check_devices,
    numbers_of_devices,
    price_per_million_tokens,
    relative_cost,
)
from planner.plan import SearchOptions
from planner.search import make_plan
from planner.whynot import why_not
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster, resolve_model
from profiler.cluster import ClusterSpec
from profiler.codec import decode, encode, replace
from profiler.errors import UserError
from profiler.job import JobSpec
from tests.unit import facts

MODEL = resolve_model("llama3-8b")
JOB = JobSpec(global_batch=64, seq_len=4096)
CLUSTER = resolve_cluster("h100-4x8")
NARROW = {"recompute": ("none", "full"), "cp": ("1",), "schedule": ("1f1b",)}


def options(objective="step", *devices, **changes):
    return SearchOptions(pin=NARROW, forbid={}, objective=objective, devices=devices, **changes)


def plan(asked, cluster=CLUSTER, model=MODEL, job=JOB):
    return make_plan(model, job, analytic_profile(model, job, cluster), asked)


def test_all_devices_unless_another_aim_is_named():
    group = CLUSTER.uniform
    assert numbers_of_devices(options(), group) == (32,)
    assert numbers_of_devices(options("step", 16, 8, 16), group) == (8, 16)
    assert numbers_of_devices(options("cost"), group) == (8, 16, 24, 32)
    assert numbers_of_devices(options("cost"), replace(group, num_nodes=1)) == (1, 2, 4, 8)


@given(nodes=st.integers(2, 10**6), per_node=st.sampled_from([1, 4, 8]))
def test_few_numbers_of_whole_nodes_are_searched(nodes, per_node):
    group = replace(CLUSTER.uniform, num_nodes=nodes, devices_per_node=per_node)
    numbers = numbers_of_devices(options("devices"), group)
    assert numbers == tuple(sorted(set(numbers)))
    assert len(numbers) <= MOST_SIZES
    assert numbers[-1] == nodes * per_node
    assert all(n % per_node == 0 for n in numbers)


@pytest.mark.parametrize(
    ("number", "message"),
    [(64, "cluster `h100-4x8` has 32"), (12, "no whole number of nodes with 8 devices")],
)
def test_numbers_of_devices_that_cannot_be_used(number, message):
    with pytest.raises(UserError, match=message):
        check_devices(options("step", number), CLUSTER)


def test_least_cost_is_the_best_of_all_numbers():
    found = plan(options("cost"))
    each = {n: plan(options("step", n)).chosen.cost.step_s * n for n in (8, 16, 24, 32)}
    chosen = found.chosen
    assert chosen.cost.step_s * chosen.config.num_devices == pytest.approx(min(each.values()))
    scores = [c.cost.step_s * c.config.num_devices for c in (chosen, *found.alternatives)]
    assert scores == sorted(scores)
    assert found.bound_s * chosen.config.num_devices <= min(scores)
    row, num = found.by_axis["devices"], chosen.config.num_devices
    assert row[str(num)] == chosen.cost.step_s
    for size, score in each.items():
        if str(size) in row:
            assert row[str(size)] * num == pytest.approx(score, rel=0.02)


def test_counts_add_up_over_all_numbers():
    found = plan(options("cost")).counts
    each = [plan(options("step", n)).counts for n in (8, 16, 24, 32)]
    assert found.enumerated == sum(c.enumerated for c in each)
    assert found.enumerated == sum(found.rejected.values()) + found.pruned + found.simulated


def test_fewest_devices_on_which_it_fits():
    found = plan(options("devices"), resolve_cluster("h100-1x8"))
    fits = {}
    for n in (1, 2, 4, 8):
        try:
            fits[n] = plan(options("step", n), resolve_cluster("h100-1x8")).chosen.cost.step_s
        except UserError as e:
            if e.kind != "infeasible":
                raise
    fewest = min(fits)
    assert fewest > 1
    assert found.chosen.config.num_devices == fewest
    assert found.chosen.cost.step_s == pytest.approx(fits[fewest])
    assert {c.config.num_devices for c in found.alternatives} == {fewest}
    others = {int(n): s for n, s in found.by_axis["devices"].items()}
    assert others.keys() == fits.keys()
    assert others[8] < others[fewest]


def test_several_numbers_for_the_fastest_step():
    found = plan(options("step", 8, 24))
    times = [plan(options("step", n)).chosen.cost.step_s for n in (8, 24)]
    assert found.chosen.cost.step_s == pytest.approx(min(times))


def test_idle_devices_are_said_and_neither_slow_nor_start():
    found = plan(options("step", 16))
    config = found.chosen.config
    assert config.num_devices == 16
    assert "Uses 16 of 32 devices; 16 stay idle" in render.picture(found)
    reasons = {r.axis: r.text for r in explain(found).reasons}
    assert reasons["devices"] == "16 of 32 stay idle"
    half = plan(options(), resolve_cluster("h100-2x8"))
    assert half.chosen.config == config
    assert half.chosen.cost.step_s == found.chosen.cost.step_s
    assert half.chosen.cost.mfu == pytest.approx(found.chosen.cost.mfu)
    assert [agent.num_ranks for agent in agents_of(found)] == [8, 8]
    start = command(found, Path("run"), recipe_of({}))
    assert "--nnodes=2" in start.argv


def test_part_of_a_node_is_started():
    found = plan(options("step", 4), resolve_cluster("h100-1x8"))
    assert [agent.num_ranks for agent in agents_of(found)] == [4]


def test_prices_give_the_price_of_tokens():
    priced = ClusterSpec(name="paid", groups=(replace(CLUSTER.uniform, price_per_hour=2.0),))
    found = plan(options("cost"), priced)
    e, num = found.chosen.cost, found.chosen.config.num_devices
    assert e.price_per_hour == 2.0 * num
    expected = 2.0 * num / 3600 * e.step_s / JOB.tokens_per_step * 1e6
    assert price_per_million_tokens(found.chosen) == pytest.approx(expected)
    assert any("per million tokens at the cluster's prices" in x for x in render.picture(found))
    assert price_per_million_tokens(plan(options("cost")).chosen) is None
    for c in found.alternatives:
        assert relative_cost(found.options, found.chosen, c) >= 1


def test_why_not_keeps_the_aim():
    found = plan(options("devices"), resolve_cluster("h100-1x8"))
    best = why_not(found, {"tp": ("2",)}).best
    assert best is not None
    assert best.config.tp == 2
    assert best.config.num_devices <= 4


def test_plans_are_read_back():
    found = plan(options("cost", 8, 16))
    assert decode(type(found), encode(found), "plan.json") == found


def test_nothing_fits_speaks_of_the_largest_number():
    big = resolve_model("llama3-70b")
    with pytest.raises(UserError, match="fits on 4 x h100") as caught:
        plan(options("devices"), resolve_cluster("h100-1x4"), big)
    assert caught.value.kind == "infeasible"
    assert "needs" in caught.value.details[0]


def test_measured_profiles_have_aims_too():
    asked = SearchOptions(pin={}, forbid={}, objective="cost")
    found = make_plan(facts.model(), facts.job(), facts.profile(), asked)
    best = {}
    for number in numbers_of_devices(asked, facts.profile().cluster.uniform):
        one = replace(asked, objective="step", devices=(number,))
        step_s = make_plan(facts.model(), facts.job(), facts.profile(), one).chosen.cost.step_s
        best[number] = step_s * number
    chosen = found.chosen
    assert chosen.cost.step_s * chosen.config.num_devices == pytest.approx(min(best.values()))
