"""Clusters: sized names (`h100-2x8`), catalogue names, and the user's own cluster YAML.

    name: lab
    nodes:
      - device: h100          # a catalogue name, or a mapping with all fields of `DeviceSpec`
        count: 2
        devices_per_node: 8
        intra: {name: NVLink 4, bytes_per_s: 450e9, latency_s: 2e-6}
        nic: {name: InfiniBand NDR, bytes_per_s: 50e9, latency_s: 5e-6}
        nics_per_node: 8

The last three may be left out where the device is a catalogue name: then they are those of its
usual servers. With a device of one's own, `intra` and `nic` are needed, and one NIC per node is
taken.
"""

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Le, MinLen

from profiler.catalog.load import (
    CatalogItem,
    folder,
    list_kind,
    load_device,
    names,
    nearest,
    unknown,
)
from profiler.cluster import ClusterSpec, DeviceSpec, LinkSpec, NodeGroup, split_sized_name
from profiler.codec import build, parse, place_of, read_text, record
from profiler.errors import UserError
from profiler.yaml_nodes import Lines, json_lines

FILE_NAME = "cluster.yaml"
NumNodes = Annotated[int, Gt(0), Le(1_000_000)]
NumDevices = Annotated[int, Gt(0), Le(10_000)]


@record
class NamedNodes:
    """Nodes of a catalogued device."""

    device: str
    count: NumNodes
    devices_per_node: NumDevices
    intra: LinkSpec | None = None
    nic: LinkSpec | None = None
    nics_per_node: NumDevices | None = None


@record
class OwnNodes:
    """Nodes of a device that the file describes."""

    device: DeviceSpec
    count: NumNodes
    devices_per_node: NumDevices
    intra: LinkSpec
    nic: LinkSpec
    nics_per_node: NumDevices = 1


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
    """Cluster of a sized name, `DEVICE-NODESxDEVICES`, with the device's usual interconnect.

    Raises `UserError` where the name has another form, no devices, or an unknown device.
    """
    parts = split_sized_name(name)
    if parts is None:
        raise UserError(
            f"`{name[:60]}` is not of the form DEVICE-NODESxDEVICES",
            hint="`h100-2x8` is two nodes with eight H100 each",
        )
    device, num_nodes, devices_per_node = parts
    if device not in names("device"):
        error = unknown("device", device, names("device"))
        near = nearest(device, names("device"))
        if near:
            error.hint = f"did you mean `{near}-{num_nodes}x{devices_per_node}`?"
        raise error
    if num_nodes == 0 or devices_per_node == 0:
        raise UserError(f"cluster `{name}` has no devices")
    nodes = NamedNodes(device=device, count=num_nodes, devices_per_node=devices_per_node)
    return ClusterSpec(name=name, groups=(_named_group(nodes),))


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
    if not isinstance(node.get("device"), dict):
        named = build(NamedNodes, node, place, lines=lines)
        try:
            return _named_group(named)
        except UserError as e:
            at = place_of(("device",), place, lines, None)
            raise UserError(e.message, hint=e.hint, place=at) from None
    own = build(OwnNodes, node, place, lines=lines)
    return NodeGroup(
        device=own.device,
        num_nodes=own.count,
        devices_per_node=own.devices_per_node,
        intra=own.intra,
        nic=own.nic,
        nics_per_node=own.nics_per_node,
    )


def _named_group(nodes: NamedNodes) -> NodeGroup:
    entry = load_device(nodes.device)
    return NodeGroup(
        device=entry.device,
        num_nodes=nodes.count,
        devices_per_node=nodes.devices_per_node,
        intra=nodes.intra or entry.intra,
        nic=nodes.nic or entry.nic,
        nics_per_node=nodes.nics_per_node or entry.num_nics(nodes.devices_per_node),
    )
