"""Clusters: names (`h100-2x8`, `aws-p5-16`, catalogue names), and the user's own cluster YAML.

    name: lab
    nodes:
      - device: h100          # a catalogue name, or a mapping with all fields of `DeviceSpec`
        count: 2
        devices_per_node: 8
        intra: {name: NVLink 4, bytes_per_s: 450e9, latency_s: 2e-6}
        nic: {name: InfiniBand NDR, bytes_per_s: 50e9, latency_s: 5e-6}
        nics_per_node: 8
        domain_devices: 0     # devices that `intra` joins where it reaches past the node
        rails: 0              # planes of the network between nodes; 0: one per NIC
        price_per_hour: 2.5   # of one device, in any currency
      - node: aws-p5          # or a catalogued node type, which gives all but these three
        count: 4
        devices_per_node: 8
        price_per_hour: 2.5

The last six may be left out where the device is a catalogue name: then they are those of its
usual servers, without a price. With a device of one's own, `intra` and `nic` are needed, and one
NIC per node is taken.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MinLen

from profiler.catalog.load import (
    CatalogItem,
    folder,
    list_kind,
    load_device,
    names,
    unknown,
)
from profiler.catalog.node_types import node_group, split_node_name
from profiler.cluster import (
    ClusterSpec,
    DeviceSpec,
    LinkSpec,
    NodeGroup,
    PositiveFloat,
    split_sized_name,
)
from profiler.codec import build, parse, place_of, read_text, record, replace
from profiler.errors import UserError
from profiler.names import nearest
from profiler.yaml_nodes import Lines, json_lines

FILE_NAME = "cluster.yaml"
NumNodes = Annotated[int, Gt(0), Le(1_000_000)]
NumDevices = Annotated[int, Gt(0), Le(10_000)]
NumOrNone = Annotated[int, Ge(0), Le(10_000)]
"""A number where 0 stands for the usual: of a domain the node's, of rails one per NIC."""


@record
class NamedNodes:
    """Nodes of a catalogued device."""

    device: str
    count: NumNodes
    devices_per_node: NumDevices
    intra: LinkSpec | None = None
    nic: LinkSpec | None = None
    nics_per_node: NumDevices | None = None
    domain_devices: NumOrNone | None = None
    rails: NumOrNone = 0
    price_per_hour: PositiveFloat | None = None


@record
class TypedNodes:
    """Nodes of a catalogued node type."""

    node: str
    count: NumNodes
    devices_per_node: NumDevices | None = None
    price_per_hour: PositiveFloat | None = None


@record
class OwnNodes:
    """Nodes of a device that the file describes."""

    device: DeviceSpec
    count: NumNodes
    devices_per_node: NumDevices
    intra: LinkSpec
    nic: LinkSpec
    nics_per_node: NumDevices = 1
    domain_devices: NumOrNone = 0
    rails: NumOrNone = 0
    price_per_hour: PositiveFloat | None = None


@record
class ClusterFile:
    """Outer form of a cluster file; a node group is decoded by the kind of its device."""

    name: Annotated[str, MinLen(1)]
    nodes: tuple[dict[str, Any], ...]


def list_clusters() -> tuple[CatalogItem, ...]:
    """Catalogued clusters."""
    return list_kind("cluster")


def load_cluster(name: str) -> ClusterSpec:
    """The catalogued cluster of that name; `UserError` naming the nearest where there is none."""
    if name not in names("cluster"):
        raise unknown("cluster", name, names("cluster"))
    path = folder("cluster") / f"{name}.yaml"
    return cluster_from_text(read_text(path), str(path))


def cluster_from_name(name: str) -> ClusterSpec:
    """Cluster of a sized name.

    `DEVICE-NODESxDEVICES` has the device's usual interconnect, `TYPE-NODES` and
    `TYPE-NODESxDEVICES` that of a node type. Raises `UserError` where the name has another form, no
    devices, or an unknown device.
    """
    parts = split_sized_name(name)
    typed = split_node_name(name) if parts is None else None
    if typed is not None and typed[0] in names("node"):
        _refuse_none(name, typed[1])
        return ClusterSpec(name=name, groups=(node_group(*typed),))
    if parts is None:
        raise UserError(
            f"`{name[:60]}` is not of the form DEVICE-NODESxDEVICES",
            hint="`h100-2x8` is two nodes with eight H100 each",
        )
    what, num_nodes, devices = parts
    if what not in (*names("device"), *names("node")):
        raise _unknown_device(what, f"{num_nodes}x{devices}")
    _refuse_none(name, num_nodes * devices)
    if what in names("node"):
        return ClusterSpec(name=name, groups=(node_group(what, num_nodes, devices),))
    nodes = NamedNodes(device=what, count=num_nodes, devices_per_node=devices)
    return ClusterSpec(name=name, groups=(_named_group(nodes),))


def _unknown_device(name: str, size: str) -> UserError:
    """The error for a sized name of an unknown device; the hint repeats the size."""
    error = unknown("device", name, names("device"))
    near = nearest(name, (*names("device"), *names("node")))
    if near:
        error.hint = f"did you mean `{near}-{size}`?"
    return error


def _refuse_none(name: str, number: int) -> None:
    if number == 0:
        raise UserError(f"cluster `{name}` has no devices")


def read_cluster(path: Path) -> ClusterSpec:
    """Read a cluster file, or `cluster.yaml` of a folder; `UserError` with file and line."""
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise UserError(f"the folder holds no `{FILE_NAME}`", place=str(path))
        path = path / FILE_NAME
    return cluster_from_text(read_text(path), str(path))


def cluster_from_text(text: str, place: str) -> ClusterSpec:
    """Text of a cluster file (JSON where `place` ends in `.json`, else YAML) -> cluster."""
    tree, lines = parse(text, place)
    lines = lines or json_lines(text)
    file = build(ClusterFile, tree, place, lines=lines)
    if not file.nodes:
        at = place_of(("nodes",), place, lines, None)
        raise UserError(f"cluster `{file.name}` has no nodes", place=at)
    groups = []
    for index, node in enumerate(file.nodes):
        # Lines of this group alone, so that its errors read the same in every group.
        own = {path[2:]: at for path, at in lines.items() if path[:2] == ("nodes", index)}
        groups.append(_group(node, place, own))
    return ClusterSpec(name=file.name, groups=tuple(groups))


def _group(node: dict[str, Any], place: str, lines: Lines) -> NodeGroup:
    """Nodes of a cluster file by what they are of: a node type, a catalogued or an own device."""
    if "node" in node:
        typed = build(TypedNodes, node, place, lines=lines)
        with _at("node", place, lines):
            group = node_group(typed.node, typed.count, typed.devices_per_node)
            return replace(group, price_per_hour=typed.price_per_hour)
    if not isinstance(node.get("device"), dict):
        named = build(NamedNodes, node, place, lines=lines)
        with _at("device", place, lines):
            return _named_group(named)
    own = build(OwnNodes, node, place, lines=lines)
    with _at("device", place, lines):
        return NodeGroup(
            device=own.device,
            num_nodes=own.count,
            devices_per_node=own.devices_per_node,
            intra=own.intra,
            nic=own.nic,
            nics_per_node=own.nics_per_node,
            domain_devices=own.domain_devices,
            rails=own.rails,
            price_per_hour=own.price_per_hour,
        )


@contextmanager
def _at(key: str, place: str, lines: Lines) -> Iterator[None]:
    """Errors within are those of a key of a node group."""
    try:
        yield
    except UserError as e:
        at = place_of((key,), place, lines, None)
        raise UserError(e.message, hint=e.hint, place=at) from None


def _named_group(nodes: NamedNodes) -> NodeGroup:
    entry = load_device(nodes.device)
    per_node = nodes.devices_per_node
    domain = nodes.domain_devices
    return NodeGroup(
        device=entry.device,
        num_nodes=nodes.count,
        devices_per_node=per_node,
        intra=nodes.intra or entry.intra,
        nic=nodes.nic or entry.nic,
        nics_per_node=nodes.nics_per_node or entry.num_nics(per_node),
        domain_devices=entry.domain_of(per_node) if domain is None else domain,
        rails=nodes.rails,
        price_per_hour=nodes.price_per_hour,
    )
