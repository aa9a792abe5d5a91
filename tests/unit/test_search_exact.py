"""The analytic search against all layouts of small spaces, each prepared and simulated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import space
from planner.cost import cost_model
from planner.plan import SearchOptions
from planner.screening import POOL
from planner.search import MOST_SIMULATED, make_plan
from profiler.catalog import cluster_from_name, load_model
from profiler.codec import replace
from profiler.errors import UserError
from profiler.job import JobSpec
from tests.unit import facts
from tests.unit.spaces import (
    ANY,
    analytic,
    best_of_kin,
    layouts,
    pins,
    simulated,
    with_memory,
)

MOE = {"num_experts": 8, "num_experts_per_token": 2, "expert_ffn_hidden_size": 48}
KINDS = {
    "dense": {},
    "moe": {"family": "qwen3_moe", **MOE},
    "dense first": {"family": "deepseek_v2", **MOE, "first_dense_layers": 1},
    "mla": {"family": "deepseek_v2", "kv_lora_rank": 32, "q_lora_rank": 24, "rope_head_dim": 8},
    "mtp": {"family": "deepseek_v3", **MOE, "num_mtp_layers": 1},
    "mtp alone": {"num_mtp_layers": 2},
    "tied": {"tie_embeddings": True, "vocab_size": 8192},
    "sliding": {"attention_pattern": ("sliding",), "window": 16},
}
WIDE = {
    "hidden_size": 1024, "head_dim": 128, "num_heads": 8, "num_kv_heads": 8,
    "ffn_hidden_size": 4096,
}  # fmt: skip
NARROWED = (
    ANY,
    pins(schedule=["gpipe", "1f1b", "zbv"]),
    pins(cp=[1, 2], cp_method=["ring", "hybrid", "ulysses"], pp=[1, 2]),
    pins(offload=["none", "optimizer", "activations"], mbs=[1, 2], zero=[0, 1]),
    pins(pp=[2, 4], vpp=[1, 2], recompute=["none", "full"]),
    SearchOptions(pin={}, forbid={"zero": ("0", "1"), "schedule": ("zero_bubble",)}),
    SearchOptions(pin={"tp": ("1", "2")}, forbid={"recompute": ("selective",), "pp": ("1",)}),
)


@st.composite
def asked(draw):
    """Model, job, cluster with plenty of memory, options."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    model = facts.model(num_layers=draw(st.integers(1, 9)), **KINDS[kind])
    batch, real = draw(st.integers(1, 16)), draw(st.booleans())
    nodes, per_node = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 4]))
    options = draw(st.sampled_from(NARROWED))
    if not real:
        return model, facts.job(global_batch=batch), facts.cluster(nodes, per_node), options
    job = JobSpec(global_batch=batch, seq_len=2048)
    return replace(model, **WIDE), job, cluster_from_name(f"h100-{nodes}x{per_node}"), options


def memory_of(model, job, cluster, options, share):
    """Bytes of a device on which about that share of the layouts fits; None where there are none or
    so many that screening drops some."""
    costs = cost_model(model, job, analytic(model, job, with_memory(cluster, 2**50)))
    every = layouts(costs, options)
    if not 0 < len(every) <= POOL:
        return None
    peaks = costs.screen(every, np.inf).peak_bytes
    return int(np.quantile(peaks, share) / (1 - job.memory_reserve)) + 1


def check(plan, times):
    """The plan is that of simulating everything, as far as it says so."""
    assert plan.bound_s <= times[0] * (1 + 1e-9)
    assert plan.chosen.cost.step_s >= times[0] * (1 - 1e-9)
    found = [c.cost.step_s for c in (plan.chosen, *plan.alternatives)]
    if plan.counts.simulated < MOST_SIMULATED:
        assert found == pytest.approx(times[: len(found)], rel=1e-9)
        assert plan.bound_s == plan.chosen.cost.step_s
        # What is far slower need not be among the alternatives.
        assert all(t > 1.1 * times[0] for t in times[len(found) : plan.options.top + 1])


@settings(max_examples=20, deadline=None)
@given(question=asked(), share=st.sampled_from([0.02, 0.1, 0.3, 0.6, 1.0]))
def test_equals_simulating_everything(question, share):
    model, job, cluster, options = question
    memory = memory_of(*question, share)
    if memory is None:
        return
    profile = analytic(model, job, with_memory(cluster, memory))
    costs = cost_model(model, job, profile)
    times = best_of_kin(simulated(costs, layouts(costs, options)))
    if not times:
        with pytest.raises(UserError) as caught:
            make_plan(model, job, profile, options)
        assert caught.value.kind == "infeasible"
        return
    check(make_plan(model, job, profile, options), times)


def test_memory_so_scarce_that_layers_lie_unevenly():
    """Only a split with fewer layers on the first rank fits: screening must not refuse it."""
    model, job = facts.model(num_layers=9, **WIDE), JobSpec(global_batch=8, seq_len=2048)
    options = pins(pp=[4], schedule=["1f1b"], mbs=[1], recompute=["none"])
    cluster = cluster_from_name("h100-1x4")
    plenty = cost_model(model, job, analytic(model, job, with_memory(cluster, 2**50)))
    config = next(layouts(plenty, options).configs())
    even = plenty.screen(layouts(plenty, options), np.inf).peak_bytes.min()
    level = plenty.prepare(config)
    assert level.placement.layers_per_stage(9)[0] < 3
    memory = int(max(m.total_bytes for m in level.memory) / (1 - job.memory_reserve)) + 1
    assert memory * (1 - job.memory_reserve) < even
    profile = analytic(model, job, with_memory(cluster, memory))
    times = best_of_kin(simulated(cost_model(model, job, profile), layouts(plenty, options)))
    check(make_plan(model, job, profile, options), times)


def test_a_real_model_on_sixteen_devices():
    """Thousands of layouts; the pins leave the best, and few enough to simulate each."""
    model, job = load_model("llama3-8b"), JobSpec(global_batch=64, seq_len=4096)
    profile = analytic(model, job, cluster_from_name("h100-2x8"))
    whole = make_plan(model, job, profile, ANY)
    assert whole.counts.enumerated > 10_000
    assert whole.counts.simulated < MOST_SIMULATED
    assert 0.97 * whole.chosen.cost.step_s < whole.bound_s <= whole.chosen.cost.step_s
    best = whole.chosen.config
    options = pins(recompute=[best.recompute], mbs=[best.micro_batch], zero=sorted({1, best.zero}))
    costs = cost_model(model, job, profile)
    times = best_of_kin(simulated(costs, layouts(costs, options)))
    assert len(times) > 40
    check(make_plan(model, job, profile, options), times)
    assert whole.chosen.cost.step_s == pytest.approx(times[0], rel=1e-9)


def test_chunks_of_any_size_give_the_same_plan(monkeypatch):
    model, job = facts.model(num_layers=8, **KINDS["moe"]), facts.job(global_batch=8)
    profile = analytic(model, job, with_memory(facts.cluster(2, 2), 6 * 2**20))
    whole = make_plan(model, job, profile, ANY)
    assert whole.counts.enumerated > 300
    for size in (16, 101):
        monkeypatch.setattr(space, "CHUNK", size)
        plan = make_plan(model, job, profile, ANY)
        assert plan.chosen == whole.chosen
        assert plan.alternatives == whole.alternatives
        assert plan.counts.enumerated == whole.counts.enumerated
