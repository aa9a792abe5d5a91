"""Layouts over several kinds of node: against brute force, and never worse than one kind alone."""

import functools
from collections import Counter
from itertools import combinations, pairwise, permutations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.cli import render
from planner import mixed
from planner.axes import LEAST_TOKENS
from planner.config import ParallelConfig, Placement
from planner.cost import prepare_placed
from planner.layout import check_devices_of, check_layout, first_broken_config
from planner.mixed_costs import MixedCosts
from planner.mixed_screen import screen
from planner.mixed_space import Fillings
from planner.plan import SearchOptions
from planner.search import make_plan
from planner.simulate import simulate
from planner.space import RULES
from planner.where import capacities_of, groups_of_ranks, starts_of, used_of_groups
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster, resolve_model
from profiler.cluster import ClusterSpec
from profiler.codec import decode, encode, replace
from profiler.errors import UserError
from profiler.job import JobSpec
from solvers.unlike import partition_unlike
from tests.unit import facts

ANY = SearchOptions(pin={}, forbid={})
DENSE = replace(resolve_model("llama3-8b"), num_layers=5)


def cluster(*names, prices=()):
    groups = [resolve_cluster(name).groups[0] for name in names]
    for k, price in enumerate(prices):
        groups[k] = replace(groups[k], price_per_hour=price)
    return ClusterSpec(name="mix", groups=tuple(groups))


def job(batch=4, seq_len=2048):
    return JobSpec(global_batch=batch, seq_len=seq_len)


def plan(model, batch, *names, options=ANY, prices=(), seq_len=2048):
    asked, where = job(batch, seq_len), cluster(*names, prices=prices)
    return make_plan(model, asked, analytic_profile(model, asked, where), options)


def best_on(where, model, asked, options):
    """The choice for a cluster of one kind; None where nothing fits."""
    try:
        return make_plan(model, asked, analytic_profile(model, asked, where), options).chosen
    except UserError as e:
        if e.kind != "infeasible":
            raise
        return None


costs_of_runs = st.integers(1, 5).flatmap(
    lambda runs: st.integers(1, 7).flatmap(
        lambda items: st.tuples(
            st.lists(
                st.lists(st.integers(0, 9), min_size=items, max_size=items),
                min_size=runs,
                max_size=runs,
            ),
            st.lists(st.integers(0, 1), min_size=items, max_size=items),
            st.lists(st.integers(-1, 6), min_size=runs, max_size=runs),
        )
    )
)


@given(costs_of_runs)
def test_the_split_is_that_of_brute_force(case):
    cost, counts, most = case
    runs, n = len(cost), len(cost[0])
    sums = {}
    for cuts in combinations(range(1, n), runs - 1) if runs <= n else ():
        split = tuple(pairwise((0, *cuts, n)))
        if all(sum(counts[a:b]) <= most[r] for r, (a, b) in enumerate(split)):
            sums[split] = [sum(cost[r][a:b]) for r, (a, b) in enumerate(split)]
    found = partition_unlike(*(np.array(x, dtype=float) for x in (cost, counts, most)))
    if not sums:
        assert found.status == "INFEASIBLE"
        return
    least = min(max(v) for v in sums.values())
    assert found.objective == pytest.approx(least)
    assert max(sums[found.value]) == least
    assert sum(sums[found.value]) == min(sum(v) for v in sums.values() if max(v) == least)


def every_pipeline(costs):
    """(layout, groups of its ranks, step) of all pipelines over several groups that fit."""
    model, asked = costs.model, costs.job
    sizes = [kind.num_devices for kind in costs.kinds]
    powers = (1, 2, 4, 8)
    experts = [(1, 1), *product((2, 4), (1, 2, 4))] if model.num_moe_layers else [(1, 1)]
    for tp, cp, dp, zero, (ep, overlap), wide, micro, again in product(
        powers, (1, 2), powers, (0, 1), experts, (False, True), powers,
        ("none", "selective", "full"),
    ):  # fmt: skip
        etp, each = tp if wide else 1, tp * cp * dp
        if asked.seq_len // cp < LEAST_TOKENS:
            continue
        if (wide and tp == 1) or (zero and dp == 1) or (wide and not model.num_moe_layers):
            continue
        for counts in product(*(range(n // each + 1) for n in sizes)):
            used = [g for g, count in enumerate(counts) if count]
            config = ParallelConfig(
                pp=max(1, sum(counts)), dp_replicate=1 if zero else dp, dp_shard=dp if zero else 1,
                zero=zero, tp=tp, cp=cp, ep=ep, etp=etp, ep_overlap=overlap,
                micro_batch=micro, recompute=again, schedule="1f1b",
            )  # fmt: skip
            if len(used) < 2 or any(r.broken(config, model, asked) for r in RULES):
                continue
            for order in permutations(used):
                kinds = tuple(g for g in order for _ in range(counts[g]))
                prepared = costs.prepare(config, kinds)
                if prepared is not None and costs.fits(prepared, kinds):
                    yield config, kinds, simulate(prepared.program).step_s


CASES = [
    (DENSE, ("h100-1x4", "a100-40-1x3"), 4, 2048),
    (DENSE, ("a100-80-1x2", "h100-1x2"), 8, 1024),
    (DENSE, ("h100-1x2", "a100-80-1x1", "a100-40-1x2"), 4, 2048),
    (
        replace(
            resolve_model("mixtral-8x7b"), num_layers=3, num_experts=4, hidden_size=2048,
            expert_ffn_hidden_size=2048,
        ),
        ("h100-1x4", "a100-80-1x2"),
        4,
        2048,
    ),
]  # fmt: skip


def costs_of(number):
    model, names, batch, seq_len = CASES[number]
    asked = job(batch, seq_len)
    return MixedCosts(model, asked, analytic_profile(model, asked, cluster(*names)))


@functools.cache
def pipelines_of(number):
    return list(every_pipeline(costs_of(number)))


@pytest.mark.parametrize(
    ("number", "objective"),
    [*((number, "step") for number in range(len(CASES))), (0, "cost"), (2, "devices")],
)
def test_the_choice_is_that_of_brute_force(number, objective, monkeypatch):
    """Idle devices included; what one kind does alone is the uniform search's."""
    monkeypatch.setattr(mixed, "MOST_PRICED", 10**6)
    options = replace(ANY, objective=objective, top=0)
    model, names, batch, seq_len = CASES[number]
    found = plan(model, batch, *names, options=options, seq_len=seq_len)
    asked, where = job(batch, seq_len), cluster(*names)

    def key(step_s, num_devices):
        weight = num_devices if objective == "cost" else 1
        return (num_devices if objective == "devices" else 0, step_s * weight)

    keys = [key(s, c.num_devices) for c, _, s in pipelines_of(number)]
    for g in range(len(names)):
        alone = ClusterSpec(name="alone", groups=where.groups[g : g + 1])
        if (one := best_on(alone, model, asked, options)) is not None:
            keys.append(key(one.cost.step_s, one.config.num_devices))
    chosen = key(found.chosen.cost.step_s, found.chosen.config.num_devices)
    assert chosen <= (min(keys)[0], min(keys)[1] * (1 + 1e-9))
    spans = any(len(own) > 1 for own in groups_of_ranks(where, found.chosen.config,
                                                        found.chosen.placement))  # fmt: skip
    assert spans or chosen[1] == pytest.approx(min(keys)[1])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_bounds_hold_and_nothing_that_fits_is_left_out(number):
    screened = screen(costs_of(number), ANY, float("inf"), Counter())
    bounds = {}
    for position in range(len(screened.pool)):
        bounds[screened.pipeline(position)] = screened.pool.bound[position]
    assert pipelines_of(number)
    for config, kinds, step_s in pipelines_of(number):
        assert bounds[config, kinds] <= step_s * (1 + 1e-9)


@pytest.mark.parametrize(
    ("name", "names", "batch"),
    [
        ("llama3-8b", ("h100-1x8", "a100-80-1x8"), 64),
        ("llama3-8b", ("a100-40-2x4", "h100-1x4"), 32),
        ("llama3-8b", ("h100-2x4", "a100-80-1x4"), 30),
        ("mixtral-8x7b", ("h100-1x8", "a100-80-1x8"), 32),
    ],
)
def test_never_worse_than_one_kind_or_the_slower_everywhere(name, names, batch):
    model, asked = replace(resolve_model(name), num_layers=12), job(batch, 4096)
    options = replace(ANY, pin={"mbs": ("1", "2")}, top=0)
    found = plan(model, batch, *names, options=options, seq_len=4096).chosen.cost.step_s
    groups = cluster(*names).groups
    slow = min(groups, key=lambda g: g.device.flops_per_s["bf16"])
    everywhere = replace(slow, num_nodes=sum(g.num_nodes for g in groups))
    for group in (*groups, everywhere):
        where = ClusterSpec(name="one", groups=(group,))
        if (one := best_on(where, model, asked, options)) is not None:
            assert found <= one.cost.step_s * (1 + 1e-9)


def test_unlike_devices_get_unlike_numbers_of_layers():
    found = plan(resolve_model("llama3-8b"), 64, "h100-1x8", "a100-80-1x8", seq_len=8192)
    candidate = found.chosen
    kinds = groups_of_ranks(found.cluster, candidate.config, candidate.placement)
    layers = candidate.placement.layers_per_stage(32)
    held = [sum(n for n, k in zip(layers, kinds, strict=True) if k == (g,)) for g in (0, 1)]
    assert held[0] > 1.5 * held[1] > 0
    assert used_of_groups(found.cluster, candidate.config, candidate.placement) == (8, 8)
    assert found.counts.enumerated == (
        sum(found.counts.rejected.values()) + found.counts.pruned + found.counts.simulated
    )
    assert found.bound_s <= candidate.cost.step_s
    for each in (candidate, *found.alternatives):
        check_layout(found.model, found.job, each.config, each.placement)
        again = prepare_placed(found.model, found.job, found.profile, each.config, each.placement)
        assert simulate(again.program).step_s == pytest.approx(each.cost.step_s)
        e = each.cost
        assert e.compute_s + e.p2p_s + e.collective_s + e.idle_s == pytest.approx(e.step_s)
        assert sum(e.terms.values()) == pytest.approx(e.step_s)
        assert 0 < e.mfu < 1
    assert decode(type(found), encode(found), "plan.json") == found


def test_stages_may_be_over_kinds_that_compute_alike():
    found = plan(resolve_model("llama3-8b"), 64, "h100-1x8", "h200-1x8", seq_len=4096)
    over = [
        c for c in (found.chosen, *found.alternatives)
        if any(len(own) > 1 for own in groups_of_ranks(found.cluster, c.config, c.placement))
    ]  # fmt: skip
    assert over
    for c in over:
        assert used_of_groups(found.cluster, c.config, c.placement) == (8, 8)
        again = prepare_placed(found.model, found.job, found.profile, c.config, c.placement)
        assert simulate(again.program).step_s == pytest.approx(c.cost.step_s)
        small = found.cluster.groups[0].device.memory_bytes
        assert max(s.memory.total_bytes for s in c.cost.stages) <= small
    assert any("on h100 and h200" in render.split_words(found, c) for c in over)


@pytest.mark.parametrize("schedule", ["interleaved", "zero_bubble"])
def test_ranks_on_one_kind_each_may_have_any_schedule(schedule):
    """All devices as if they were of the slower kind: prepared again, the plan is what it was."""
    options = replace(ANY, pin={"schedule": (schedule,), "pp": ("2",)}, devices=(16,))
    found = plan(resolve_model("llama3-8b"), 64, "h100-1x8", "h200-1x8", options=options)
    chosen = found.chosen
    assert groups_of_ranks(found.cluster, chosen.config, chosen.placement) == ((0,), (1,))
    again = prepare_placed(found.model, found.job, found.profile, chosen.config, chosen.placement)
    assert simulate(again.program).step_s == pytest.approx(chosen.cost.step_s)


def test_fillings_of_four_kinds_are_no_deeper_than_the_layers():
    names = ("h100-16x8", "h200-16x8", "a100-80-16x8", "a100-40-16x8")
    model = replace(resolve_model("llama3-8b"), num_layers=12)
    costs = MixedCosts(model, job(), analytic_profile(model, job(), cluster(*names)))
    fillings = Fillings(costs, ANY)
    assert max(int(each.sum(axis=1).max()) for each in fillings.of(1) if len(each)) == 12
    four = fillings.of(1)[fillings.orders.index((0, 1, 2, 3))]
    assert len(four) == comb(12, 4)
    assert four.tolist() == sorted(four.tolist())


@settings(max_examples=10, deadline=None)
@given(pp=st.sampled_from([2, 4, 8]), tp=st.sampled_from([1, 2, 4]), zero=st.sampled_from([0, 1]))
def test_equal_groups_cost_what_one_group_costs(pp, tp, zero):
    """Two halves of a cluster are the cluster."""
    model, asked = resolve_model("llama3-8b"), job(64, 4096)
    dp = 32 // (pp * tp)
    config = ParallelConfig(
        pp=pp, tp=tp, micro_batch=1, recompute="full", schedule="1f1b",
        dp_replicate=1 if zero and dp > 1 else dp, dp_shard=dp if zero else 1,
        zero=int(zero and dp > 1),
    )  # fmt: skip
    half, whole = cluster("h100-2x8", "h100-2x8"), cluster("h100-4x8")
    kinds = (0,) * (pp // 2) + (1,) * (pp // 2)
    mixed_costs = MixedCosts(model, asked, analytic_profile(model, asked, half))
    stages = tuple(pairwise([0, *(1 + 32 * s // pp for s in range(1, pp)), 34]))
    ours = mixed_costs.prepare(config, kinds, stages)
    theirs = prepare_placed(
        model, asked, analytic_profile(model, asked, whole), config, Placement(stages=stages)
    )
    assert simulate(ours.program).step_s == pytest.approx(simulate(theirs.program).step_s, rel=0.03)
    assert ours.memory[0] == theirs.memory[0]
    assert ours.memory[-1] == theirs.memory[-1]


def test_devices_that_do_not_fit_stay_idle():
    """Five sequences do not divide over eight devices' replicas."""
    options = replace(ANY, pin={"pp": ("3",), "tp": ("1",)})
    found = plan(DENSE, 5, "h100-1x4", "a100-80-1x4", options=options)
    used = used_of_groups(found.cluster, found.chosen.config, found.chosen.placement)
    assert sum(used) < 8
    assert len(found.chosen.placement.devices) in (0, sum(used))


def test_pins_and_numbers_of_devices_are_obeyed():
    options = replace(ANY, pin={"tp": ("2",), "recompute": ("full",)}, devices=(6,))
    found = plan(DENSE, 4, "h100-1x4", "a100-80-1x4", options=options)
    for c in (found.chosen, *found.alternatives):
        assert (c.config.tp, c.config.recompute, c.config.num_devices) == (2, "full", 6)


def test_a_pinned_split_is_obeyed():
    options = replace(ANY, pin={"split": ("1", "3", "1")})
    found = plan(DENSE, 4, "h100-1x4", "a100-80-1x4", options=options).chosen
    assert found.placement.layers_per_stage(5) == (1, 3, 1)


def test_prices_count_in_cost():
    """The slower kind, nearly for nothing."""
    options = replace(ANY, objective="cost")
    cheap = plan(DENSE, 8, "h100-1x4", "a100-80-1x4", options=options, prices=(10.0, 0.01))
    used = used_of_groups(cheap.cluster, cheap.chosen.config, cheap.chosen.placement)
    assert used[0] == 0 < used[1]
    assert cheap.chosen.cost.price_per_hour == pytest.approx(0.01 * used[1])
    scores = [c.cost.price_per_hour * c.cost.step_s for c in (cheap.chosen, *cheap.alternatives)]
    assert scores == sorted(scores)


def test_where_ranks_are():
    where = cluster("h100-1x4", "a100-40-1x4")
    assert starts_of(where) == (0, 4, 8)
    config = ParallelConfig(
        pp=3, dp_replicate=1, tp=2, micro_batch=1, recompute="none", schedule="1f1b"
    )
    stages = ((0, 2), (2, 4), (4, 7))
    reverse = Placement(stages=stages, devices=(4, 5, 0, 1, 2, 3))
    assert groups_of_ranks(where, config, reverse) == ((1,), (0,), (0,))
    assert used_of_groups(where, config, reverse) == (4, 2)
    memory = [where.groups[g].device.memory_bytes for g in (1, 0, 0)]
    assert list(capacities_of(where, config, reverse)) == memory
    across = Placement(stages=stages, devices=(3, 4, 5, 6, 0, 1))
    assert groups_of_ranks(where, config, across) == ((0, 1), (1,), (0,))
    assert capacities_of(where, config, across)[0] == memory[0]


@pytest.mark.parametrize("devices", [(0, 1, 2), (0, 1, 2, 2), (0, 1, 2, 3, 4)])
def test_every_rank_needs_a_device_of_its_own(devices):
    config = ParallelConfig(
        pp=2, dp_replicate=1, tp=2, micro_batch=1, recompute="none", schedule="1f1b"
    )
    assert first_broken_config(config, DENSE, job()) is None
    placement = Placement(stages=((0, 3), (3, 7)), devices=devices)
    with pytest.raises(UserError, match="a device of its own"):
        check_layout(DENSE, job(), config, placement)


def test_devices_must_be_in_the_cluster():
    config = ParallelConfig(
        pp=1, dp_replicate=2, tp=1, micro_batch=1, recompute="none", schedule="1f1b"
    )
    placement = Placement(stages=((0, 7),), devices=(0, 9))
    with pytest.raises(UserError, match="device 9, of 8 from 0"):
        check_devices_of(cluster("h100-1x4", "a100-80-1x4"), config, placement)


def test_a_measured_profile_of_several_kinds_is_refused():
    profile = facts.profile(2, 2)
    both = ClusterSpec(name="both", groups=profile.cluster.groups * 2)
    with pytest.raises(UserError, match="measured on 2 kinds of node"):
        make_plan(facts.model(), facts.job(), replace(profile, cluster=both), ANY)


def test_nothing_fits():
    with pytest.raises(UserError, match="fits on 1 x 1 a100-40 and 1 x 1 h100") as caught:
        plan(resolve_model("llama3-70b"), 8, "a100-40-1x1", "h100-1x1")
    assert caught.value.kind == "infeasible"
    assert "alone: closest" in caught.value.details[0]


def test_same_question_same_bytes():
    first, second = (plan(DENSE, 4, "h100-1x2", "a100-80-1x1") for _ in range(2))
    assert encode(first) == encode(second)
