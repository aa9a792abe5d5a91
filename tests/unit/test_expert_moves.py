"""What is sent when experts move is what the planner counts, and takes what the links say."""

import dataclasses

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from planner.config import ExpertSlots
from planner.expert_moves import (
    MoveRates,
    check_empty,
    expert_transfers,
    placed_experts,
    state_bytes,
)
from planner.holdings import Holdings
from planner.moves import STATE_BYTES, moves_of
from planner.rebalance import move_rates
from planner.where import nodes_of_devices
from profiler.codec import replace
from profiler.errors import UserError
from profiler.profile import HostLinks
from profiler.tensors import tensors_of

from . import facts
from .layouts import MODELS, layout, layouts

MOE = replace(MODELS[2], vocab_size=64, hidden_size=16, ffn_hidden_size=24)
RATES = MoveRates(inside=100.0, between=(50.0, 10.0), source="by hand")


@st.composite
def slots(draw: st.DrawFn, ep: int) -> ExpertSlots:
    """Experts anywhere, every one somewhere."""
    ranks = st.lists(st.integers(0, ep - 1), min_size=1, max_size=ep, unique=True)
    held: list[list[int]] = [[] for _ in range(ep)]
    for expert in range(MOE.num_experts):
        for rank in draw(ranks):
            held[rank].append(expert)
    return ExpertSlots(slots=tuple(map(tuple, held)))


@settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip
@given(data=st.data())
def test_what_is_sent_is_what_moves_of_a_layout_count(data):
    config, placement = data.draw(layouts(MOE))
    assume(config.ep > 1)
    devices = tuple(data.draw(st.permutations(range(12)))[: config.num_devices])
    placement = replace(placement, devices=data.draw(st.sampled_from(((), devices))))
    experts = tuple(data.draw(slots(config.ep)) for _ in range(MOE.num_moe_layers))
    cluster = facts.cluster(num_nodes=6, per_node=2)
    nodes = nodes_of_devices(cluster)
    old, new = (
        Holdings(MOE, config, replace(placement, experts=each))
        for each in (placed_experts(MOE, config, placement), experts)
    )
    of_rank = [nodes[device] for device in old.devices]
    transfers = expert_transfers(MOE, config, placement, experts, of_rank)
    moves = moves_of(MOE, old, new, {device: device for device in range(12)}, cluster)
    assert state_bytes(transfers) == moves.fetched_bytes
    received = [state_bytes(t for t in transfers if t.target == r.rank) for r in moves.ranks]
    assert received == [rank.fetched_bytes for rank in moves.ranks]
    of_name = {tensor.name: tensor for tensor in tensors_of(MOE)[0]}
    flows: dict[tuple[int, int], int] = {}
    for each in transfers:
        source, target = old.devices[each.source], old.devices[each.target]
        assert source in old.of(of_name[each.name])[each.box]
        assert target not in old.of(of_name[each.name])[each.box]
        assert target in new.of(of_name[each.name])[each.box]
        flow = nodes[source], nodes[target]
        flows[flow] = flows.get(flow, 0) + STATE_BYTES * each.num_elements
    assert flows == {(f.source, f.target): f.num_bytes for f in moves.flows}


def test_seconds_are_those_of_the_busiest_rank_or_node():
    """Ranks 0 and 1 trade their halves on node 0, rank 2 on node 1 is apart."""
    config, placement = layout(MOE, dp_replicate=2, ep=2)
    turned = (ExpertSlots(slots=((2, 3), (0, 1))),) * MOE.num_moe_layers
    transfers = expert_transfers(MOE, config, placement, turned)
    half = state_bytes(transfers) / 2
    assert RATES.seconds(transfers, [0, 0]) == half / 100.0
    assert RATES.seconds(transfers, [0, 1]) == half / 10.0
    one_way = [t for t in transfers if t.source == 0]
    assert RATES.seconds(one_way, [0, 1]) == half / 10.0
    assert RATES.seconds([], [0, 1]) == 0.0


def test_an_expert_is_fetched_from_the_own_node():
    """Ranks 0 and 2 hold expert 0, on two nodes; 1 and 3 beside them want it."""
    config, placement = layout(MOE, dp_replicate=4, ep=4)
    before = ExpertSlots(slots=((0, 1), (2,), (3, 0), ()))
    after = ExpertSlots(slots=((0, 1), (2, 0), (3, 0), (0,)))
    num = MOE.num_moe_layers
    placement = replace(placement, experts=(before,) * num)
    transfers = expert_transfers(MOE, config, placement, (after,) * num, (0, 0, 1, 1))
    assert {(t.source, t.target) for t in transfers} == {(0, 1), (2, 3)}
    assert {t.layer for t in transfers} == set(range(num))


def test_rates_are_measured_where_they_can_be():
    profile = facts.profile(2, 2)
    rates = move_rates(profile)
    assert (rates.inside, rates.between) == (pytest.approx(1e9, rel=0.1), (1e8, 1e8))
    assert rates.source == "measured messages in a node"
    links = HostLinks(
        hosts=("a", "b"), bytes_per_s=((9.0, 4.0), (3.0, 8.0)), latency_s=((0.0,) * 2,) * 2,
        out_bytes_per_s=(4.0, 3.0), in_bytes_per_s=(3.5, 5.0),
    )  # fmt: skip
    found = move_rates(replace(profile, links=links))
    assert (found.inside, found.between, found.source) == (8.0, (3.5, 3.0), "measured links")


def test_zero_leaves_no_rank_empty():
    config, placement = layout(MOE, dp_shard=4, zero=1, ep=2)
    old = placed_experts(MOE, config, placement)
    other = (ExpertSlots(slots=((), (0, 1, 2, 3))),) * MOE.num_moe_layers
    for before, after, sizes in ((old, other, r"\[0, 4\]"), (other, old, r"\[2, 2\]")):
        with pytest.raises(UserError, match=f"layer 0 would have {sizes} slots"):
            check_empty(config, before, after)
    check_empty(config, old, (ExpertSlots(slots=((3,), (1, 0, 2))),) * MOE.num_moe_layers)
    check_empty(dataclasses.replace(config, dp_shard=1, dp_replicate=4, zero=0), old, other)
    check_empty(dataclasses.replace(config, dp_shard=2, dp_replicate=1), old, other)  # edp 1
