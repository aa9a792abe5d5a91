"""The search against brute force, and its promises: pure, counted, honest where nothing fits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner.today import RULES, Facts, enumerate_layouts, first_broken

from planner.axes import divisors
from planner.cost import CostModel
from planner.estimate import estimate
from planner.plan import SearchOptions, check_plan, plan_id
from planner.rules import CONFIG_RULES
from planner.search import make_plan
from planner.space import MEMORY_RULE
from profiler.codec import encode, replace
from profiler.errors import UserError
from tests.unit import facts

ANY = SearchOptions(pin={}, forbid={})


def pins(**axes):
    return SearchOptions(pin={k: tuple(map(str, v)) for k, v in axes.items()}, forbid={})


def brute_force(model, job, profile):
    """Simulate every layout that breaks no rule and fits; fastest time."""
    costs = CostModel(model, job, profile)
    known = Facts(model, job, costs.table, ANY)
    times = []
    for config in enumerate_layouts(profile.cluster.num_devices, job, profile.model):
        if first_broken(config, known):
            continue
        prepared = costs.prepare(config)
        if prepared and prepared.peak_bytes <= costs.capacity_bytes:
            times.append(estimate(costs, prepared).cost.step_s)
    return sorted(times)


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(1, 2), per_node=st.sampled_from([1, 2, 3, 4]), batch=st.integers(1, 12),
    layers=st.integers(1, 7), cores=st.sampled_from([None, 1, 2, 3]),
)  # fmt: skip
def test_equals_brute_force(nodes, per_node, batch, layers, cores):
    model, job = facts.model(num_layers=layers), facts.job(global_batch=batch)
    profile = replace(facts.profile(nodes, per_node, global_batch=batch), model=model)
    if cores:
        profile = facts.shared(profile, cores)
    times = brute_force(model, job, profile)
    if not times:
        with pytest.raises(UserError) as caught:
            make_plan(model, job, profile, ANY)
        assert caught.value.kind == "infeasible"
        return
    plan = make_plan(model, job, profile, ANY)
    found = [c.cost.step_s for c in (plan.chosen, *plan.alternatives)]
    assert found == pytest.approx(times[: len(found)])
    assert len(found) == min(len(times), ANY.top + 1)


def test_same_question_same_bytes():
    a, b = (make_plan(facts.model(), facts.job(), facts.profile(), ANY) for _ in range(2))
    assert encode(a) == encode(b)
    assert a.id == plan_id(a)


def test_counts_add_up():
    counts = make_plan(facts.model(), facts.job(), facts.profile(), ANY).counts
    total = sum(counts.rejected.values()) + counts.pruned + counts.simulated
    assert total == counts.enumerated == len(list(enumerate_layouts(4, facts.job(), facts.model())))


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
    for c in make_plan(facts.model(), facts.job(), facts.profile(), options).alternatives:
        assert c.config.tp == 4


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


def test_each_rule_can_be_broken():
    """A layout for every rule, so that none of them is dead."""
    odd = facts.model(num_heads=2, num_kv_heads=1, ffn_hidden_size=9, vocab_size=5, num_layers=1)
    seen = set()
    for model, job, devices in (
        (facts.model(), facts.job(), 4),
        (facts.model(), facts.job(global_batch=2**15), 4),
        (odd, facts.job(), 8),
        (facts.model(num_kv_heads=1), facts.job(), 4),
        (facts.model(ffn_hidden_size=9), facts.job(), 4),
        (facts.model(vocab_size=5), facts.job(), 4),
        (facts.model(), facts.job(seq_len=31), 4),
    ):
        profile = replace(facts.profile(1, 4), model=model, seq_len=job.seq_len)
        oom = replace(profile.blocks[0], status="oom", tp=1, micro_batch=8)
        profiled = (b for b in profile.blocks[1:] if b.tp != 4 or b.block != "embed")
        profile = replace(profile, blocks=(*profiled, oom))
        table = CostModel(model, job, profile).table
        for options in (ANY, pins(tp=[1]), pins(split=[1]), replace(ANY, forbid={"pp": ("1",)})):
            known = Facts(model, job, table, options)
            for config in enumerate_layouts(devices, job, model):
                rule = first_broken(config, known)
                seen.add(rule.id if rule else "")
    never_enumerated = {r.id for r in CONFIG_RULES if not r.id.endswith("-tp")} | {"shared-ffn-tp"}
    assert seen >= {rule.id for rule in RULES} - never_enumerated


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


@given(micro_batch=st.sampled_from([1, 2]), tp=st.sampled_from([1, 2]))
def test_memory_grows_with_the_micro_batch_and_shrinks_with_tp(micro_batch, tp):
    costs = CostModel(facts.model(), facts.job(), facts.profile())
    plain = (1, "none", "1f1b")
    small = next(
        c
        for c in enumerate_layouts(4, facts.job(), facts.model())
        if (c.pp, c.recompute, c.schedule) == plain
    )
    peaks = [
        costs.prepare(replace(small, tp=t, dp_replicate=1, micro_batch=b)).peak_bytes
        for t, b in ((tp, micro_batch), (tp, 2 * micro_batch), (2 * tp, micro_batch))
    ]
    assert peaks[2] < peaks[0] < peaks[1]


def test_recompute_trades_time_for_memory():
    costs = CostModel(facts.model(), facts.job(), facts.profile())
    layout = next(
        c
        for c in enumerate_layouts(4, facts.job(), facts.model())
        if c.pp == 2 and c.micro_batch == 2
    )
    plain, full = (costs.prepare(replace(layout, recompute=r)) for r in ("none", "full"))
    assert full.peak_bytes < plain.peak_bytes
    assert estimate(costs, full).cost.step_s > estimate(costs, plain).cost.step_s


def test_memory_rejections_are_counted():
    tight = facts.cluster(device=facts.device(memory_bytes=6 * 2**20))
    profile = replace(facts.profile(), cluster=tight)
    counts = make_plan(facts.model(), facts.job(), profile, ANY).counts
    assert counts.rejected[MEMORY_RULE] > 0


@given(st.integers(1, 5000))
def test_divisors(n):
    assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]
