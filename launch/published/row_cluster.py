"""A row's hardware: a catalogued device, and the network that the row or its device's servers have.

`inter_link` is read for a rate in Gb/s, whether per node (or machine) or per GPU, a number of
ports, and the kind of network by name.
"""

import re

from launch.published.cells import (
    UnusableRowError,
    count,
    extends,
    nearest,
    number,
    plain,
    shown,
)
from launch.published.table import Cells
from profiler.catalog.load import load_device, names
from profiler.catalog.node_types import node_group
from profiler.cluster import LinkSpec, NodeGroup
from profiler.codec import replace

_RATE = re.compile(
    r"(?<![0-9.])(?:([0-9]{1,3})\s*x\s*)?([0-9]{1,6}(?:\.[0-9]{1,6})?)"
    r"\s*(?:Gbps|Gbit/s|Gb/s|Gb\b|G\b)",
    re.I,
)
_KINDS = (
    ("roce", "RoCE"), ("omni-path", "Omni-Path"), ("efa", "EFA"), ("rdma", "RoCE"),
    ("ib", "InfiniBand"), ("infiniband", "InfiniBand"), ("ethernet", "Ethernet"),
)  # fmt: skip
_NODES = (("jeanzay", "jean-zay-a100"), ("efa", {"h100": "aws-p5", "a100": "aws-p4de"}))
_BY_MEMORY = {("a100", 40): "a100-40", ("h100", 96): "h100-96", ("v100", 16): "v100-16",
              ("a100pcie", 80): "a100-pcie-80"}  # fmt: skip
_DEFAULT = {"a100": "a100-80", "a100pcie": "a100-pcie-40"}


def device_of(cells: Cells) -> str:
    """Catalogue name of the row's device."""
    stated = cells.get("gpu", "").strip()
    size = re.search(r"([0-9]{1,4}) ?gi?b", stated.lower())
    text = plain(re.sub(r"[0-9]{1,4} ?gi?b|nvidia|amd|tesla|sxm[0-9]?|gpu", "", stated.lower()))
    if not text:
        raise UnusableRowError(f"no `gpu`{f': {shown(stated)}' if stated else ''}")
    memory = round(number(cells, "gpu_mem_gb") or (int(size[1]) if size else 0))
    known = {plain(name): name for name in names("device")}
    name = _BY_MEMORY.get((text, memory)) or _DEFAULT.get(text) or known.get(text)
    if name is None:
        longest = sorted((*known, *_DEFAULT), key=len, reverse=True)
        start = next((p for p in longest if extends(text, p)), "")
        name = _BY_MEMORY.get((start, memory)) or _DEFAULT.get(start) or known.get(start)
    if name is None:
        near = nearest(stated, known.values())
        raise UnusableRowError(f"no such GPU in the catalogue: {shown(stated)}{near}")
    return name


def group_of(cells: Cells, num_devices: int) -> NodeGroup:
    """Nodes that hold the row's devices."""
    device = device_of(cells)
    entry = load_device(device)
    per_node = count(cells, "gpus_per_node", 8)
    per_node = min(per_node, num_devices)
    nodes = max(1, -(-num_devices // per_node))
    text = cells.get("inter_link", "")
    named = _named_node(text, device)
    if named is not None:
        group = node_group(named, nodes)
        return replace(group, devices_per_node=per_node) if per_node != 8 else group
    nics = entry.num_nics(per_node)
    group = NodeGroup(
        device=entry.device,
        num_nodes=nodes,
        devices_per_node=per_node,
        intra=entry.intra,
        nic=entry.nic,
        nics_per_node=nics,
        domain_devices=entry.domain_of(per_node),
    )
    return _with_network(group, text)


def _named_node(text: str, device: str) -> str | None:
    key = plain(text)
    for word, node in _NODES:
        if word in key:
            if isinstance(node, str):
                return node
            return next((n for d, n in node.items() if device.startswith(d)), None)
    return None


def _with_network(group: NodeGroup, text: str) -> NodeGroup:
    """The group with the network that the words state."""
    found = _RATE.search(text)
    if not found:
        return group
    ports, rate = int(found[1] or 1), float(found[2]) / 8 * 1e9
    if not (ports >= 1 and rate > 0):
        raise UnusableRowError(f"`inter_link` has no rate above 0: {shown(text)}")
    per_gpu = "per gpu" in text.lower()
    total = rate * ports * (group.devices_per_node if per_gpu else 1)
    kind = next((k for word, k in _KINDS if word in text.lower()), group.nic.name)
    nics = ports if ports > 1 else group.devices_per_node
    link = LinkSpec(
        name=f"{kind} as the row states it",
        bytes_per_s=total / nics,
        latency_s=group.nic.latency_s,
    )
    return replace(group, nic=link, nics_per_node=nics, rails=0)
