"""Bytes of state are neither lost nor made up, and are those of every element counted by hand."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.config import ExpertSlots
from planner.holdings import Holdings
from planner.moves import BUFFER_BYTES, STATE_BYTES, Moves, moves_of
from planner.where import nodes_of_devices
from profiler.catalog import load_model
from profiler.catalog.load import names
from profiler.codec import replace
from profiler.model_support import runs_on_reference
from profiler.tensors import Tensor, tensors_of

from . import facts
from .layouts import MODELS, holdings, layouts

DENSE, MOE = MODELS[1], MODELS[2]
SOME = settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip


def same(num: int) -> dict[int, int]:
    """All of so many devices are still where they were."""
    return {device: device for device in range(num)}


def cells(held: Holdings, tensor: Tensor, num_devices: int) -> np.ndarray:
    """[device, *shape]: whether a device holds an element."""
    found = np.zeros((num_devices, *tensor.shape), dtype=bool)
    for box, devices in held.of(tensor).items():
        at = tuple(slice(start, stop) for start, stop in box)
        for device in devices:
            assert not found[(device, *at)].any(), "a device has two boxes that overlap"
            found[(device, *at)] = True
    return found


def by_hand(model, old, new, now, cluster) -> dict[int, list[int]]:
    """Device -> bytes held, fetched, lost, element by element."""
    total = cluster.num_devices
    counts = {device: [0, 0, 0] for device in new.devices}
    for tensor in tensors_of(model)[0]:
        each = BUFFER_BYTES if tensor.is_buffer else STATE_BYTES
        most = max(*old.devices, *new.devices, total) + 1
        before, after = (cells(held, tensor, most) for held in (old, new))
        assert before.any(axis=0).all()
        assert after.any(axis=0).all()
        left = np.zeros_like(before)
        for device, number in now.items():
            left[number] = before[device]
        anywhere = left.any(axis=0)
        for device, count in counts.items():
            need, have = after[device], left[device]
            for i, mask in enumerate((need & have, need & ~have & anywhere, need & ~anywhere)):
                count[i] += each * int(mask.sum())
    return counts


@pytest.mark.parametrize("model", MODELS, ids=("tied", "biases", "experts"))
def test_all_bytes_are_those_counted_element_by_element(model):
    small = replace(model, vocab_size=64, hidden_size=16, ffn_hidden_size=24, num_layers=3)

    @SOME
    @given(data=st.data())
    def check(data):
        old, new = (Holdings(small, *data.draw(layouts(small))) for _ in range(2))
        cluster = facts.cluster(num_nodes=6, per_node=2)
        places = data.draw(st.permutations(range(12)))
        now = dict(enumerate(places[: data.draw(st.integers(0, 12))]))
        moves = moves_of(small, old, new, now, cluster)
        expected = by_hand(small, old, new, now, cluster)
        found = {
            device: [rank.held_bytes, rank.fetched_bytes, rank.lost_bytes]
            for device, rank in zip(new.devices, moves.ranks, strict=True)
        }
        assert found == expected
        check_sums(moves, nodes_of_devices(cluster), new.devices)

    check()


def check_sums(moves: Moves, node_of, devices) -> None:
    """Totals are those of ranks and of flows."""
    assert moves.need_bytes == (
        moves.held_bytes + moves.fetched_bytes + moves.from_checkpoint_bytes
    )
    assert moves.fetched_bytes == sum(flow.num_bytes for flow in moves.flows)
    for node in {rank.node for rank in moves.ranks}:
        into = sum(flow.num_bytes for flow in moves.flows if flow.target == node)
        assert into == sum(r.fetched_bytes for r in moves.ranks if r.node == node)
    assert [rank.node for rank in moves.ranks] == [node_of[device] for device in devices]
    assert sum(moves.need_of_nodes().values()) == moves.need_bytes
    assert moves.from_checkpoint_bytes >= moves.lost_bytes


@pytest.mark.parametrize("model", MODELS, ids=("tied", "biases", "experts"))
def test_an_equal_layout_moves_nothing(model):
    held = holdings(model, tp=2, pp=2, dp_replicate=2)
    moves = moves_of(model, held, held, same(8), facts.cluster(2, 4))
    assert moves.held_bytes == moves.need_bytes
    assert moves.flows == ()
    buffers = sum(t.num_elements for t in tensors_of(model)[0] if t.is_buffer)
    assert moves.state_bytes == STATE_BYTES * model.num_params + BUFFER_BYTES * buffers


def test_replicas_that_are_left_have_all():
    old, new = holdings(DENSE, dp_replicate=4), holdings(DENSE, dp_replicate=3)
    moves = moves_of(DENSE, old, new, {0: 0, 1: 1, 3: 2}, facts.cluster(3, 1))
    assert moves.need_bytes == moves.held_bytes == 3 * moves.state_bytes
    assert (moves.lost_bytes, moves.flows) == (0, ())


def test_a_stage_that_is_lost_is_in_the_checkpoint_alone():
    old, new = holdings(DENSE, pp=4), holdings(DENSE, dp_replicate=3)
    moves = moves_of(DENSE, old, new, {0: 0, 1: 1, 3: 2}, facts.cluster(3, 1))
    stage = [t for t in tensors_of(DENSE)[0] if t.block in (4, 5)]  # of 8 blocks
    assert moves.lost_bytes == STATE_BYTES * sum(t.num_elements for t in stage)
    assert moves.from_checkpoint_bytes == 3 * moves.lost_bytes
    assert moves.fetched_bytes == 2 * (moves.state_bytes - moves.lost_bytes)


def test_a_new_device_fetches_from_its_own_node_first():
    """Devices 0 and 2, on two nodes, hold all; 1 and 3 come beside them."""
    old, new = holdings(DENSE, dp_replicate=2), holdings(DENSE, dp_replicate=4)
    moves = moves_of(DENSE, old, new, {0: 0, 1: 2}, facts.cluster(2, 2))
    assert [(f.source, f.target) for f in moves.flows] == [(0, 0), (1, 1)]
    assert moves.wire_of_nodes() == {}


def test_holders_elsewhere_take_turns():
    old, new = holdings(DENSE, dp_replicate=2), holdings(DENSE, dp_replicate=4)
    moves = moves_of(DENSE, old, new, {0: 0, 1: 1}, facts.cluster(4, 1))
    assert {(f.source, f.target) for f in moves.flows} == {(0, 2), (1, 3)}
    assert set(moves.wire_of_nodes().values()) == {moves.state_bytes}


def test_experts_move_with_their_slots():
    """Two ranks of ep swap their halves of the experts; all else stays."""
    swapped = holdings(
        MOE, {"experts": (ExpertSlots(slots=((2, 3), (0, 1))),) * 2}, dp_replicate=2, ep=2
    )
    old = holdings(MOE, dp_replicate=2, ep=2)
    moves = moves_of(MOE, old, swapped, same(2), facts.cluster(1, 2))
    experts = [t for t in tensors_of(MOE)[0] if t.expert is not None]
    assert moves.fetched_bytes == STATE_BYTES * sum(t.num_elements for t in experts)


@pytest.mark.parametrize("name", names("model"))
def test_tensors_of_every_model_add_up_to_its_parameters(name):
    model = load_model(name)
    tensors, exact = tensors_of(model)
    assert len({t.name for t in tensors}) == len(tensors)
    assert sum(t.num_elements for t in tensors if not t.is_buffer) == model.num_params
    assert exact or runs_on_reference(model) is not None
