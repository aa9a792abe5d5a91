"""Experts placed by recorded routing: rates, loads, and what a plan says of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.config import ExpertSlots
from planner.expert_placement import (
    Ranks,
    Rates,
    degrees_of,
    load_of,
    parts_of,
    place,
    rates_of,
    slots_of,
    slots_of_layers,
)
from planner.holdings import contiguous_slots
from profiler.catalog import resolve_cluster, resolve_model
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.routing.trace import DROPPED, RoutingCounts
from solvers.experts.problem import Placed
from tests.unit.made_routing import skewed_trace

RATES = Rates(compute_s=1e-6, intra_s=1e-7, inter_s=1e-6)


def ranks(num=4, slots=2, per_node=2, **changes):
    plain = {"num_ranks": num, "ranks_per_node": per_node, "slots_per_rank": slots}
    return Ranks(rates=RATES, **(plain | changes))


def loads_by_hand(routing, layers, window):
    """Of whole windows, each token's choices counted one by one; no replicas."""
    where = [{e: r for r, own in enumerate(one.slots) for e in own} for one in layers]
    found = []
    for begin in range(0, routing.num_tokens - window + 1, window):
        for layer, rank_of in enumerate(where):
            load = np.zeros(len(layers[0].slots))
            for token in range(begin, begin + window):
                for expert in routing.ids[token, layer]:
                    load[rank_of[int(expert)]] += 1
            found.append(load.max() / load.mean())
    return np.mean(found)


@pytest.mark.parametrize("window", [25, 100])
def test_the_load_is_of_windows(window):
    routing = skewed_trace()
    layers = (contiguous_slots(8, 4),) * 3
    found = load_of(routing, [parts_of(one, 8) for one in layers], 2, window=window)
    assert (found.ep, found.slots_per_rank, found.shares) == (4, 2, ())
    assert found.imbalance == pytest.approx(loads_by_hand(routing, layers, window))
    assert found.imbalance > 1.2


def test_few_tokens_are_less_level_than_many():
    routing = skewed_trace(tokens=4000, skew=0.0)
    parts = [parts_of(contiguous_slots(8, 4), 8)] * 3
    small, large = (load_of(routing, parts, 2, window=w).imbalance for w in (20, 1000))
    assert small > large > 1
    assert large < 1.1


@given(seed=st.integers(0, 100), dropped=st.booleans())
def test_shares_are_those_of_the_counts(seed, dropped):
    routing = skewed_trace(tokens=50, seed=seed)
    if dropped:
        routing.ids[::7, :, 1] = DROPPED
    layer = ExpertSlots(
        slots=((0, 1, 2, 7), (3, 4, 5, 6, 7)), shares=((1, 1, 1, 1), (1, 1, 1, 1, 3))
    )
    found = load_of(routing, [parts_of(layer, 8)] * 3, 5, window=10, keep_shares=True)
    counts = routing.counts().astype(float)
    first = counts[:, :3].sum(axis=1) + counts[:, 7] / 4
    assert np.array(found.shares)[:, 0] == pytest.approx(first / counts.sum(axis=1))
    assert np.array(found.shares).sum(axis=1) == pytest.approx(1)


def test_what_has_no_room_is_dropped():
    windows = np.array([[[70, 10, 10, 10]]])
    parts = [parts_of(contiguous_slots(4, 4), 4)]
    full, capped = (
        load_of(RoutingCounts(windows=windows), parts, 1, window=1, capacity=c) for c in (0, 1.2)
    )
    assert full.imbalance == pytest.approx(2.8)
    assert capped.imbalance == pytest.approx(30 / 15)  # 30, 10, 10, 10 are left


def test_counts_of_windows_do_as_well():
    windows = np.array([[[10, 0, 0, 0]], [[0, 0, 10, 0]]])
    found = load_of(
        RoutingCounts(windows=windows), [parts_of(contiguous_slots(4, 2), 4)], 2, window=1
    )
    assert found.imbalance == 2.0  # in each window one rank has all
    assert found.held_imbalance == 1.0  # together they have the same


def test_rates_of_a_catalogued_node():
    model, cluster = resolve_model("mixtral-8x7b"), resolve_cluster("h100-2x8")
    found = rates_of(model, JobSpec(global_batch=16, seq_len=4096), cluster.uniform, {})
    device = cluster.uniform.device
    flops = 3 * 2 * 4096 * 14336
    assert found.compute_s == flops / (device.flops_per_s["bf16"] * device.gemm_efficiency)
    assert found.intra_s == 2 * 4096 * 2 / cluster.uniform.intra.bytes_per_s
    assert found.trained.compute_s == 3 * found.compute_s
    assert found.trained.inter_s == 2 * found.inter_s


def test_slots_fill_the_ranks():
    assert slots_of(8, 4, 0) == 2
    assert slots_of(8, 4, 4) == 3
    with pytest.raises(UserError, match="do not fill 4 ranks evenly") as caught:
        slots_of(8, 4, 3)
    assert "take 4 replicas" in (caught.value.hint or "")
    with pytest.raises(UserError, match="do not fill 3 ranks"):
        slots_of(8, 3, 0)


def test_degrees_divide_the_experts_and_the_devices():
    model = resolve_model("mixtral-8x7b")
    assert degrees_of(model, 16) == (2, 4, 8)
    assert degrees_of(model, 12) == (2, 4)
    assert degrees_of(model, 16, (8, 16)) == (8,)


def test_a_placement_is_judged_on_tokens_it_has_not_seen():
    routing = skewed_trace(tokens=2000)
    found = place(routing, ranks())
    assert len(found.layers) == 3
    assert all(
        sorted(e for own in one.slots for e in own) == list(range(8)) for one in found.layers
    )
    assert found.held_out is not None
    assert found.train.max_over_mean <= found.others["contiguous"][0].max_over_mean
    assert found.bound_s <= found.objective_s == pytest.approx(found.train.time_s)
    again = place(routing, ranks())
    assert again.layers == found.layers
    replicas = place(routing, ranks(slots=3))
    assert replicas.train.max_over_mean < found.train.max_over_mean
    total = [sum(w for own in one.shares for w in own) for one in replicas.layers if one.shares]
    assert total == pytest.approx([8] * len(total))


def test_copies_on_one_rank_are_one_and_those_without_tokens_are_none():
    placed = Placed(
        slots=np.array([[0, 0, 1, 0, 1, 1]]), shares=np.array([[0.25, 0.25, 0.5, 0.5, 0.5, 0.0]])
    )
    (layer,) = slots_of_layers(placed, 2)
    assert layer == ExpertSlots(slots=((0, 1), (0, 1)), shares=((0.5, 0.5), (0.5, 0.5)))
    alone = Placed(slots=np.array([[0, 2, 1, 1]]), shares=np.array([[1.0, 1.0, 0.4, 0.6]]))
    assert slots_of_layers(alone, 2) == (ExpertSlots(slots=((0, 2), (1,))),)


def test_too_few_tokens_cannot_be_parted():
    with pytest.raises(UserError, match="1 tokens cannot be parted"):
        place(skewed_trace(tokens=1), ranks())
