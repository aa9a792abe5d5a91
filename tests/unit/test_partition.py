"""Layer split: dynamic programme against brute force."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.partition import Cap, partition


def all_splits(n, num_stages):
    for cuts in combinations(range(1, n), num_stages - 1):
        yield tuple(pairwise((0, *cuts, n)))


costs = st.lists(st.integers(0, 9), min_size=1, max_size=9)


@given(cost=costs, num_stages=st.integers(1, 5))
def test_equals_brute_force(cost, num_stages):
    result = partition(np.array(cost, dtype=float), num_stages)
    splits = list(all_splits(len(cost), num_stages)) if num_stages <= len(cost) else []
    if not splits:
        assert result.status == "INFEASIBLE"
        assert result.value is None
        return
    sums = {s: [sum(cost[a:b]) for a, b in s] for s in splits}
    best = min(max(v) for v in sums.values())
    assert result.objective == pytest.approx(best)
    evenest = min(sum(x * x for x in v) for v in sums.values() if max(v) == best)
    assert result.value in sums
    assert sum(x * x for x in sums[result.value]) == evenest


@given(
    cost=costs, num_stages=st.integers(1, 4), cap=st.integers(1, 60),
    held=st.lists(st.integers(0, 5), min_size=9, max_size=9),
)  # fmt: skip
def test_memory_caps_equal_brute_force(cost, num_stages, cap, held):
    n = len(cost)
    flights = [num_stages - s for s in range(num_stages)]
    result = partition(
        np.array(cost, dtype=float),
        num_stages,
        [
            Cap(
                fixed=np.ones(n),
                held=np.array(held[:n], dtype=float),
                in_flight=flights,
                room=np.full(num_stages, float(cap)),
            )
        ],
    )
    fitting = [
        split
        for split in (all_splits(n, num_stages) if num_stages <= n else [])
        if all(b - a + sum(held[a:b]) * f <= cap for (a, b), f in zip(split, flights, strict=True))
    ]
    if not fitting:
        assert result.status == "INFEASIBLE"
        return
    assert result.value in fitting
    assert result.objective == pytest.approx(
        min(max(sum(cost[a:b]) for a, b in split) for split in fitting)
    )
    assert result.gap == 0.0


@given(cost=costs, scale=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_unlike_stages_equal_brute_force(cost, scale):
    num_stages = len(scale)
    result = partition(np.array(cost, dtype=float), num_stages, scale=scale)
    splits = list(all_splits(len(cost), num_stages)) if num_stages <= len(cost) else []
    if not splits:
        assert result.value is None
        return
    most = {
        split: max(f * sum(cost[a:b]) for f, (a, b) in zip(scale, split, strict=True))
        for split in splits
    }
    assert result.objective == pytest.approx(min(most.values()))
    assert most[result.value] == pytest.approx(min(most.values()))
