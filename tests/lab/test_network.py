"""A lab's links do what its topology says, in each direction, and while it changes."""

import statistics
import subprocess
import sys

import pytest

from profiler.errors import UserError
from tests.lab.lab import Lab
from tests.lab.measure import rate_mbit, round_trip_ms, together_mbit
from tests.lab.topology import Host, Nic, Pair, Topology, shipped

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_lab")]

PYTHON = [sys.executable, "-I", "-S", "-c"]


def near(mbit):
    """Headers take some of a rate, and a machine that is busy measures less."""
    return pytest.approx(mbit * 0.9, rel=0.18)


def card(mbit=1000.0, receive=None, name="eth0"):
    return Nic(name=name, mbit_per_s=mbit, receive_mbit_per_s=receive)


@pytest.fixture(scope="module")
def network():
    """Four hosts whose links are all unlike; rates and speeds are changed by tests."""
    topology = Topology(
        name="unlike",
        hosts=(
            Host(name="host0", nics=(card(), card(100, name="eth1"))),
            Host(name="host1", nics=(card(), card(100, name="eth1"))),
            Host(name="host2", nics=(card(receive=150),)),
            Host(name="host3", nics=(card(),)),
        ),
        pairs=(
            Pair(source="host0", target="host3", mbit_per_s=300),
            Pair(source="host3", target="host0", mbit_per_s=30),
            Pair(source="host1", target="host3", delay_ms=10, both_ways=True),
        ),
    )
    with Lab(topology) as lab:
        yield lab


def test_hosts_have_names_addresses_and_no_way_out(network):
    assert network.run("host2", ["hostname"]).stdout == "host2\n"
    assert network.run("host2", ["getent", "hosts", "host1"]).stdout.split()[0] == "10.77.0.2"
    assert network.run("host2", ["getent", "hosts", "host1-eth1"]).stdout.split()[0] == "10.77.1.2"
    assert network.run("host0", ["ls", "/sys/class/net"]).stdout.split() == ["eth0", "eth1", "lo"]
    out = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    assert "unreachable" in network.run("host0", [*PYTHON, out]).stderr
    own = network.run("host0", ["sh", "-c", "ls -d /proc/[0-9]*"]).stdout.split()
    assert len(own) < 6  # no process of another host


def test_rates_of_each_direction(network):
    assert rate_mbit(network, "host0", "host1", 1000) == near(1000)
    assert rate_mbit(network, "host0", "host3", 300) == near(300)
    assert rate_mbit(network, "host3", "host0", 30) == near(30)


def test_rails_do_not_share(network):
    assert rate_mbit(network, "host0", "host1", 100, nic="eth1") == near(100)


def test_a_nic_divides_what_it_sends(cluster):
    assert together_mbit(cluster, [("host0", "host1"), ("host0", "host3")], 500) == near(1000)


def test_a_port_limits_what_all_send_to_it(network):
    flows = [("host0", "host2"), ("host1", "host2"), ("host3", "host2")]
    assert together_mbit(network, flows, 50) == near(150)
    assert rate_mbit(network, "host2", "host0", 1000) == near(1000)


def test_delay(network):
    near_by = round_trip_ms(network, "host0", "host1")
    far = round_trip_ms(network, "host1", "host3")
    assert near_by < 5
    assert 20 <= far < 30 + near_by


def test_a_link_degrades_while_bytes_flow(network):
    listen = "import socket; s = socket.create_server(('10.77.0.1', 6000)); print('up', flush=True)"
    count = f"""{listen}
import time
c, n, begin = s.accept()[0], 0, time.perf_counter()
while b := c.recv(1 << 20):
    n += len(b)
    if (now := time.perf_counter()) > begin + 0.1:
        print(n * 8e-6 / (now - begin), flush=True)
        n, begin = 0, now
"""
    send = """import socket
c = socket.create_connection(('10.77.0.1', 6000))
while True: c.sendall(bytes(1 << 18))
"""
    pipe = {"stdout": subprocess.PIPE, "text": True}
    with network.popen("host0", [*PYTHON, count], **pipe) as receiver:
        receiver.stdout.readline()
        with network.popen("host1", [*PYTHON, send]) as sender:
            try:
                before = statistics.median(float(receiver.stdout.readline()) for _ in range(5))
                network.set_rate("host1", "host0", 50)
                after = [float(receiver.stdout.readline()) for _ in range(10)]
                network.set_rate("host1", "host0", 1000)
                healed = [float(receiver.stdout.readline()) for _ in range(10)]
            finally:
                sender.kill()
                receiver.kill()
    assert before > 500
    assert statistics.median(after[3:]) == near(50)
    assert statistics.median(healed[3:]) > 500


def test_a_nic_degrades(network):
    network.set_nic_rate("host1", "eth1", 20)
    assert rate_mbit(network, "host1", "host0", 20, nic="eth1") == near(20)
    assert rate_mbit(network, "host0", "host1", 20, nic="eth1") == near(20)  # its port too
    assert rate_mbit(network, "host1", "host0", 1000) == near(1000)


def test_two_labs_with_equal_addresses(cluster):
    with Lab(shipped("uniform")) as other:
        assert other.topology.address("host1") == cluster.topology.address("host1")
        other.set_rate("host0", "host1", 50)
        assert rate_mbit(other, "host0", "host1", 50) == near(50)
        assert rate_mbit(cluster, "host0", "host1", 1000) == near(1000)


def test_a_change_that_cannot_be_changes_nothing(network):
    before = network.topology
    for change in (
        lambda: network.set_rate("host0", "host1", -5),
        lambda: network.set_rate("host0", "nobody", 5),
        lambda: network.set_rate("host0", "host2", 5, nic="eth1"),
        lambda: network.set_nic_rate("host3", "eth1", 5),
        lambda: network.set_speed("host3", 0.5),  # there are no quotas
    ):
        with pytest.raises(UserError):
            change()
    assert network.topology == before
