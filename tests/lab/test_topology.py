"""Topologies are read strictly, and say what a direction of a link does."""

import pytest

from profiler.codec import decode, replace
from profiler.errors import UserError
from tests.lab import network, quota
from tests.lab.lab import Lab
from tests.lab.topology import SHIPPED, Nic, Pair, Topology, read

TEXT = """\
name: pair
hosts:
  - {name: a, nics: [{name: eth0, mbit_per_s: 100}]}
  - {name: b, nics: [{name: eth0, mbit_per_s: 50, receive_mbit_per_s: 20}]}
pairs:
  - {source: a, target: b, mbit_per_s: 10, delay_ms: 2}
"""


def topology(text=TEXT):
    return decode(Topology, text, "t.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("source: a", "sauce: a", "t.yaml:6: unknown key `sauce`", "did you mean `source`?"),
        ("source: a", "source: c", "t.yaml: no host `c`", "hosts: a, b"),
        ("source: a", "source: b", "t.yaml: pair `b` to itself", "a pair is two hosts"),
        ("target: b,", "target: b, nic: eth1,",
         "t.yaml: host `a` has no NIC `eth1`", "it has eth0"),
        ("name: b", "name: a", "t.yaml: host `a` is listed twice", None),
        ("name: b", "name: ctl",
         "t.yaml: `ctl` is the controller's name", "give the host another name"),
        ("mbit_per_s: 10,", "mbit_per_s: -10,",
         "t.yaml:6: `pairs.0.mbit_per_s`: input should be greater than or equal to 1, not `-10`",
         None),
        ("delay_ms: 2", "delay_ms: -2",
         "t.yaml:6: `pairs.0.delay_ms`: input should be greater than or equal to 0, not `-2`",
         None),
        ("nics: [{name: eth0, mbit_per_s: 100}]", "nics: []",
         "t.yaml:3: `hosts.0.nics`: tuple should have at least 1 item after validation, not 0",
         None),
        ("name: pair", "name: pair\ncpu_share: 2",
         "t.yaml:2: `cpu_share`: input should be less than or equal to 1, not `2`", None),
    ],
)  # fmt: skip
def test_a_fault_names_its_place(old, new, message, hint):
    with pytest.raises(UserError) as caught:
        topology(TEXT.replace(old, new, 1))
    assert (str(caught.value), caught.value.hint) == (message, hint)


def test_directions_have_rates_of_their_own():
    t = topology()
    assert (t.mbit("a", "b", "eth0"), t.mbit("b", "a", "eth0")) == (10, 50)
    assert (t.delay("a", "b", "eth0"), t.delay("b", "a", "eth0")) == (2, 0)
    assert t.host("b").nics[0].port_mbit_per_s == 20
    later = t.with_pair(Pair(source="b", target="a", mbit_per_s=30, both_ways=True))
    assert (later.mbit("a", "b", "eth0"), later.mbit("b", "a", "eth0")) == (30, 30)
    assert later.delay("a", "b", "eth0") == 2
    slower = later.with_nic("a", Nic(name="eth0", mbit_per_s=5))
    assert (slower.mbit("a", "b", "eth0"), slower.mbit("b", "a", "eth0")) == (5, 30)
    assert replace(t, mbit_per_s=40).mbit("b", "a", "eth0") == 40


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_topologies(path):
    t = read(path)
    assert t.name == path.stem
    assert len(t.placed()) == 8
    assert max(nic.mbit_per_s for _, nic in network.cables(t)) <= 2000
    addresses = [t.address(h.name, nic.name) for h, nic in network.cables(t)]
    assert len(set(addresses)) == len(addresses)


def test_ranks_follow_the_order_of_hosts():
    t = topology()
    assert t.placed() == ("a", "a", "b", "b")
    assert t.placed(("b", "a")) == ("b", "b", "a", "a")


def test_more_cpu_time_than_there_is():
    with pytest.raises(UserError, match="but there are") as caught:
        Lab(replace(topology(), cpu_share=1.0, hosts=tuple(
            replace(h, ranks=1000) for h in topology().hosts)))  # fmt: skip
    assert caught.value.hint == "lower `cpu_share`"


def test_what_a_class_is_sure_of_is_less_than_the_nic_sends():
    t = topology()
    lines = network.class_rates(t, t.hosts[0], t.hosts[0].nics[0])
    sure = [
        int(line.split(" rate ")[1].split("kbit")[0]) for line in lines if "parent 1:1 " in line
    ]
    assert sum(sure) <= 100_000


def test_quotas_in_both_versions_of_control_groups(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    (two / "cgroup.controllers").write_text("cpuset cpu io\n")
    found = quota.find(f"cgroup {one} cgroup rw,cpu,cpuacct 0 0\ncgroup2 {two} cgroup2 rw 0 0\n")
    assert found == quota.Controller(one, 1)
    quotas = quota.Quotas.make(found, "lab")
    quotas.add_host("a", 2, 0.2)
    assert (one / "lab/a/rank1/cpu.cfs_quota_us").read_text() == "2000"
    assert (one / "lab/a/rank1/cpu.cfs_period_us").read_text() == "10000"
    assert (one / "lab/a/any/cpu.cfs_quota_us").read_text() == "4000"
    found = quota.find(f"cgroup2 {two} cgroup2 rw 0 0\n")
    assert found == quota.Controller(two, 2)
    quotas = quota.Quotas.make(found, "lab")
    quotas.add_host("a", 1, 0.05)
    assert (two / "lab/a/rank0/cpu.max").read_text() == "1000 20000"
    assert (two / "lab/a/cgroup.subtree_control").read_text() == "+cpu"
    with pytest.raises(UserError, match="no control group"):
        quota.find("tmpfs /run tmpfs rw 0 0\n")
