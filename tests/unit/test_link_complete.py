"""Matrices completed from some pairs of made clusters, whose every rate is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.link_complete import complete, fit, held_out, infer_tiers
from tests.unit.made_pairs import FAR_RATE, NEAR_RATE, made_cluster, sampled


@pytest.mark.parametrize("num_hosts", [128, 256, 1024])
@pytest.mark.parametrize("fabric", [True, False])
def test_unmeasured_pairs_are_predicted_within_the_noise(num_hosts, fabric):
    rates, tiers = made_cluster(num_hosts, 16, 1, {3: 4e9, 77: 4e9})
    seen = sampled(rates, tiers if fabric else None)
    given = tiers if fabric else None
    full, latency, error = complete(seen, np.where(np.isfinite(seen), 2e-6, np.nan), given)
    unseen = ~np.isfinite(seen) & ~np.eye(num_hosts, dtype=bool)
    off = np.abs(full[unseen] / rates[unseen] - 1)
    assert np.median(off) < 0.03
    assert np.quantile(off, 0.9) < 0.08
    assert error.median == pytest.approx(np.median(off), rel=0.5)
    assert error.pairs > 100
    assert np.array_equal(full[np.isfinite(seen)], seen[np.isfinite(seen)])
    assert np.allclose(latency[unseen], 2e-6)


@given(seed=st.integers(0, 99), slow=st.sets(st.integers(0, 127), max_size=4))
@settings(max_examples=15, deadline=None)
def test_tiers_and_slow_hosts_are_recovered(seed, slow):
    rates, tiers = made_cluster(128, 16, seed, dict.fromkeys(slow, 4e9))
    model = fit(sampled(rates, tiers), tiers)
    assert model.tier_rate == pytest.approx([NEAR_RATE, FAR_RATE], rel=0.03)
    assert set(np.flatnonzero(model.out_rate < 0.7 * FAR_RATE)) == slow
    assert np.allclose(model.out_rate[sorted(slow)], 4e9, rtol=0.1)
    assert (model.in_rate > 0.7 * FAR_RATE).all()


@given(st.integers(0, 99), st.sampled_from([2, 4, 8]))
@settings(max_examples=20, deadline=None)
def test_islands_are_told_by_their_values(seed, leaf):
    rates, tiers = made_cluster(16, leaf, seed)
    assert np.array_equal(infer_tiers(rates), np.where(np.eye(16, dtype=bool), 0, tiers))


def test_nothing_missing_is_nothing_changed():
    rates, _ = made_cluster(8, 4, 0)
    full, latency, error = complete(rates, np.zeros((8, 8)))
    assert full is rates
    assert not latency.any()
    assert error is None


def test_three_levels_of_switches():
    place = np.arange(24)
    apart = (place[:, None] // 4 != place // 4).astype(int) + (place[:, None] // 12 != place // 12)
    rates = np.array([8e9, 4e9, 1e9])[apart]
    np.fill_diagonal(rates, np.nan)
    assert np.array_equal(infer_tiers(rates), apart)


def test_too_few_pairs_have_no_error():
    rates = np.full((3, 3), np.nan)
    rates[0, 1] = rates[1, 0] = 1e9
    full, _, error = complete(rates, np.full((3, 3), np.nan))
    assert error is None
    assert held_out(rates) is None
    assert np.isfinite(full[~np.eye(3, dtype=bool)]).all()
