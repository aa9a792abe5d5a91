"""Node types: servers as they are sold or installed, `nodes/NAME.yaml`, each number with a source.

    device: h100                                  # a catalogued device
    devices_per_node: {value: 8, source: ...}
    nic: {name: ..., bytes_per_s: {value: ..., source: ...}, latency_s: {value: ..., source: ...}}
    nics_per_node: {value: 32, source: ...}
    rails: {value: 1, source: ...}                # where not one per NIC
    domain_devices: {value: 72, source: ...}      # where the fast link reaches past the node

`intra` and `nic` are those of the device where a file gives none. A node type and a number of nodes
name a cluster: `aws-p5-16` is sixteen p5.48xlarge, and `aws-p5-16x4` takes four devices of each.
"""

import functools
import re

from profiler.catalog.load import (
    SourcedInt,
    SourcedLink,
    folder,
    load_device,
    names,
    unknown,
)
from profiler.cluster import NodeGroup
from profiler.codec import decode, read_text, record
from profiler.errors import UserError

_TYPE_AND_NUMBER = re.compile(r"(?P<type>[a-z0-9][a-z0-9.-]*)-(?P<nodes>\d{1,6})")


@record
class NodeFile:
    """Content of `nodes/NAME.yaml`; the fields are those of `NodeGroup`."""

    device: str
    devices_per_node: SourcedInt
    intra: SourcedLink | None = None
    nic: SourcedLink | None = None
    nics_per_node: SourcedInt
    rails: SourcedInt | None = None
    domain_devices: SourcedInt | None = None


@functools.cache
def load_node_file(name: str) -> NodeFile:
    """The file of a node type, with its sources; `UserError` naming the nearest for another."""
    if name not in names("node"):
        raise unknown("node", name, names("node"))
    path = folder("node") / f"{name}.yaml"
    return decode(NodeFile, read_text(path), str(path))


def node_group(name: str, num_nodes: int, devices: int | None = None) -> NodeGroup:
    """So many nodes of a type, or of `devices` of each node's devices and their share of its NICs.

    Raises `UserError` for an unknown type, and where a node has fewer devices than asked for.
    """
    file = load_node_file(name)
    entry = load_device(file.device)
    whole = file.devices_per_node.value
    devices = devices or whole
    if devices > whole:
        raise UserError(
            f"a node of type `{name}` has {whole} devices, not {devices}",
            hint=f"take more nodes: `{name}-{num_nodes * -(-devices // whole)}`",
        )
    nics = max(1, file.nics_per_node.value * devices // whole)
    rails = file.rails.value if file.rails else 0
    domain = file.domain_devices.value if file.domain_devices else 0
    return NodeGroup(
        device=entry.device,
        num_nodes=num_nodes,
        devices_per_node=devices,
        intra=file.intra.to_link() if file.intra else entry.intra,
        nic=file.nic.to_link() if file.nic else entry.nic,
        nics_per_node=nics,
        domain_devices=domain // whole * devices,
        rails=0 if rails and nics % rails else rails,
    )


def split_node_name(name: str) -> tuple[str, int] | None:
    """`aws-p5-16` -> (`aws-p5`, 16 nodes); None for another form of name. Looks up nothing."""
    match = _TYPE_AND_NUMBER.fullmatch(name)
    return None if match is None else (match["type"], int(match["nodes"]))


def is_node_name(name: str) -> bool:
    """Whether a name is a catalogued node type and a number of nodes."""
    parts = split_node_name(name)
    return parts is not None and parts[0] in names("node")
