"""A layout on hosts whose links differ: what its messages, reductions and tensor-parallel
collectives take where its ranks sit, and where they had best sit.

    message       latency(u, v) + bytes * share(u, v)
    ring of n     passes * (n - 1) * max over hops (latency(u, v) + bytes / n * hop(u, v))
    share(u, v)   max(flows u -> v / rate(u, v), flows out of u / out(u), flows into v / in(v))
    hop(u, v)     share(u, v), and what a byte takes in an all-reduce of two ranks of a host: where
                  processes copy and add themselves, after each other, on devices at once (max)

with the flows of all groups of the axis at once (of messages: of all that leave one stage), and
passes 2 for an all-reduce (Thakur, Rabenseifner, Gropp 2005; contention as in
`planner.mapping_flows`). A group within a host takes what the profile's curve says. Work takes a
rank of a slow host `slowdown` times as long, and a stage waits for its slowest rank. Where
processes move the data themselves, what they copy and add is such work too: collectives within a
host, the own part of a hop, what the executor does at each message.

Up to `mapping.FEW` ranks all assignments are ranked by their communication and the balance of
work, and the `CLOSE` best are left to simulation; above, the one that `planner.mapping` finds.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.collectives import Group
from planner.collectives import Links as Curves
from planner.config import ParallelConfig, Placement
from planner.mapping import FEW, map_ranks
from planner.mapping_exact import all_assignments
from planner.mesh import Mesh
from planner.plan import Plan, plan_id
from planner.traffic import traffic_of
from planner.where import nodes_of_ranks
from profiler.codec import replace
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.links import Links
from profiler.model import ModelSpec
from profiler.profile import HostLinks, Profile, Source

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Nodes = tuple[int, ...]
"""Host of each coordinate, row-major."""
_MEASURED: tuple[Source, ...] = ("measured",)
CLOSE = 12
WORTH = 0.01
"""Share of the step that another order must win over the ones before it: less is the noise of
measured links."""
EFFORT = 20_000
"""Orders looked at per layout, above `mapping.FEW` ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What the pipeline ranks of a layout wait for, beside their own work; sources of the times."""

    slowdown: tuple[float, ...]
    """Of each rank's work."""
    tensor: tuple[float, ...]
    """Of its tensor-parallel collectives."""
    executor: tuple[float, ...]
    """Of what its process does at each message."""
    send_forward_s: tuple[float, ...]
    send_backward_s: tuple[float, ...]
    send_source: tuple[Source, ...]
    sync: tuple[tuple[float, Source], ...]

    def slowed(self, whole_s: list[float], talk_s: list[float]) -> list[float]:
        """Of seconds on the profiled host, of which `talk_s` in tensor-parallel collectives."""
        rows = zip(whole_s, talk_s, self.slowdown, self.tensor, strict=True)
        return [
            a if slow == far == 1 else slow * (a - talk) + far * talk for a, talk, slow, far in rows
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flows:
    """Seconds per byte of each flow with those beside it, [...], and of a message."""

    byte_s: Floats
    latency_s: Floats


class Hosts:
    """The hosts of a cluster, for layouts of one model and job."""

    def __init__(
        self, model: ModelSpec, job: JobSpec, kept: HostLinks, per_node: int, curves: Curves
    ) -> None:
        self.model, self.job, self.per_node, self.curves = model, job, per_node, curves
        self.is_host = curves.node.device.is_host
        self.links = Links.of_stored(kept)
        n = len(kept.hosts)
        slow = self.links.slowdown
        self.slowdown: Floats = np.ones(n) if slow is None else slow

    def default(self, config: ParallelConfig) -> Nodes:
        """Ranks in the order of the hosts."""
        return tuple(k // self.per_node for k in range(config.num_devices))

    def likely(self, config: ParallelConfig, work_s: float) -> Iterator[Nodes]:
        """Assignments worth simulating, the default first. `work_s`: of all stages together."""
        default = self.default(config)
        yield default
        mesh, traffic = Mesh.of(config), traffic_of(self.model, config, self.job)
        if mesh.num_ranks <= FEW:
            exact = all_assignments(mesh, traffic, self.links, self.per_node)
            if exact is not None:
                yield from (
                    nodes for nodes in self._best(config, *exact, work_s) if nodes != default
                )
                return
        found = map_ranks(mesh, traffic, self.links, self.per_node, effort=EFFORT).best.nodes
        if found != default:
            yield found

    def _best(
        self, config: ParallelConfig, tables: Ints, phases: Floats, work_s: float
    ) -> Iterator[Nodes]:
        """Of assignments that cost the same, one."""
        slow = self.slowdown[tables].reshape(len(tables), config.pp, -1).max(axis=2)
        # Uneven stages level the work: it takes what it takes at all speeds together.
        seconds = phases.sum(axis=1) + work_s / (1 / slow).sum(axis=1)
        key = np.round(np.concatenate([phases, slow], axis=1), 9)
        _, first = np.unique(key, axis=0, return_index=True)
        order = first[np.lexsort((first, seconds[first]))]
        for k in order[:CLOSE]:
            yield tuple(int(n) for n in tables[k])

    def nodes_of(self, config: ParallelConfig, placement: Placement) -> Nodes:
        """The host of each coordinate of a placement."""
        order = placement.devices or placement.ranks or range(config.num_devices)
        return tuple(device // self.per_node for device in order)

    def network(
        self, config: ParallelConfig, nodes: Nodes, boundary: float,
        sync: tuple[tuple[float, Source], ...],
    ) -> Network:  # fmt: skip
        """With messages of `boundary` bytes, and what the reductions of each pipeline rank take."""
        forward, backward = self.sends(config, nodes, boundary)
        return Network(
            slowdown=self.of_stage(config, nodes),
            tensor=self.tensor_factor(config, nodes, boundary * config.tp),
            executor=self.of_processes(config, nodes),
            send_forward_s=forward,
            send_backward_s=backward,
            send_source=_MEASURED * config.pp,
            sync=sync,
        )

    def of_stage(self, config: ParallelConfig, nodes: Nodes) -> tuple[float, ...]:
        """Slow-down of each pipeline rank: its slowest host's."""
        slow = self.slowdown[np.array(nodes)].reshape(config.pp, -1).max(axis=1)
        return tuple(float(s) for s in slow)

    def of_processes(self, config: ParallelConfig, nodes: Nodes) -> tuple[float, ...]:
        """Slow-down of what the processes of each pipeline rank do beside computing: that of their
        host where it is the device, else none is known."""
        return self.of_stage(config, nodes) if self.is_host else (1.0,) * config.pp

    def sends(
        self, config: ParallelConfig, nodes: Nodes, num_bytes: float
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Seconds of a message of every rank of a stage to the next, and to the one before."""
        on = np.array(nodes).reshape(config.pp, -1)
        forward, backward = [0.0] * config.pp, [0.0] * config.pp
        for s in range(config.pp - 1):
            forward[s] = self._messages(on[s], on[s + 1], num_bytes)
            backward[s + 1] = self._messages(on[s + 1], on[s], num_bytes)
        return tuple(forward), tuple(backward)

    def _messages(self, source: Ints, target: Ints, num_bytes: float) -> float:
        flows = self._share(source, target)
        return float((flows.latency_s + num_bytes * flows.byte_s).max())

    def _share(self, source: Ints, target: Ints) -> _Flows:
        """Of flows that go at once; within a host as the curve of single messages says."""
        n = len(self.links.hosts)
        count = np.bincount((source * n + target).reshape(-1), minlength=n * n).reshape(n, n)
        apart = count * ~np.eye(n, dtype=np.bool_)
        rate = np.maximum(
            count[source, target] / self.links.bytes_per_s[source, target],
            np.maximum(
                apart.sum(axis=1)[source] / self.links.out_bytes_per_s[source],
                apart.sum(axis=0)[target] / self.links.in_bytes_per_s[target],
            ),
        )
        inside = 1 / self.links.bytes_per_s[source, source]
        return _Flows(
            byte_s=np.where(source == target, inside, rate),
            latency_s=self.links.latency_s[source, target],
        )

    def all_reduce(
        self, config: ParallelConfig, nodes: Nodes, axis: str, num_bytes: tuple[float, ...]
    ) -> tuple[tuple[float, Source], ...]:
        """Seconds per pipeline rank of an all-reduce of so many bytes over `axis`, by its slowest
        group, all groups of the layout at once."""
        return self._rings(config, nodes, axis, num_bytes, passes=2)

    def _rings(
        self, config: ParallelConfig, nodes: Nodes, axis: str, num_bytes: tuple[float, ...],
        passes: int,
    ) -> tuple[tuple[float, Source], ...]:  # fmt: skip
        groups = Mesh.of(config).groups(axis)
        size = groups.shape[1]
        if size == 1:
            return ((0.0, "analytic"),) * config.pp
        on = np.array(nodes)[groups]
        flows = self._share(on, np.roll(on, -1, axis=1))
        slow = self.slowdown if self.is_host else np.ones(len(self.slowdown))
        # At each hop all ranks of the ring send and receive: the slower end is waited for.
        own_s = self.curves.byte_s("all_reduce", Group(2, 2)) * np.maximum(
            slow[on], slow[np.roll(on, -1, axis=1)]
        )
        within_factor = self.of_processes(config, nodes)
        stage = groups[:, 0] // config.stage_ranks
        within = (on == on[:, :1]).all(axis=1)
        found: list[tuple[float, Source]] = []
        for s, held in enumerate(num_bytes):
            own = stage == s
            byte_s = flows.byte_s[own]
            byte_s = byte_s + own_s[own] if self.is_host else np.maximum(byte_s, own_s[own])
            hops = flows.latency_s[own] + held / size * byte_s
            seconds = passes * (size - 1) * float(hops.max())
            if within[own].all() and passes == 2:
                here, source = self.curves.collective("all_reduce", held, Group(size, size))
                found.append((here * within_factor[s], source))
            else:
                found.append((seconds, "measured"))
        return tuple(found)

    def exchange(self, on: Ints, shares: Floats) -> tuple[float, Floats]:
        """(latency in s, seconds per byte that a rank sends in each layer) of an all-to-all of the
        groups `on` [groups, ranks] at once, of which `shares` [layers, ranks] goes to each rank."""
        n, size = len(self.links.hosts), on.shape[1]
        a, b = np.nonzero(~np.eye(size, dtype=np.bool_))
        flat = (on[:, a] * n + on[:, b]).reshape(-1)
        latency_s = float(self.links.latency_s[on[:, a], on[:, b]].max())
        byte_s = np.empty(len(shares))
        for layer, share in enumerate(shares):
            weights = np.tile(share[b], len(on))
            sent = np.bincount(flat, weights, n * n).reshape(n, n)
            apart = sent * ~np.eye(n, dtype=np.bool_)
            byte_s[layer] = max(
                (apart / self.links.bytes_per_s).max(),
                (apart.sum(axis=1) / self.links.out_bytes_per_s).max(),
                (apart.sum(axis=0) / self.links.in_bytes_per_s).max(),
                # Messages within a host go beside each other, as its curve of single ones says.
                float((share.max() / np.diag(self.links.bytes_per_s)[on]).max()),
            )
        return latency_s, byte_s

    def tensor_factor(
        self, config: ParallelConfig, nodes: Nodes, num_bytes: float
    ) -> tuple[float, ...]:
        """Per pipeline rank, what a tensor-parallel collective of `num_bytes` takes, relative to
        one within the profiled host."""
        if config.tp == 1:
            return (1.0,) * config.pp
        on = np.array(nodes).reshape(config.pp, -1, config.tp)
        within = (on == on[:, :, :1]).all(axis=(1, 2))
        own = self.of_processes(config, nodes)
        if within.all():
            return own
        size = config.tp
        here = (size - 1) * (
            self.links.latency_s[0, 0] + num_bytes / size / self.links.bytes_per_s[0, 0]
        )
        rings = self._rings(config, nodes, "tp", (num_bytes,) * config.pp, passes=1)
        return tuple(
            slow if alone else max(slow, seconds / here)
            for alone, slow, (seconds, _) in zip(within, own, rings, strict=True)
        )


def named(nodes: Sequence[int], per_node: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`Placement.ranks` and `devices` for the host of each coordinate: ranks count through the
    devices in use, in the order of the hosts. Each is empty where it is each coordinate's own
    number."""
    order = sorted(range(len(nodes)), key=lambda k: (nodes[k], k))
    ranks, devices = [0] * len(nodes), [0] * len(nodes)
    held = Counter[int]()
    for rank, k in enumerate(order):
        ranks[k], devices[k] = rank, nodes[k] * per_node + held[nodes[k]]
        held[nodes[k]] += 1
    own = list(range(len(nodes)))
    return (
        () if ranks == own else tuple(ranks),
        () if devices in (own, ranks) else tuple(devices),
    )


def on_hosts(profile: Profile, links: Links, per_node: int | None = None) -> Profile:
    """The profile of one host, for all of `links` with `per_node` devices each (None: as many as
    were profiled), which are alike but for `links.slowdown`.

    Raises `UserError` where nothing was measured.
    """
    if profile.is_analytic:
        raise UserError(
            "`--links` goes with a profile of measured blocks",
            hint="`meshwright map --plan plan.json --links FILE` maps the ranks of any plan",
        )
    inside, latency_s = inside_of(profile)
    kept = links.with_inside(inside, latency_s).stored()
    node = replace(
        profile.cluster.uniform,
        num_nodes=len(kept.hosts),
        devices_per_node=per_node or profile.cluster.uniform.devices_per_node,
    )
    cluster = replace(profile.cluster, groups=(node,))
    return replace(profile, cluster=cluster, links=kept)


def with_interface(plan: Plan, nic: str) -> Plan:
    """The plan with its chosen layout's traffic through one NIC, by name; empty: as it is."""
    if not nic:
        return plan
    chosen = plan.chosen
    nodes = set(nodes_of_ranks(plan.cluster, chosen.config, chosen.placement))
    placement = replace(chosen.placement, interfaces=(nic,) * len(nodes))
    found = replace(plan, id="", chosen=replace(chosen, placement=placement))
    return replace(found, id=plan_id(found))


def inside_of(profile: Profile) -> tuple[float, float]:
    """(bytes/s, latency in s) of a message between two devices of a host."""
    entries = [e for e in profile.transfers if e.op == "p2p" and e.scope == "node"]
    if not entries:  # a host of one device
        return profile.cluster.uniform.intra.bytes_per_s, profile.cluster.uniform.intra.latency_s
    return Curves(profile).inside()
