"""From measured pairs and streams to the matrices of a links file."""

from itertools import permutations

import numpy as np
import pytest

from profiler.codec import canonical
from profiler.errors import UserError
from profiler.link_assemble import assemble, fabric_tiers, of_each_nic, predicted_s
from profiler.link_files import fabric_from_text, links_document, links_from_text
from profiler.link_files.table import LOWEST
from profiler.link_profile import (
    FlowPath,
    FlowTime,
    GroupTime,
    HostWork,
    PairTime,
    TaskResult,
)
from tests.unit.made_pairs import made_cluster, pair_times, sampled

HOSTS = ("a", "b", "c")


def full(rate):
    return np.where(np.eye(3, dtype=bool), np.nan, rate)


def flow(kind, host, together, alone, nics=("eth0", "eth0")):
    others = [h for h in HOSTS if h != host]
    paths = tuple(
        FlowPath(source=host, target=t, nic=nic) for t, nic in zip(others, nics, strict=True)
    )
    return FlowTime(kind=kind, host=host, paths=paths, alone=alone, together=together)


def test_two_nics_add_up_as_far_as_they_do_not_share():
    pairs = (*pair_times(HOSTS, full(1e9)), *pair_times(HOSTS, full(3e9), nic="eth1"))
    nics = ("eth0", "eth1")
    shared = flow("nics", "a", (0.5e9, 1.5e9), (1e9, 3e9), nics)
    links, report = assemble(
        HOSTS, nics, [TaskResult(pairs=pairs, flows=(shared,))], (), (), "gloo"
    )
    assert links.bytes_per_s[0, 1] == pytest.approx(2e9)
    assert links.bytes_per_s[1, 0] == pytest.approx(4e9)
    assert [f.kind for f in report.findings] == ["shared_nics"]
    assert report.held_out is None


def test_what_a_host_sends_at_once_is_never_less_than_its_best_link():
    flows = (
        flow("out", "a", (0.8e9, 0.9e9), (1e9, 1e9)),
        flow("out", "b", (0.4e9, 0.4e9), (1e9,) * 2),
    )
    result = TaskResult(pairs=pair_times(HOSTS, full(1e9)), flows=flows)
    links, _ = assemble(HOSTS, ("eth0",), [result], (), (), "gloo")
    assert links.out_rate.tolist() == pytest.approx([1.7e9, 1e9, 1e9])
    assert links.in_rate is None


def test_a_lost_host_is_left_out_and_a_cut_pair_gets_the_lowest_rate():
    rates = full(1e9)
    rates[0, 1] = rates[1, 0] = np.nan
    result = TaskResult(
        pairs=(*pair_times(HOSTS, rates), *pair_times(("a", "gone"), full(1e9)[:2, :2]))
    )
    links, report = assemble(HOSTS, ("eth0",), [result], [("a", "b")], ("gone",), "gloo")
    assert links.hosts == HOSTS
    assert links.bytes_per_s[0, 1] == links.bytes_per_s[1, 0] == LOWEST
    assert [(f.kind, f.host) for f in report.findings] == [
        ("lost_host", "gone"),
        ("failed_link", "a"),
    ]
    assert report.held_out is None


def test_nothing_measured_is_an_error():
    with pytest.raises(UserError, match="no link was measured") as e:
        assemble(HOSTS, ("eth0",), [TaskResult(error="it took too long")], (), (), "gloo")
    assert e.value.kind == "failed"


def test_a_sample_of_a_large_cluster_with_its_fabric():
    hosts = [f"n{k:03}" for k in range(96)]
    rates, tiers = made_cluster(96, 16, 0, {5: 4e9})
    leaves = [f"SwitchName=leaf{k} Nodes=n[{16 * k:03}-{16 * k + 15:03}]" for k in range(6)]
    text = "\n".join([*leaves, "SwitchName=spine Switches=leaf[0-5]"])
    fabric = fabric_from_text(text, "topology.conf")
    assert np.array_equal(fabric_tiers(fabric, hosts), np.where(np.eye(96, dtype=bool), 0, tiers))
    seen = TaskResult(pairs=pair_times(hosts, sampled(rates, tiers)))
    links, report = assemble(hosts, ("eth0",), [seen], (), (), "gloo", fabric)
    off = np.abs(links.bytes_per_s / rates - 1)[~np.eye(96, dtype=bool)]
    assert np.quantile(off, 0.9) < 0.1
    assert report.held_out.p90 < 0.1
    assert [(f.kind, f.host, f.direction) for f in report.findings] == [("slow_nic", "n005", "out")]


def test_collectives_are_predicted_from_the_slowest_neighbours():
    rates = full(1e9)
    rates[1, 2] = 1e8
    links, _ = assemble(
        HOSTS, ("eth0",), [TaskResult(pairs=pair_times(HOSTS, rates))], (), (), "gloo"
    )

    def group(op):
        return GroupTime(hosts=HOSTS, op=op, num_bytes=3 * 10**6, seconds=1.0, spread_s=0.0)

    step = 5e-5 + 1e6 / 1e8
    assert predicted_s(group("all_gather"), links) == pytest.approx(2 * step)
    assert predicted_s(group("all_reduce"), links) == pytest.approx(4 * step)
    assert predicted_s(group("all_to_all"), links) == pytest.approx(step + 5e-5 + 1e-3)


def test_each_nic_alone_as_a_process_sees_it():
    hosts = ("a", "b", "c")
    pairs = tuple(
        PairTime(source=x, target=y, nic=nic, points=(), latency_s=late, bytes_per_s=rate, spread=0)
        for nic, rate, late in (("eth0", 1e8, 1e-4), ("eth1", 3e8, 2e-4))
        for x, y in permutations(hosts, 2)
    )
    links, report = assemble(hosts, ("eth0", "eth1"), [TaskResult(pairs=pairs)], (), (), "gloo")
    assert links.bytes_per_s[0, 1] == pytest.approx(4e8)
    alone = of_each_nic(links, report)
    assert [float(alone[nic].bytes_per_s[0, 1]) for nic in alone] == pytest.approx([1e8, 3e8])
    assert [float(alone[nic].latency_s[2, 1]) for nic in alone] == pytest.approx([1e-4, 2e-4])
    one, only = assemble(hosts, ("eth1",), [TaskResult(pairs=pairs)], (), (), "gloo")
    assert of_each_nic(one, only) == {"eth1": one}


def test_hosts_that_compute_slowly_reach_the_file():
    hosts = ("a", "b", "c")
    pairs = tuple(
        PairTime(source=x, target=y, nic="", points=(), latency_s=1e-4, bytes_per_s=1e8, spread=0)
        for x, y in permutations(hosts, 2)
    )
    works = tuple(
        HostWork(host=h, flops_per_s=r, spread=0.0) for h, r in (("a", 2e9), ("b", 2e9), ("c", 1e9))
    )
    results = [TaskResult(pairs=pairs), TaskResult(works=works)]
    links, report = assemble(hosts, ("",), results, (), (), "gloo")
    assert links.slowdown.tolist() == [1.0, 1.0, 2.0]
    assert [(f.kind, f.host) for f in report.findings] == [("slow_host", "c")]
    text = canonical(links_document(links, report))
    assert links_from_text(text, "links.json").slowdown.tolist() == [1.0, 1.0, 2.0]
