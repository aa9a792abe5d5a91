"""What the analytic model must say when one fact changes: devices, memory, links, layout."""

import pytest

from planner.estimate import estimate
from planner.search import make_plan
from planner.simulate import simulate
from profiler.catalog import cluster_from_name
from profiler.codec import replace
from tests.unit import facts
from tests.unit.spaces import ANY, analytic, pins, with_group, with_memory
from tests.unit.test_analytic_costs import H100, JOB, MODEL, MOE, costs_of, layout
from tests.unit.test_search_exact import KINDS, WIDE

SMALL = replace(MODEL, num_layers=8)


def chosen_s(model=SMALL, job=JOB, cluster=H100, options=ANY):
    return make_plan(model, job, analytic(model, job, cluster), options).chosen.cost.step_s


@pytest.mark.parametrize("model", [SMALL, replace(SMALL, **KINDS["moe"])], ids=["dense", "moe"])
def test_more_devices_are_not_slower(model):
    model = replace(model, hidden_size=2048, num_heads=16, num_kv_heads=16, ffn_hidden_size=8192)
    shapes = ("1x1", "1x2", "1x4", "1x8", "2x8")
    times = [
        chosen_s(model, cluster=cluster_from_name(f"h100-{s}"), options=pins(mbs=[1, 2, 4]))
        for s in shapes
    ]
    assert times == sorted(times, reverse=True)
    assert times[3] < times[0] / 3


def test_more_memory_is_not_slower():
    model = replace(SMALL, hidden_size=4096, num_heads=32, num_kv_heads=8, ffn_hidden_size=14336)
    memories = (7, 9, 12, 80)
    times = [
        chosen_s(model, cluster=with_memory(H100, m * 2**30), options=pins(mbs=[1, 2]))
        for m in memories
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


@pytest.mark.parametrize("link", ["intra", "nic"])
def test_a_faster_link_is_not_slower(link):
    times, group = [], cluster_from_name("h100-2x4").groups[0]
    for factor in (0.01, 0.1, 1, 10):
        own = getattr(group, link)
        faster = replace(own, bytes_per_s=own.bytes_per_s * factor)
        cluster = with_group(cluster_from_name("h100-2x4"), **{link: faster})
        times.append(chosen_s(cluster=cluster, options=pins(mbs=[1, 2])))
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def prepared_of(costs, **changes):
    prepared = costs.prepare(layout(**changes))
    return prepared, simulate(prepared.program).step_s


@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_trades_time_for_memory(kind):
    costs = costs_of(replace(facts.model(num_layers=8, **KINDS[kind]), **WIDE))
    of = [prepared_of(costs, micro_batch=4, recompute=r) for r in ("none", "selective", "full")]
    times, peaks = [t for _, t in of], [p.peak_bytes for p, _ in of]
    assert times[0] < times[1] < times[2]
    assert peaks[0] > peaks[1] > peaks[2]


def test_zero_stages_take_memory_away():
    costs = costs_of(MOE)
    stages = [{}, *({"dp_replicate": 1, "dp_shard": 8, "zero": z} for z in (1, 2, 3))]
    memory = [prepared_of(costs, **stage)[0].memory[0] for stage in stages]
    optimizer, grads, weights = (
        [getattr(m, f"{part}_bytes") for m in memory] for part in ("optimizer", "grad", "weight")
    )
    assert optimizer == [optimizer[0], *[pytest.approx(optimizer[0] / 8, rel=1e-6)] * 3]
    assert grads == [grads[0], grads[0], *[pytest.approx(grads[0] / 8, rel=1e-6)] * 2]
    assert weights == [*[weights[0]] * 3, pytest.approx(weights[0] / 8, rel=1e-6)]


def test_offloading_the_optimizer_trades_time_for_memory():
    costs = costs_of()
    kept, gone = (prepared_of(costs, offload=name) for name in ("none", "optimizer"))
    assert gone[0].memory[0].optimizer_bytes == 0 < kept[0].memory[0].optimizer_bytes
    assert gone[0].peak_bytes < kept[0].peak_bytes
    assert gone[1] > kept[1]


def test_offloading_activations_takes_memory_away():
    costs = costs_of()
    rest = {"pp": 4, "dp_replicate": 2, "micro_batch": 2}
    kept, gone = (prepared_of(costs, offload=n, **rest)[0] for n in ("none", "activations"))
    assert gone.memory[0].activation_bytes < kept.memory[0].activation_bytes
    assert gone.peak_bytes < kept.peak_bytes


def test_virtual_stages_shorten_the_bubble():
    """Of large layers, whose messages weigh little beside them."""
    model = replace(MODEL, hidden_size=4096, num_heads=32, num_kv_heads=8, ffn_hidden_size=14336)
    costs, bubbles = costs_of(model), []
    for vpp in (1, 2, 4):
        schedule = "1f1b" if vpp == 1 else "interleaved"
        config = layout(pp=4, vpp=vpp, schedule=schedule, dp_replicate=2)
        bubbles.append(estimate(costs, costs.prepare(config)).cost.terms["bubble"])
    assert bubbles == sorted(bubbles, reverse=True)
    assert bubbles[2] < 0.6 * bubbles[0]


@pytest.mark.parametrize("etp", [1, 2])
def test_experts_of_a_rank_shrink_with_ep(etp):
    costs = costs_of(MOE)
    held = [
        prepared_of(costs, dp_replicate=4, tp=2, ep=ep, etp=etp)[0].memory[0].weight_bytes
        for ep in (1, 2, 4)
    ]
    experts = MOE.expert_params * MOE.num_experts * MOE.num_moe_layers * 2 / etp
    assert held[0] - held[1] == pytest.approx(experts / 2, rel=1e-6)
    assert held[1] - held[2] == pytest.approx(experts / 4, rel=1e-6)
