"""Consecutive items to runs: the fast solver against the dynamic programme and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import balance as module
from solvers.balance import balance
from solvers.partition import Cap, partition
from tests.unit.test_partition import all_splits

EQUAL = st.integers(1, 40).map(lambda n: [0.3] * n)
KINDS = st.lists(st.sampled_from([0.0, 1.0, 1.7]), min_size=1, max_size=40)
WIDE = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40)
LAYERS = st.tuples(st.integers(0, 38), st.floats(0, 60)).map(
    lambda pair: [0.0, *[1.1] * pair[0], pair[1]]
)
"""An embedding that costs nothing, layers, and a head."""
COSTS = st.one_of(EQUAL, KINDS, WIDE, LAYERS)


def needed(costs, limit):
    """Runs that items need where none may have more than `limit`."""
    num, held = 1, 0.0
    for cost in costs:
        num, held = (num, held + cost) if held + cost <= limit else (num + 1, cost)
    return num


def sums(costs, runs):
    return [sum(costs[a:b]) for a, b in runs]


@settings(max_examples=250, deadline=None)
@given(COSTS, st.data())
def test_largest_sum_equals_the_dynamic_programme(costs, data):
    num_runs = data.draw(st.integers(1, len(costs)))
    runs = balance(costs, num_runs)
    assert [a for a, _ in runs] == [0, *(b for _, b in runs[:-1])]
    assert (runs[-1][1], len(runs)) == (len(costs), num_runs)
    assert all(b > a for a, b in runs)
    best = partition(np.array(costs), num_runs).objective
    assert max(sums(costs, runs)) == pytest.approx(best, rel=1e-9, abs=0)
    assert balance(tuple(costs), num_runs) == runs


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_at_most_so_many_items_equals_brute_force(costs, data):
    num_runs = data.draw(st.integers(1, 4))
    most = data.draw(st.lists(st.integers(0, 10), min_size=num_runs, max_size=num_runs))
    fitting = [
        split
        for split in (all_splits(len(costs), num_runs) if num_runs <= len(costs) else ())
        if all(b - a <= n for (a, b), n in zip(split, most, strict=True))
    ]
    runs = balance([float(c) for c in costs], num_runs, most)
    if not fitting:
        assert runs is None
        return
    assert runs in fitting
    best = min(max(sums(costs, split)) for split in fitting)
    assert max(sums(costs, runs)) == pytest.approx(best)


@settings(max_examples=50, deadline=None)
@given(WIDE, st.data())
def test_caps_equal_the_dynamic_programme(costs, data):
    num_runs = data.draw(st.integers(1, min(8, len(costs))))
    most = data.draw(st.lists(st.integers(1, 40), min_size=num_runs, max_size=num_runs))
    ones = np.ones(len(costs))
    cap = Cap(fixed=ones, held=0 * ones, in_flight=[0] * num_runs, room=np.array(most, dtype=float))
    best = partition(np.array(costs), num_runs, [cap])
    runs = balance(costs, num_runs, most)
    assert (runs is None) == (best.value is None)
    if runs is not None:
        assert max(sums(costs, runs)) == pytest.approx(best.objective, rel=1e-9, abs=0)
        assert all(b - a <= n for (a, b), n in zip(runs, most, strict=True))


def test_what_is_over_goes_to_the_first_runs():
    assert balance([0.0, *[1.0] * 7], 3) == ((0, 2), (2, 5), (5, 8))
    assert balance([0.0, *[1.0] * 7, 0.5], 4) == ((0, 3), (3, 5), (5, 7), (7, 9))
    assert balance([0.0, *[1.0] * 4, 9.0], 4) == ((0, 1), (1, 2), (2, 5), (5, 6))


def test_fewer_items_than_runs():
    assert balance([1.0, 2.0], 3) is None
    assert balance([], 1) is None


@pytest.mark.parametrize("num_runs", [1, 7, 100, 999, 1000])
def test_thousand_items_take_few_passes(monkeypatch, num_runs):
    """Each pass is linear in the runs; their number does not grow with the items."""
    passes = []
    packed = module._packed
    monkeypatch.setattr(module, "_packed", lambda *a: passes.append(1) or packed(*a))
    pick = np.random.default_rng(0)
    mixed = [0.0, *pick.choice([1.0, 1.3], 998).tolist(), 4.2]
    runs = balance(mixed, num_runs)
    largest = max(sums(mixed, runs))
    assert needed(mixed, largest * (1 + 1e-9)) <= num_runs
    assert largest == max(mixed) or needed(mixed, largest * (1 - 1e-9)) > num_runs
    assert len(passes) <= 16
    passes.clear()
    balance(pick.uniform(1e-9, 1e9, 1000).tolist(), num_runs)
    assert len(passes) <= 50
