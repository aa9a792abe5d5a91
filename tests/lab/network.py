"""The lab's network: veth cables, a bridge per rail, and shapes on both ends of each cable.

A host's NIC sends through HTB: one class per destination whose ceiling is the pair's rate, below a
class with the NIC's. The switch's port to a NIC has a TBF: what the NIC receives at most. Where a
NIC has delays, its cable passes through a relay (`relay.py`). This module writes batches for `ip`
and `tc`; who applies them is in the namespace they are for.
"""

from collections.abc import Iterator

from tests.lab import CONTROLLER
from tests.lab.topology import Host, Nic, Topology

MTU = 9000
"""Bytes; jumbo frames, as in clusters, and so that a packet costs the one machine less."""
_QUANTUM = 60_000
_SEGMENT = 18_000
"""Bytes that TCP hands to a NIC at once, at most."""
"""Bytes a class sends in its turn; at least one frame."""
_FIRST_CLASS = 0x10


def port(topology: Topology, host: str, nic: str) -> str:
    """The switch's end of a cable."""
    return f"p{topology.nic_names.index(nic)}h{topology.hosts.index(topology.host(host))}"


def relay_ends(topology: Topology, host: str, nic: str) -> tuple[str, str]:
    """Ends of the two pieces of cable between which a relay stands: host's side, switch's side."""
    name = port(topology, host, nic)
    return f"r{name}", f"s{name}"


def cables(topology: Topology) -> Iterator[tuple[Host, Nic]]:
    """All NICs of all hosts."""
    return ((host, nic) for host in topology.hosts for nic in host.nics)


def delays_ms(topology: Topology, host: str, nic: str) -> dict[str, float]:
    """Address of a destination -> delay on the way to it, where there is one."""
    return {
        topology.address(other, nic): delay
        for other in reachable(topology, host, nic)
        if (delay := topology.delay(host, other, nic))
    }


def reachable(topology: Topology, host: str, nic: str) -> list[str]:
    """Other hosts on the NIC's rail."""
    return [h.name for h in topology.hosts if h.name != host and h.nic(nic)]


def etc_hosts(topology: Topology) -> str:
    """/etc/hosts: a host is its first NIC; HOST-NIC each of them."""
    lines = ["127.0.0.1 localhost", f"{topology.address(CONTROLLER)} {CONTROLLER}"]
    for host, nic in cables(topology):
        names = [f"{host.name}-{nic.name}"] + [host.name] * (nic is host.nics[0])
        lines.append(f"{topology.address(host.name, nic.name)} {' '.join(reversed(names))}")
    return "\n".join(lines) + "\n"


def plug(topology: Topology, pids: dict[str, int]) -> list[str]:
    """`ip` in the switch: bridges, and a cable to each NIC of the hosts with these processes."""
    lines = ["link set lo up"]
    for rail, nic_name in enumerate(topology.nic_names):
        lines += [
            f"link add br{rail} mtu {MTU} type bridge forward_delay 0",
            f"addr add {topology.address(CONTROLLER, nic_name)}/24 dev br{rail}",
            f"link set br{rail} up",
        ]
    for host, nic in cables(topology):
        end = name = port(topology, host.name, nic.name)
        if delays_ms(topology, host.name, nic.name):
            end, other = relay_ends(topology, host.name, nic.name)
            lines.append(f"link add {name} mtu {MTU} type veth peer name {other} mtu {MTU}")
            lines.append(f"link set {other} arp off up")
        lines.append(
            f"link add {end} mtu {MTU} type veth peer name {nic.name} mtu {MTU} "
            f"netns {pids[host.name]}"
        )
        if end != name:
            lines.append(f"link set {end} arp off up")
        lines.append(f"link set {name} master br{topology.nic_names.index(nic.name)} up")
    return lines


def address(topology: Topology, host: Host) -> list[str]:
    """`ip` in a host. CUBIC, for BBR holds its own view of a rate that changes."""
    lines = ["link set lo up"]
    for nic in host.nics:
        own = topology.address(host.name, nic.name)
        net = own.rsplit(".", 1)[0]
        lines += [
            f"addr add {own}/24 dev {nic.name}",
            f"link set {nic.name} gso_max_size {_SEGMENT} up",
            f"route replace {net}.0/24 dev {nic.name} src {own} congctl cubic",
        ]
    return lines


def shape_host(topology: Topology, host: Host) -> list[str]:
    """`tc` in a host, once: the classes' tree, with a filter per destination."""
    lines = []
    for nic in host.nics:
        lines.append(f"qdisc replace dev {nic.name} root handle 1: htb default 2")
        lines += class_rates(topology, host, nic)
        for other in reachable(topology, host.name, nic.name):
            minor = _minor(topology, other)
            mbit = topology.mbit(host.name, other, nic.name)
            lines += [
                f"qdisc replace dev {nic.name} parent 1:{minor} handle {minor}: "
                f"bfifo limit {_queue_bytes(mbit)}",
                f"filter add dev {nic.name} parent 1: protocol ip prio 1 u32 "
                f"match ip dst {topology.address(other, nic.name)}/32 flowid 1:{minor}",
            ]
    return lines


def class_rates(topology: Topology, host: Host, nic: Nic) -> list[str]:
    """`tc` in a host, at any time: rates of a NIC's classes.

    A class is sure of an equal part of the NIC and borrows up to its own rate, for HTB lets a class
    send what it is sure of even where that is more than its parent has.
    """
    others = reachable(topology, host.name, nic.name)
    part = nic.mbit_per_s / (len(others) + 1)
    lines = [_class(nic, "", "1", nic.mbit_per_s, nic.mbit_per_s)]
    lines.append(_class(nic, "1", "2", part, nic.mbit_per_s))  # ARP, and to the controller
    for other in others:
        most = topology.mbit(host.name, other, nic.name)
        lines.append(_class(nic, "1", _minor(topology, other), min(part, most), most))
    return lines


def port_rates(topology: Topology, host: Host, nic: Nic) -> list[str]:
    """`tc` in the switch, at any time: what a NIC receives."""
    mbit = nic.port_mbit_per_s
    return [
        f"qdisc replace dev {port(topology, host.name, nic.name)} root handle 1: tbf "
        f"rate {mbit}mbit burst {_burst_bytes(mbit)} latency 50ms"
    ]


def _class(nic: Nic, parent: str, minor: str, mbit: float, most: float) -> str:
    return (
        f"class replace dev {nic.name} parent 1:{parent} classid 1:{minor} htb "
        f"rate {round(mbit * 1e3)}kbit ceil {round(most * 1e3)}kbit "
        f"burst {_burst_bytes(mbit)} cburst {_burst_bytes(most)} quantum {_QUANTUM}"
    )


def _minor(topology: Topology, other: str) -> str:
    return f"{_FIRST_CLASS + topology.hosts.index(topology.host(other)):x}"


def _burst_bytes(mbit: float) -> int:
    """0.2 ms of the rate, but no less than a segment that TCP hands down whole: what is more lets
    messages through that a wire of the rate would not."""
    return max(_SEGMENT, round(mbit * 1e6 / 8 * 0.2e-3))


def _queue_bytes(mbit: float) -> int:
    """25 ms of the rate, but no less than a few segments."""
    return max(524_288, round(mbit * 1e6 / 8 * 25e-3))
