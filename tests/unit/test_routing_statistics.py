"""Statistics of routing against closed forms, brute force and draws whose truth is known."""

import itertools
import math

import numpy as np
import pytest

from profiler.routing.pairs import joint_counts, pair_counts, quasi_independent
from profiler.routing.statistics import (
    drift_of,
    entropy_bits,
    next_layer_bits,
    statistics_of,
)
from profiler.routing.trace import RoutingCounts, RoutingTrace
from tests.unit.made_routing import drawn_ids, drawn_trace


def test_load_of_known_counts() -> None:
    counts = RoutingCounts(windows=np.array([[[6, 2, 0, 0], [2, 2, 2, 2]]]))
    skewed, even = statistics_of(counts).layers
    assert (skewed.max_over_mean, skewed.unused) == (3.0, 2)
    assert skewed.variation == pytest.approx(math.sqrt(6) / 2)
    assert skewed.entropy_bits == pytest.approx(2 - 0.75 * math.log2(3))
    assert (even.max_over_mean, even.variation, even.entropy_bits, even.unused) == (1, 0, 2, 0)
    assert skewed.drift is None
    assert (skewed.pair, skewed.pair_bits, skewed.next_bits) == (None, None, None)


@pytest.mark.parametrize(("experts", "k"), [(5, 2), (6, 3), (4, 1)])
def test_pairs_and_joint_counts_are_those_of_counting_by_hand(experts: int, k: int) -> None:
    ids = drawn_ids(200, 2, experts, k)
    ids[::5, :, 0] = -1
    pairs, joint = np.zeros((experts, experts)), np.zeros((experts, experts))
    for token in ids:
        here, there = ([int(e) for e in row if e >= 0] for row in token)
        for a, b in itertools.permutations(here, 2):
            pairs[a, b] += 1
        for a, b in itertools.product(here, there):
            joint[a, b] += 1
    assert np.array_equal(pair_counts(ids[:, 0], experts), pairs)
    assert np.array_equal(joint_counts(ids[:, 0], ids[:, 1], experts), joint)


def test_quasi_independence_has_the_sums_it_was_given() -> None:
    u = np.array([5.0, 3.0, 2.0, 1.0, 0.0, 0.5])
    made = np.outer(u, u)
    np.fill_diagonal(made, 0.0)
    assert quasi_independent(made) == pytest.approx(made, rel=1e-6)
    counts = pair_counts(drawn_ids(500, 1, 6, 3)[:, 0], 6)
    fitted = quasi_independent(counts)
    assert fitted.sum(axis=1) == pytest.approx(counts.sum(axis=1), rel=1e-6)
    assert quasi_independent(np.zeros((3, 3))).tolist() == [[0.0] * 3] * 3
    star = np.array([[0.0, 4, 4], [4, 0, 0], [4, 0, 0]])  # one expert in every pair
    assert np.isfinite(quasi_independent(star)).all()


def test_experts_that_are_drawn_alone_show_no_structure() -> None:
    """Even sets: lift near 1, and information of which the bias is taken off; without that it
    would be some standard deviations above 0."""
    found = statistics_of(drawn_trace(4000, 6, 12, 3)).layers
    for layer in found:
        assert layer.pair is not None
        assert 0.95 < layer.pair.lift < 1.3
        assert layer.pair_bits is not None
        assert abs(layer.pair_bits) < 0.003
    bits = [layer.next_bits for layer in found if layer.next_bits is not None]
    assert len(bits) == 5
    bias = (12 - 3) ** 2 / (2 * 4000 * 9 * math.log(2))
    assert abs(float(np.mean(bits))) < 0.2 * bias


@pytest.mark.parametrize(("experts", "k"), [(8, 1), (8, 2), (16, 4)])
def test_the_bias_of_information_is_what_is_taken_off(experts: int, k: int) -> None:
    """Over many small draws the corrected mean is 0 within its standard error, the plain is not."""
    corrected = np.array(
        [next_layer_bits(drawn_trace(400, 2, experts, k, seed=s), 0) for s in range(60)]
    )
    bias = (experts - k) ** 2 / (2 * 400 * k * k * math.log(2))
    error = corrected.std() / math.sqrt(len(corrected))
    assert abs(corrected.mean()) < 3.5 * error + 0.03 * bias
    assert (corrected + bias).mean() > 10 * error


def test_information_of_a_layer_that_repeats_the_one_before_it() -> None:
    first = np.random.default_rng(0).choice(4, 20_000, p=(0.5, 0.25, 0.125, 0.125))
    ids = np.stack([first, (first + 1) % 4], axis=1)[:, :, None].astype(np.int16)
    bits = next_layer_bits(RoutingTrace(ids=ids, num_experts=4), 0)
    assert bits == pytest.approx(1.75, abs=0.02)  # the entropy


def test_information_of_a_noisy_channel() -> None:
    """Of a symmetric one that errs with probability 0.1: 1 - H(0.1)."""
    draw = np.random.default_rng(1)
    first = draw.integers(0, 2, 50_000)
    second = np.where(draw.random(50_000) < 0.1, 1 - first, first)
    ids = np.stack([first, second], axis=1)[:, :, None].astype(np.int16)
    bits = next_layer_bits(RoutingTrace(ids=ids, num_experts=2), 0)
    assert bits == pytest.approx(1 - entropy_bits(np.array([0.1, 0.9])), abs=0.01)


def test_a_pair_that_belongs_together_is_found() -> None:
    ids = drawn_ids(3000, 1, 10, 2)
    ids[::3, 0] = (7, 4)
    (layer,) = statistics_of(RoutingTrace(ids=ids, num_experts=10)).layers
    assert layer.pair is not None
    assert (layer.pair.first, layer.pair.second) == (4, 7)
    assert layer.pair.lift > 1.5
    assert layer.pair.share == pytest.approx(1 / 3 + 2 / 3 / 45, rel=0.1)
    assert layer.pair_bits is not None
    assert layer.pair_bits > 0.4


@pytest.mark.parametrize(("experts", "k"), [(8, 1), (8, 2), (32, 4)])
def test_drift_without_any_is_what_sampling_makes(experts: int, k: int) -> None:
    ratios = []
    for seed in range(40):
        each = [drawn_trace(500, 1, experts, k, seed=2 * seed + i).counts() for i in (0, 1)]
        distance, noise = drift_of(np.concatenate(each), k)
        assert distance is not None
        assert noise is not None
        ratios.append(distance / noise)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.12)


def test_drift_of_loads_that_change() -> None:
    windows = np.array([[80, 20, 0], [0, 0, 0], [30, 20, 50]])
    distance, noise = drift_of(windows, 1)
    assert distance == pytest.approx(0.5)
    assert noise is not None
    assert noise < 0.1
    assert drift_of(windows[:2], 1) == (None, None)
    parts = statistics_of(RoutingCounts(windows=windows[:, None]))
    assert (parts.layers[0].drift, parts.windows) == (distance, 3)


def test_dropped_choices_count_nowhere() -> None:
    ids = drawn_ids(300, 2, 6, 2)
    ids[:, 0, 1] = -1
    found = statistics_of(RoutingTrace(ids=ids, num_experts=6))
    assert found.dropped_share == 0.25
    assert (found.layers[0].pair, found.layers[0].pair_bits) == (None, None)
    assert found.layers[0].next_bits is not None
    assert found.layers[1].pair is not None
    idle = RoutingTrace(ids=np.where([[[True], [False]]], ids, -1), num_experts=6)
    assert statistics_of(idle).layers[1].entropy_bits == 0
    assert statistics_of(idle).layers[0].next_bits == 0


def test_one_expert_that_every_token_has() -> None:
    """Its pairs are no news: nothing else could have been."""
    others = 1 + np.random.default_rng(0).integers(0, 5, 900)
    ids = np.stack([np.zeros(900), others], axis=1).astype(np.int16)[:, None]
    (layer,) = statistics_of(RoutingTrace(ids=ids, num_experts=6)).layers
    assert layer.pair is not None
    assert layer.pair.lift == pytest.approx(1.0, abs=0.02)
    assert layer.pair_bits == pytest.approx(0.0, abs=0.02)


def test_few_tokens_and_one_expert() -> None:
    one = statistics_of(RoutingTrace(ids=np.zeros((1, 2, 1), np.int16), num_experts=1))
    assert (one.most_bits, one.windows) == (0, 1)
    assert [(x.max_over_mean, x.entropy_bits, x.drift) for x in one.layers] == [(1, 0, None)] * 2
