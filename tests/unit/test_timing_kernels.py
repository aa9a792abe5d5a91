"""Collectives and kernels of the time model against closed forms."""

import dataclasses

import pytest

from planner.timing.kernels import attention_s, matrix_s, stream_s
from planner.timing.network import collective_s, exchange_s, message_s
from planner.timing.quantities import Software
from profiler import model_counts as counts
from profiler.catalog.load import load_model
from tests.unit.timing import FITTED, H100, IDEAL, SEQ, exact, shape

# Collectives


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ring_all_reduce_moves_twice_n_minus_1_of_n(ranks):
    took = collective_s(IDEAL, exact(), 1e9, ranks, 1, reduces=True)
    assert took == pytest.approx(2 * (ranks - 1) / ranks * 1e9 / 400e9)
    assert collective_s(IDEAL, exact(), 1e9, ranks, 1) == pytest.approx(took / 2)


def test_steps_of_rings():
    c = exact(inner_step_s=1e-6, collective_base_s=1e-5, network_step_s=1e-4, tree_depth=1e9)
    assert collective_s(IDEAL, c, 0.0, 8, 1) == pytest.approx(1e-5 + 7e-6)
    assert collective_s(IDEAL, c, 0.0, 4, 8) == pytest.approx(3e-4)
    trees = dataclasses.replace(c, tree_depth=1.0)
    assert collective_s(IDEAL, trees, 0.0, 1024, 8) == pytest.approx(8 * 10 * 1e-4)


def test_groups_that_leave_the_node_share_its_nics():
    c = exact()
    # One rank per node: one NIC. Four ranks per node: four, eight: the fast link's 400 GB/s.
    for stride, rate in ((8, 50e9), (2, 200e9), (1, 400e9)):
        assert collective_s(IDEAL, c, 1e9, 16, stride) == pytest.approx(15 / 16 * 1e9 / rate)


@pytest.mark.parametrize("ranks", [16, 64, 256])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_hierarchical_all_reduce_is_never_slower_than_the_ring(ranks, stride):
    ring = 2 * collective_s(H100, FITTED, 1e9, ranks, stride)
    found = collective_s(H100, FITTED, 1e9, ranks, stride, reduces=True)
    assert found <= ring * (1 + 1e-12)
    near = max(1, 8 // stride)
    if near > 1:
        inner = H100.inner_rate * FITTED.inner_efficiency
        nic = H100.nic_rate * FITTED.network_efficiency
        least = (near - 1) / near * 1e9 / inner + (1 - near / ranks) * 1e9 / (near * nic)
        assert found >= min(2 * least, ring) * (1 - 1e-12)


def test_nothing_moves_in_a_group_of_one():
    for reduces in (False, True):
        assert collective_s(H100, FITTED, 1e9, 1, 1, reduces=reduces) == 0
    assert exchange_s(H100, FITTED, 1e9, 1) == 0


def test_exchange_sends_all_but_ones_own():
    assert exchange_s(IDEAL, exact(), 8e9, 8) == pytest.approx(7e9 / 400e9)
    assert exchange_s(IDEAL, exact(), 16e9, 16) == pytest.approx(8e9 / 50e9)


def test_messages_inside_and_between_nodes():
    c = exact(network_step_s=1e-5, inner_step_s=1e-6)
    assert message_s(IDEAL, c, 1e9, 4) == pytest.approx(1e9 / 400e9 + 1e-6)
    assert message_s(IDEAL, c, 1e9, 8) == pytest.approx(1e9 / 50e9 + 1e-5)


# Kernels


def test_matrix_products():
    assert matrix_s(IDEAL, exact(), 100, 200, 300) == pytest.approx(2 * 100 * 200 * 300 / 1e15)
    assert matrix_s(IDEAL, exact(matrix_depth=300), 100, 200, 300) == pytest.approx(2.4e-8)
    assert matrix_s(IDEAL, exact(), 0, 200, 300) == 0
    low = dataclasses.replace(IDEAL, low=1.0)
    assert matrix_s(low, exact(), 100, 200, 300) == pytest.approx(6e-9)
    assert matrix_s(low, exact(), 100, 200, 300, low=False) == pytest.approx(1.2e-8)
    slow = dataclasses.replace(IDEAL, memory_rate=1e9)
    moved = 2 * (100 * 300 + 200 * 300 + 100 * 200)
    assert matrix_s(slow, exact(), 100, 200, 300) == pytest.approx(moved / 0.8e9)


def test_streams():
    assert stream_s(H100, FITTED, 1e9) == pytest.approx(
        1e9 / (H100.memory_rate * FITTED.memory_efficiency)
    )


@pytest.mark.parametrize("name", ["llama3-8b", "deepseek-v3", "gpt-oss-120b"])
def test_attention_computes_scores_and_values(name):
    s, spec = shape(name), load_model(name)
    heads = spec.num_heads
    forward, backward = attention_s(s, IDEAL, Software(), exact(), SEQ, heads)
    kinds = spec.attentions
    flops = [counts.attention_flops_per_token(spec, a, SEQ) / 3 * SEQ for a in kinds]
    assert forward == pytest.approx(sum(flops) / len(flops) / 1e15)
    assert backward == pytest.approx(2.5 * forward)


def test_attention_without_one_kernel_computes_the_whole_square():
    s = shape("gpt3-175b", 2048)
    plain = Software(flash=0.0)
    flash, _ = attention_s(s, IDEAL, Software(), exact(), 2048, 96)
    whole, back = attention_s(s, IDEAL, plain, exact(misaligned=1.0), 2048, 96)
    assert (whole, back) == (pytest.approx(2 * flash), pytest.approx(4 * flash))
    odd = dataclasses.replace(s, qk_dim=127.0)
    slow, _ = attention_s(odd, IDEAL, plain, exact(misaligned=9.0), 2048, 96)
    assert slow == pytest.approx(9 * whole * (127 + 128) / 256)
