"""Output of `ibnetdiscover` (rdma-core, its manual's "Topology file format"): an InfiniBand fabric.

    Switch  40 "S-b8cef60300e5d2a0"    # "MF0;leaf1:MQM8790/U1" enhanced port 0 lid 1 lmc 0
    [1]     "H-0c42a10300a1b2c4"[1](c42a10300a1b2c4)   # "node01 mlx5_0" lid 5 4xHDR
    [21]    "S-b8cef60300e5d2b0"[1]    # "MF0;spine1:MQM8790/U1" lid 2 4xHDR

    Ca      1 "H-0c42a10300a1b2c4"     # "node01 mlx5_0"
    [1](c42a10300a1b2c4)  "S-b8cef60300e5d2a0"[1]  # lid 5 lmc 0 "MF0;leaf1:MQM8790/U1" lid 1 4xHDR

A channel adapter's description is its host and its device. Where several have the same, or it is a
maker's (`MT23108 ... Mellanox Technologies`), the host is called by its GUID; the aggregation nodes
of switches are no hosts. A switch is called by the name in its description, by all of it (boards of
a chassis) or by its GUID: the first of these that no other switch has.

Leaves are the switches with hosts, but not those that join several switches with more: there the
hosts are managers on a spine. A switch's parents are those it is cabled to that lie one cable
further from the leaves.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from profiler.errors import UserError
from profiler.link_files.fabric import Fabric, HostPort, distances
from profiler.link_files.table import lines_of

_NODE = re.compile(r'\s*(?:Switch|Ca|Rt)\s+\d+\s+"([SHR]-[0-9a-fA-F]+)"(?:\s*#\s*"(.*)")?.*')
_PORT = re.compile(
    r"\s*\[(\d{1,5})\](?:\[ext \d+\])?(?:\([0-9a-fA-F]+\))?"
    r'\s*"([SHR]-[0-9a-fA-F]+)"\[(\d{1,5})\][^#"]*(?:#[^"]*"(.*)")?.*',
    re.ASCII,
)
_BEGINS = re.compile(r'\s*(?:\[\d+\]|(?:Switch|Ca|Rt)\s+\d+\s+")')
_MAKER = re.compile(r"^$|Technologies|^MT\d+ |^Mellanox")
Cable = tuple[str, int, str, int]
"""A node and its port, another and its port."""


@dataclass(slots=True)
class _Found:
    descriptions: dict[str, str] = field(default_factory=dict)
    cables: dict[Cable, None] = field(default_factory=dict)


def is_ibnetdiscover(text: str) -> bool:
    """Whether a line describes a node of a fabric."""
    return any(_NODE.fullmatch(line) for line in lines_of(text))


def fabric_of_ibnetdiscover(text: str, place: str) -> Fabric:
    """Switches and hosts of an output; `UserError` with the line."""
    found = _parse(text, place)
    switches = {guid: d for guid, d in found.descriptions.items() if guid.startswith("S-")}
    adapters = {guid: d for guid, d in found.descriptions.items() if guid.startswith("H-")}
    names, owners = _switch_names(switches), _owners(adapters)
    joined: dict[str, set[str]] = {name: set() for name in names.values()}
    ports: dict[str, dict[HostPort, None]] = {}
    for one, one_port, other, _ in found.cables:
        if one in names and other in names:
            joined[names[one]].add(names[other])
        elif one in owners and other in names:
            host, hca = owners[one]
            on = HostPort(switch=names[other], hca=hca, port=one_port)
            ports.setdefault(host, {})[on] = None
    if not ports:
        raise UserError("no host is on a switch of the fabric", place=place)
    cables = {name: tuple(sorted(others - {name})) for name, others in joined.items()}
    return Fabric(
        ports={
            host: tuple(sorted(on, key=lambda p: (len(p.hca), p.hca, p.port, p.switch)))
            for host, on in sorted(ports.items())
        },
        parents=_parents(cables, ports),
        joined=cables,
        source=place,
    )


def _parse(text: str, place: str) -> _Found:
    """Descriptions of all nodes, and all cables from either end."""
    found, current = _Found(), ""
    for number, line in enumerate(lines_of(text), start=1):
        at = f"{place}:{number}"
        node, port = _NODE.fullmatch(line), _PORT.fullmatch(line)
        if node is not None:
            current = node[1]
            found.descriptions[current] = node[2] or found.descriptions.get(current, "")
        elif port is not None:
            if not current:
                raise UserError("a port comes before its node", place=at)
            own, other, far = int(port[1]), port[2], int(port[3])
            found.descriptions.setdefault(other, "")
            found.descriptions[other] = found.descriptions[other] or port[4] or ""
            found.cables[current, own, other, far] = None
            found.cables[other, far, current, own] = None
        elif _BEGINS.match(line):
            hint = 'nodes are called `"S-0008f10400410015"`: a letter and a GUID'
            raise UserError("the line of a node or port cannot be read", hint=hint, place=at)
    return found


def _switch_names(switches: dict[str, str]) -> dict[str, str]:
    """GUID -> the shortest of its names that no other switch has."""
    full = {guid: text.removeprefix("MF0;").strip() for guid, text in switches.items()}
    short = {guid: text.partition(":")[0] for guid, text in full.items()}
    names = {}
    for guid in switches:
        for called in (short, full):
            if called[guid] and Counter(called.values())[called[guid]] == 1:
                names[guid] = called[guid]
                break
        else:
            names[guid] = guid
    return names


def _owners(adapters: dict[str, str]) -> dict[str, tuple[str, str]]:
    """GUID -> host and device; none for the aggregation nodes of switches."""
    count = Counter(adapters.values())
    owners = {}
    for guid, text in adapters.items():
        if "Aggregation Node" in text:
            continue
        host, _, hca = text.strip().partition(" ")
        plain = count[text] == 1 and host and not _MAKER.search(text)
        owners[guid] = (host, hca.strip()) if plain else (guid, "")
    return owners


def _parents(
    cables: dict[str, tuple[str, ...]], ports: dict[str, dict[HostPort, None]]
) -> dict[str, tuple[str, ...]]:
    """Switches one cable further from the leaves."""
    hosts = Counter(port.switch for on in ports.values() for port in on)

    def is_leaf(switch: str) -> bool:
        fuller = sum(hosts[other] > hosts[switch] for other in cables[switch])
        return hosts[switch] > 0 and fuller < 2

    level = distances(cables, [switch for switch in cables if is_leaf(switch)])
    return {
        switch: tuple(other for other in others if level.get(other, 0) == level.get(switch, 0) + 1)
        for switch, others in cables.items()
    }
