"""Estimates: every rank's components, and the terms, add up to the step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.config import ParallelConfig, Placement
from planner.cost import cost_model
from planner.estimate import estimate
from planner.plan import TERMS
from planner.schedules import allows_vpp, stage_owner
from planner.simulate import simulate
from profiler.codec import replace
from profiler.job import JobSpec
from tests.unit import facts
from tests.unit.spaces import analytic, with_memory
from tests.unit.test_search_exact import KINDS, WIDE

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipev")
SHAPES = [
    (name, vpp)
    for name in SCHEDULES
    for vpp in (1, 2, 3)
    if allows_vpp(name, vpp) and (name, vpp) != ("interleaved", 1)
]


def costs_of(kind, real, per_node, batch):
    model, job = facts.model(num_layers=12, **KINDS[kind]), facts.job(global_batch=batch)
    if real:
        model, job = replace(model, **WIDE), JobSpec(global_batch=batch, seq_len=2048)
    cluster = facts.cluster(2, per_node)
    rates = {"fp32": 1e10, "bf16": 1e13}
    cluster = with_memory(cluster, 2**50)
    device = replace(cluster.groups[0].device, flops_per_s=rates)
    cluster = replace(cluster, groups=(replace(cluster.groups[0], device=device),))
    return cost_model(model, job, analytic(model, job, cluster))


@settings(max_examples=80, deadline=None)
@given(
    shape=st.sampled_from(SHAPES), pp=st.sampled_from([2, 4]), kind=st.sampled_from(sorted(KINDS)),
    replicas=st.sampled_from([1, 2]), tp=st.sampled_from([1, 2]), cp=st.sampled_from([1, 2]),
    m=st.integers(1, 9), recompute=st.sampled_from(["none", "full"]), real=st.booleans(),
)  # fmt: skip
def test_components_and_terms_add_up(shape, pp, kind, replicas, tp, cp, m, recompute, real):
    schedule, vpp = shape
    config = ParallelConfig(
        pp=pp, dp_replicate=replicas, tp=tp, cp=cp, micro_batch=1, recompute=recompute,
        schedule=schedule, vpp=vpp,
    )  # fmt: skip
    costs = costs_of(kind, real, pp * replicas * tp * cp // 2, m * replicas)
    prepared = costs.prepare(config)
    program, cost = prepared.program, estimate(costs, prepared).cost
    assert len(cost.stages) == pp
    owners = stage_owner(schedule, pp, vpp)
    for rank, e in enumerate(cost.stages):
        assert e.compute_s + e.p2p_s + e.collective_s + e.idle_s == pytest.approx(cost.step_s)
        assert min(e.compute_s, e.p2p_s, e.collective_s, e.idle_s) >= 0
        own = [s for s, owner in enumerate(owners) if owner == rank]
        times = (program.forward_s, program.input_s, program.weight_s)
        actions = m * sum(t[s] for t in times for s in own)
        sync = sum(program.sync_s[s] for s in own)
        busy = actions + sync + program.bucket_s[rank] + program.optimizer_s[rank]
        assert e.compute_s + e.collective_s == pytest.approx(busy)
        if schedule in ("gpipe", "1f1b", "interleaved"):
            talk = (prepared.forward_collective_s, prepared.backward_collective_s)
            whole = (program.forward_s, program.backward_s)
            within = sum(min(t[s], w[s]) for t, w in zip(talk, whole, strict=True) for s in own)
            assert e.collective_s == pytest.approx(sync + m * within)
        assert e.memory == prepared.memory[rank]
    for name in ("compute_s", "p2p_s", "collective_s", "idle_s"):
        mean = sum(getattr(e, name) for e in cost.stages) / pp
        assert getattr(cost, name) == pytest.approx(mean)
    assert tuple(cost.terms) == TERMS
    assert min(cost.terms.values()) >= 0
    assert sum(cost.terms.values()) == pytest.approx(cost.step_s)
    assert cost.step_s == simulate(program).step_s >= cost.bound_s
    assert cost.peak_bytes == max(e.memory.total_bytes for e in cost.stages)


def test_time_of_collectives_is_told_from_that_of_messages():
    """Tensor parallelism talks in collectives, a slow network between stages in messages."""
    costs = costs_of("dense", True, 2, 4)
    plain = ParallelConfig(
        pp=1, dp_replicate=4, tp=1, micro_batch=1, recompute="none", schedule="1f1b"
    )
    alone, tensor, pipe = (
        estimate(costs, costs.prepare(replace(plain, **degrees))).cost
        for degrees in (
            {"pp": 1}, {"tp": 2, "dp_replicate": 2}, {"pp": 2, "dp_replicate": 2, "tp": 1},
        )
    )  # fmt: skip
    assert alone.terms["tensor"] == alone.p2p_s == alone.terms["messages"] == 0
    assert tensor.terms["tensor"] > 0 == tensor.p2p_s
    assert pipe.terms["messages"] > 0 == pipe.terms["tensor"]
    assert pipe.p2p_s > 0 < pipe.terms["bubble"]


def test_tokens_and_flops_per_second():
    costs = costs_of("moe", True, 2, 8)
    config = ParallelConfig(
        pp=2, dp_replicate=2, tp=1, micro_batch=2, recompute="none", schedule="1f1b"
    )
    cost = estimate(costs, costs.prepare(config)).cost
    assert cost.tokens_per_s == pytest.approx(8 * 2048 / cost.step_s)
    flops = costs.model.flops_per_token(2048) * cost.tokens_per_s
    assert cost.mfu == pytest.approx(flops / (4 * 1e13))


def test_a_stage_of_the_embedding_alone_has_no_layers():
    """Ranks that compute nothing for long are idle, and have their own memory."""
    costs = costs_of("dense", False, 2, 4)
    config = ParallelConfig(
        pp=4, dp_replicate=1, tp=1, micro_batch=1, recompute="none", schedule="1f1b"
    )
    stages = ((0, 1), (1, 6), (6, 11), (11, 14))
    candidate = estimate(costs, costs.prepare(config, stages))
    assert candidate.placement == Placement(stages=stages)
    first, second = candidate.cost.stages[:2]
    assert first.compute_s < second.compute_s / 4
    assert first.idle_s > second.idle_s
    assert first.memory.activation_bytes == 0 < second.memory.activation_bytes
