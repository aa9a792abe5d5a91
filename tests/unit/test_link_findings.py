"""Findings name the bad part, once, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.codec import replace
from profiler.link_findings import find, lost_hosts, rate_words, slow_hosts, slowdowns
from profiler.link_profile import FlowPath, FlowTime, HostWork
from tests.unit.made_pairs import made_cluster, pair_times

HOSTS = ("host0", "host1", "host2", "host3")


def alike(mbit=1000.0):
    return np.full((4, 4), mbit * 1e6 / 8) * np.random.default_rng(0).uniform(0.9, 1, (4, 4))


def found(rates, **other):
    pairs = pair_times(HOSTS, rates, **other)
    return [(f.kind, f.host, f.peer, f.direction) for f in find(HOSTS, ("eth0",), pairs)]


def test_alike_hosts_have_no_findings():
    assert found(alike()) == []


def test_a_bad_link_is_one_finding():
    rates = alike()
    rates[1, 2] = rates[2, 1] = 5e6
    assert found(rates) == [("slow_link", "host1", "host2", "both")]
    assert found(rates, spread=0.7) == []  # known no better than that


def test_a_link_that_is_bad_one_way():
    rates = alike()
    rates[2, 1] = 5e6
    assert found(rates) == [("asymmetric_link", "host2", "host1", "out")]


@pytest.mark.parametrize("direction", ["out", "in", "both"])
def test_a_bad_nic_is_one_finding(direction):
    rates = alike()
    if direction in ("out", "both"):
        rates[2, :] /= 10
    if direction in ("in", "both"):
        rates[:, 2] = np.minimum(rates[:, 2], 12.5e6)
    assert found(rates) == [("slow_nic", "host2", "", direction)]
    first = find(HOSTS, ("eth0",), pair_times(HOSTS, rates))[0]
    assert "host2 eth0" in first.message
    assert "PCIe" in first.advice


def test_islands_and_generations_are_no_faults():
    rates = alike()
    rates[:2, 2:] /= 5
    rates[2:, :2] /= 5
    assert found(rates) == []
    rates = alike()
    rates[2:, :] /= 2
    rates[:, 2:] = np.minimum(rates[:, 2:], 62e6)
    assert found(rates) == []


def test_a_bad_link_between_islands_is_found_when_the_fabric_is_known():
    rates, tiers = made_cluster(16, 4, 0)
    rates[1, 9] = 2e9
    hosts = [f"h{k}" for k in range(16)]
    some = find(hosts, ("eth0",), pair_times(hosts, rates), tiers=tiers)
    assert [(f.kind, f.host, f.peer) for f in some] == [("asymmetric_link", "h1", "h9")]


@given(st.integers(0, 999), st.sampled_from([8, 16, 33]))
@settings(max_examples=30, deadline=None)
def test_noise_alone_is_no_finding(seed, n):
    rates, _ = made_cluster(n, 4, seed, noise=0.05)
    hosts = [f"h{k}" for k in range(n)]
    assert find(hosts, ("eth0",), pair_times(hosts, rates)) == ()


def test_latency_counts_where_both_directions_show_it():
    latency = np.full((4, 4), 1e-4)
    latency[0, 3] = 2e-3
    assert found(alike(), latency_s=latency) == []
    latency[3, 0] = 2e-3
    assert found(alike(), latency_s=latency) == [("latency", "host0", "host3", "both")]


def test_latency_of_busy_hosts_is_no_finding():
    latency = np.full((4, 4), 1e-4)
    latency[0, 3] = latency[3, 0] = 2e-3
    for median, kinds in ((2.1e-3, ["latency"]), (6e-3, [])):
        pairs = [
            replace(p, points=((4, median if p.latency_s > 1e-3 else 1e-4),))
            for p in pair_times(HOSTS, alike(), latency_s=latency)
        ]
        assert [f.kind for f in find(HOSTS, ("eth0",), pairs)] == kinds


def test_what_is_shared():
    paths = tuple(FlowPath(source="a", target="b", nic=nic) for nic in ("eth0", "eth1"))
    half = FlowTime(kind="nics", host="a", paths=paths, alone=(1e9, 1e9), together=(5e8, 5e8))
    full = FlowTime(kind="nics", host="b", paths=paths, alone=(1e9, 1e9), together=(9e8, 9e8))
    assert [(f.kind, f.host) for f in find((), (), (), (half, full))] == [("shared_nics", "a")]
    assert half.share == 0.5


def test_lost_hosts_are_named():
    gone, cut = lost_hosts(("host1",), (("host0", "host2"),))
    assert (gone.kind, gone.host) == ("lost_host", "host1")
    assert (cut.kind, cut.host, cut.peer) == ("failed_link", "host0", "host2")


def test_words_of_rates():
    assert (rate_words(36.2e6), rate_words(25e9)) == ("290 Mbit/s", "200 Gbit/s")


def works(*rates, spread=0.0):
    return tuple(
        HostWork(host=f"host{k}", flops_per_s=rate, spread=spread) for k, rate in enumerate(rates)
    )


def test_hosts_that_compute_alike_are_alike():
    hosts = ("host0", "host1", "host2")
    assert slowdowns(hosts, works(1e9, 1.04e9, 0.97e9)).tolist() == [1.0, 1.0, 1.0]
    assert slow_hosts(hosts, works(1e9, 1.04e9, 0.97e9)) == ()
    assert slowdowns(hosts, works(1e9, 1e9)) is None
    assert slow_hosts(hosts, ()) == ()


def test_a_slow_host_is_named_with_its_factor():
    hosts = ("host0", "host1", "host2")
    seen = works(1e9, 1e9, 0.5e9)
    assert slowdowns(hosts, seen).tolist() == [1.0, 1.0, 2.0]
    (finding,) = slow_hosts(hosts, seen)
    assert (finding.kind, finding.host) == ("slow_host", "host2")
    assert finding.value == pytest.approx(0.5e9)
    assert "2.00 times as long" in finding.message
    # A tenth slower is a slow-down and no fault; where parts differ as much, it is noise.
    assert slowdowns(hosts, works(1e9, 1e9, 0.9e9))[2] == pytest.approx(1 / 0.9)
    assert slowdowns(hosts, works(1e9, 1e9, 0.9e9, spread=0.05)).tolist() == [1.0, 1.0, 1.0]
