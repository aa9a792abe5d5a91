"""Which nodes of a cluster are still there in another, and a measured profile for what is left.

Nodes are numbered over all groups in the order of ranks. Of each kind (device, devices per node)
the old nodes that were not lost keep their order. Where there are as many or more nodes now, they
keep their places, others fill the gaps and the end; where there are fewer, they come first. If more
old nodes are left than there are places, the last of them are taken to be gone.
"""

from dataclasses import dataclass

from profiler.cluster import ClusterSpec, NodeGroup, split_sized_name
from profiler.codec import replace
from profiler.errors import UserError
from profiler.links import Links
from profiler.profile import Profile

Kind = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivors:
    """Old and new nodes, one to one where a node is in both clusters."""

    nodes: tuple[int | None, ...]
    """Per node of the new cluster its number in the old one; None: it is another."""
    lost: tuple[int, ...]
    """Nodes of the old cluster that are gone."""
    devices: dict[int, int]
    """Device of the old cluster -> its number in the new one, where it is still there."""


def without(cluster: ClusterSpec, lost: tuple[int, ...]) -> ClusterSpec:
    """The cluster without the nodes of these numbers; `UserError` where there are none or none is
    left."""
    total = len(_kinds(cluster))
    if unknown := [node for node in lost if node >= total]:
        raise UserError(
            f"`--lost {unknown[0]}`: cluster `{cluster.name}` has nodes 0 to {total - 1}",
            hint="number the nodes of the old plan in the order of ranks, from 0",
        )
    groups: list[NodeGroup] = []
    first = 0
    for group in cluster.groups:
        left = group.num_nodes - sum(first <= n < first + group.num_nodes for n in set(lost))
        first += group.num_nodes
        if left:
            groups.append(replace(group, num_nodes=left))
    if not groups:
        raise UserError("no node is left", kind="infeasible")
    name, sized = cluster.name, split_sized_name(cluster.name)
    if sized and len(cluster.groups) == 1:
        name = f"{sized[0]}-{groups[0].num_nodes}x{sized[2]}"
    return ClusterSpec(name=name, groups=tuple(groups))


def survivors(old: ClusterSpec, new: ClusterSpec, lost: tuple[int, ...]) -> Survivors:
    """Which nodes of `old` are in `new`, of which those of the numbers `lost` are not."""
    before, after = _kinds(old), _kinds(new)
    nodes: list[int | None] = [None] * len(after)
    for kind in dict.fromkeys(after):
        places = [i for i, k in enumerate(after) if k == kind]
        olds = [i for i, k in enumerate(before) if k == kind]
        left = [node for node in olds if node not in lost]
        own = left if len(places) < len(olds) else [n if n in left else None for n in olds]
        for place, node in zip(places, own, strict=False):
            nodes[place] = node
    starts, new_starts = _starts(before), _starts(after)
    devices = {
        starts[node] + k: new_starts[place] + k
        for place, node in enumerate(nodes)
        if node is not None
        for k in range(before[node][1])
    }
    gone = sorted(set(range(len(before))) - set(nodes))
    return Survivors(nodes=tuple(nodes), lost=tuple(gone), devices=devices)


def _kinds(cluster: ClusterSpec) -> list[Kind]:
    """Per node."""
    return [(g.device.name, g.devices_per_node) for g in cluster.groups for _ in range(g.num_nodes)]


def _starts(kinds: list[Kind]) -> list[int]:
    """First device of each node."""
    starts = [0]
    for _, size in kinds:
        starts.append(starts[-1] + size)
    return starts


def places_of(old: tuple[str, ...], now: tuple[str, ...]) -> tuple[str, ...]:
    """Hosts of now in the order that `survivors` takes them to have, by their names."""
    new = iter(host for host in now if host not in old)
    if len(now) < len(old):
        return (*(host for host in old if host in now), *new)
    kept = [host if host in now else next(new, "") for host in old]
    return (*kept, *new)


def measured_for(profile: Profile, cluster: ClusterSpec, lost: tuple[int, ...] = ()) -> Profile:
    """A measured profile for another number of its nodes, without those `lost`: times of blocks are
    those of a device, curves of transfers those of a group, links those of the hosts left, whatever
    else there is in the cluster.

    Raises `UserError` (stale) where the nodes are others than the measured ones.
    """
    own, other = profile.cluster.uniform, cluster.uniform
    shape = (other.device.name, other.devices_per_node)
    if shape != (own.device.name, own.devices_per_node):
        raise UserError(
            f"the old plan's profile was measured on nodes of {own.devices_per_node} x "
            f"{own.device.name}, and the nodes of `{cluster.name}` have {shape[1]} x {shape[0]}",
            hint="measure them: `meshwright profile`, then pass `--profile`",
            kind="stale",
        )
    group = replace(own, num_nodes=other.num_nodes)
    links = profile.links
    if links is not None:
        left = survivors(profile.cluster, cluster, lost).nodes
        known = [links.hosts[node] for node in left if node is not None]
        if len(known) < len(left):
            raise UserError(
                f"the old plan knows links of {len(links.hosts)} hosts, and now there are others",
                hint="measure them, and pass `--links`",
                kind="stale",
            )
        links = Links.of_stored(links).of_hosts(known).stored()
    one = ClusterSpec(name=cluster.name, groups=(group,))
    return replace(profile, cluster=one, links=links)
