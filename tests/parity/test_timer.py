"""Times of processes that are held to a share of a core."""

import pytest

from profiler.measure.timer import summarise, sustained

pytestmark = pytest.mark.distributed  # imports torch


def test_windows_keep_the_waiting_of_a_quota():
    """A piece of 1 ms, 2 ms of every 10: two are fast, the next waits for the rest."""
    assert sustained([0.001, 0.009] * 60).median_s == pytest.approx(0.005, rel=0.1)
    rare = ([0.001] * 4 + [0.041]) * 40
    assert summarise(rare).median_s == 0.001
    assert sustained(rare).median_s == pytest.approx(0.009, rel=0.15)
    assert sustained(rare).repeats == len(rare)


def test_what_happens_once_moves_nothing():
    samples = [0.01] * 99 + [2.0]
    assert sustained(samples).median_s == pytest.approx(0.01)
    assert sustained(samples).spread_s == pytest.approx(0.0, abs=1e-9)


def test_few_repetitions_are_windows_of_their_own():
    samples = [0.2, 0.3, 0.4]
    assert sustained(samples).median_s == pytest.approx(0.3)
