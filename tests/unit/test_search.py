"""The search against brute force, and its promises: pure, counted, honest where nothing fits."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.axes import divisors
from planner.config import ParallelConfig
from planner.cost import cost_model
from planner.estimate import estimate
from planner.plan import SearchOptions, check_plan, plan_id
from planner.search import make_plan
from planner.space import MEMORY_RULE, SENTENCES
from profiler.codec import decode, encode, replace
from profiler.errors import UserError
from tests.unit import facts
from tests.unit.spaces import ANY, best_of_kin, layouts, pins, simulated

GPIPE = pins(schedule=["gpipe", "1f1b"])
LAYOUT = ParallelConfig(
    pp=2, dp_replicate=2, tp=1, micro_batch=2, recompute="none", schedule="1f1b"
)


def costs_of(profile, **changes):
    return cost_model(profile.model, facts.job(**changes), profile)


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(1, 2), per_node=st.sampled_from([1, 2, 3, 4]), batch=st.integers(1, 12),
    layers=st.integers(1, 7), cores=st.sampled_from([None, 1, 2, 3]),
    options=st.sampled_from([ANY, GPIPE]),
)  # fmt: skip
def test_equals_brute_force(nodes, per_node, batch, layers, cores, options):
    model, job = facts.model(num_layers=layers), facts.job(global_batch=batch)
    profile = replace(facts.profile(nodes, per_node, global_batch=batch), model=model)
    if cores:
        profile = facts.shared(profile, cores)
    costs = cost_model(model, job, profile)
    times = best_of_kin(simulated(costs, layouts(costs, options)))
    if not times:
        with pytest.raises(UserError) as caught:
            make_plan(model, job, profile, options)
        assert caught.value.kind == "infeasible"
        return
    plan = make_plan(model, job, profile, options)
    found = [c.cost.step_s for c in (plan.chosen, *plan.alternatives)]
    assert found == pytest.approx(times[: len(found)])
    assert len(found) == min(len(times), ANY.top + 1)
    assert plan.bound_s == plan.chosen.cost.step_s  # nothing was left that could be faster


def test_same_question_same_bytes():
    a, b = (make_plan(facts.model(), facts.job(), facts.profile(), ANY) for _ in range(2))
    assert encode(a) == encode(b)
    assert a.id == plan_id(a)


def test_a_plan_is_read_back_as_it_was():
    plan = make_plan(facts.model(), facts.job(), facts.profile(), ANY)
    assert decode(type(plan), encode(plan), "plan.json") == plan


@pytest.mark.parametrize("memory", [16 * 2**20, 5 * 2**20])
def test_counts_add_up(memory):
    tight = facts.cluster(device=facts.device(memory_bytes=memory))
    profile = replace(facts.profile(), cluster=tight)
    counts = make_plan(facts.model(), facts.job(), profile, GPIPE).counts
    total = sum(counts.rejected.values()) + counts.pruned + counts.simulated
    broken, costs = Counter(), costs_of(profile)
    space = layouts(costs, GPIPE, broken)
    assert total == counts.enumerated == len(space) + sum(broken.values())
    assert set(counts.rejected) <= SENTENCES.keys()
    fitting = len(simulated(costs, space))
    assert counts.rejected.get(MEMORY_RULE, 0) == len(space) - fitting
    assert {k: n for k, n in counts.rejected.items() if k != MEMORY_RULE} == broken
    assert 0 < counts.simulated <= fitting


def test_components_add_up_to_the_step():
    profile = facts.shared(facts.profile(2, 2), 2)
    plan = make_plan(facts.model(), facts.job(), profile, replace(ANY, top=100))
    for candidate in (plan.chosen, *plan.alternatives):
        for e in (candidate.cost, *candidate.cost.stages):
            total = e.compute_s + e.p2p_s + e.collective_s + e.idle_s
            assert total == pytest.approx(candidate.cost.step_s)
        assert candidate.cost.bound_s <= candidate.cost.step_s * (1 + 1e-9)


def test_pin_and_forbid():
    plan = make_plan(facts.model(), facts.job(), facts.profile(), pins(tp=[2], pp=[2]))
    assert (plan.chosen.config.tp, plan.chosen.config.pp) == (2, 2)
    options = SearchOptions(pin={}, forbid={"tp": ("1", "2")})
    plan = make_plan(facts.model(), facts.job(), facts.profile(), options)
    assert len(plan.alternatives) > 1
    assert {c.config.tp for c in (plan.chosen, *plan.alternatives)} == {4}


@settings(max_examples=15, deadline=None)
@given(
    axis=st.sampled_from(["tp", "pp", "mbs", "recompute", "schedule"]),
    forbid=st.booleans(),
    data=st.data(),
)
def test_a_pin_is_a_filter(axis, forbid, data):
    """What is chosen with a pin is the best of those layouts that have the value."""
    every = SearchOptions(pin=GPIPE.pin, forbid={}, top=1000)
    whole = make_plan(facts.model(), facts.job(), facts.profile(), every)
    rows = [
        (str(value(c.config, axis)), c.cost.step_s) for c in (whole.chosen, *whole.alternatives)
    ]
    named = data.draw(st.sampled_from(sorted({name for name, _ in rows})))
    kept = [s for name, s in rows if (name == named) != forbid]
    if forbid:
        options = replace(every, forbid={axis: (named,)})
    else:
        options = replace(every, pin={**GPIPE.pin, axis: (named,)})
    plan = make_plan(facts.model(), facts.job(), facts.profile(), options)
    assert [c.cost.step_s for c in (plan.chosen, *plan.alternatives)] == kept


def value(config, axis):
    return config.micro_batch if axis == "mbs" else getattr(config, axis)


def test_pinned_split_is_obeyed():
    plan = make_plan(facts.model(), facts.job(), facts.profile(), pins(split=[1, 5]))
    assert plan.chosen.config.pp == 2
    assert plan.chosen.placement.layers_per_stage(6) == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (pins(tq=[1]), "`--pin` does not know axis `tq`"),
        (pins(split=[1, 2]), "`split=1,2` has 3 layers, the model 6"),
        (pins(split=["x", 2]), "`split=x,2` is not a list of layer counts"),
        (SearchOptions(pin={}, forbid={"split": ("3",)}), "`--forbid` cannot take `split`"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        make_plan(facts.model(), facts.job(), facts.profile(), options)


def test_what_the_profile_does_not_reach_is_counted():
    profile = facts.profile()
    gone = (b for b in profile.blocks[1:] if (b.tp, b.block) != (4, "embed"))
    oom = replace(profile.blocks[0], status="oom", tp=1, micro_batch=8)
    profile = replace(profile, blocks=(*gone, oom))
    counts = make_plan(facts.model(), facts.job(), profile, ANY).counts
    assert counts.rejected["oom-profiled"] > 0
    assert counts.rejected["not-profiled"] > 0
    experts = facts.model(
        family="qwen3_moe", num_experts=4, num_experts_per_token=2, expert_ffn_hidden_size=48
    )
    moe = facts.analytic_profile(experts, facts.job(), facts.cluster())
    for config in layouts(cost_model(experts, facts.job(), moe)).configs():
        assert (config.ep, config.etp) == (1, config.tp)


def test_nothing_fits_names_the_closest():
    small = facts.cluster(device=facts.device(memory_bytes=2**20))
    profile = replace(facts.profile(), cluster=small)
    with pytest.raises(UserError, match="no layout of `small` fits on 4 x toy") as caught:
        make_plan(facts.model(), facts.job(), profile, ANY)
    assert caught.value.kind == "infeasible"
    assert "needs" in caught.value.details[0]


def test_profile_of_something_else_is_stale():
    for model, job in (
        (facts.model(hidden_size=32), facts.job()),
        (facts.model(), facts.job(seq_len=64)),
    ):
        with pytest.raises(UserError, match="does not speak of this job") as caught:
            make_plan(model, job, facts.profile(), ANY)
        assert caught.value.kind == "stale"


def test_an_edited_plan_is_stale():
    plan = make_plan(facts.model(), facts.job(), facts.profile(), ANY)
    check_plan(plan, "plan.json")
    edited = replace(plan, job=replace(plan.job, global_batch=4))
    with pytest.raises(UserError, match="was changed after planning") as caught:
        check_plan(edited, "plan.json")
    assert caught.value.kind == "stale"


def test_a_plan_of_another_format_cannot_be_checked():
    """Fields that this version adds, or does not know, are in the id of one side alone."""
    plan = make_plan(facts.model(), facts.job(), facts.profile(), ANY)
    other = replace(plan, format_version="1.0")
    with pytest.raises(UserError, match=r"has format 1\.0, and its content cannot be") as caught:
        check_plan(other, "plan.json")
    assert caught.value.kind == "stale"


@settings(max_examples=4, deadline=None)
@given(micro_batch=st.sampled_from([1, 2]), tp=st.sampled_from([1, 2]))
def test_memory_grows_with_the_micro_batch_and_shrinks_with_tp(micro_batch, tp):
    costs = costs_of(facts.profile())
    peaks = [
        costs.prepare(replace(LAYOUT, pp=1, tp=t, dp_replicate=1, micro_batch=b)).peak_bytes
        for t, b in ((tp, micro_batch), (tp, 2 * micro_batch), (2 * tp, micro_batch))
    ]
    assert peaks[2] < peaks[0] < peaks[1]


def test_recompute_trades_time_for_memory():
    costs = costs_of(facts.profile())
    plain, full = (costs.prepare(replace(LAYOUT, recompute=r)) for r in ("none", "full"))
    assert full.peak_bytes < plain.peak_bytes
    assert estimate(costs, full).cost.step_s > estimate(costs, plain).cost.step_s


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000))
def test_divisors(n):
    assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]
