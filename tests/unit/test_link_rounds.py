"""Rounds of disjoint pairs: every pair once, nobody twice at a time."""

from hypothesis import given
from hypothesis import strategies as st

from profiler.link_rounds import (
    ALL_PAIRS_HOSTS,
    SAMPLED_ROUNDS,
    circle_rounds,
    rounds_of,
    sampled_rounds,
    serial,
)


def check_disjoint(rounds):
    for pairs in rounds:
        hosts = [host for pair in pairs for host in pair]
        assert len(hosts) == len(set(hosts))


@given(st.integers(2, 70))
def test_all_pairs_once_in_the_fewest_rounds(n):
    rounds = circle_rounds(n)
    assert len(rounds) == n - 1 + n % 2
    check_disjoint(rounds)
    pairs = [pair for r in rounds for pair in r]
    assert sorted(pairs) == [(i, j) for i in range(n) for j in range(i + 1, n)]
    assert serial(rounds) == tuple((pair,) for pair in pairs)


@given(st.integers(65, 300), st.integers(0, 9), st.sampled_from([None, 8, 40]))
def test_sampled_rounds_are_disjoint_repeat_nothing_and_reach_every_host(n, seed, leaf):
    leaves = None if leaf is None else [host // leaf for host in range(n)]
    rounds = sampled_rounds(n, SAMPLED_ROUNDS, seed, leaves)
    check_disjoint(rounds)
    pairs = [pair for r in rounds for pair in r]
    assert len(pairs) == len(set(pairs))
    assert {host for pair in pairs for host in pair} == set(range(n))
    assert rounds == sampled_rounds(n, SAMPLED_ROUNDS, seed, leaves)


def test_half_of_the_sampled_rounds_stay_under_a_leaf():
    leaves = [host // 32 for host in range(1024)]
    rounds = sampled_rounds(1024, 8, 0, leaves)
    assert all(leaves[i] == leaves[j] for i, j in rounds[0])
    assert len(rounds[0]) == 512
    assert sum(leaves[i] == leaves[j] for i, j in rounds[1]) < 64


def test_beyond_some_hosts_pairs_are_sampled():
    assert len(rounds_of(ALL_PAIRS_HOSTS, 0)) == ALL_PAIRS_HOSTS - 1
    assert len(rounds_of(ALL_PAIRS_HOSTS + 2, 0)) == SAMPLED_ROUNDS
