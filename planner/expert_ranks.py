"""The ranks over which experts are spread: which share a node, of which kind each is, how fast.

Expert coordinates (edp, ep, etp) are row-major over the ranks of a pipeline rank (`planner.grid`),
whose number is a multiple of ep * etp. So on devices in order

    device of (block b, place p of ep, t of etp)  =  (b * ep + p) * etp + t

The etp devices of a place hold parts of the same experts. Each receives the choices of its own
ep group's tokens, 1 / etp of what the place is chosen for; they gather each other's, compute their
parts and send the sums back (`launch.runtime.experts`). Seconds of a choice that goes to a place:

    computing  (compute + (etp - 1) * gather) / etp     gather as a copy inside a node, or between
                                                        nodes where an etp group leaves its own
    a copy     1 / etp of what it takes one device

All blocks have one placement. A place is as slow as its slowest device in any block, and places
that follow each other share a node where they do in every block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.expert_placement import Floats, Ranks, Rates, Unlike
from planner.where import nodes_of_devices, starts_of
from profiler.cluster import ClusterSpec
from profiler.codec import replace
from solvers.experts.problem import Copies, Traffic

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Devices:
    """In the order in which ranks take them."""

    node: Ints
    """[devices], numbered over all groups of the cluster."""
    group: Ints
    """[devices]: node group of the cluster."""

    def seats(self, ep: int, etp: int) -> "Devices":
        """The same as [blocks, ep, etp]; devices that fill no block are left out."""
        size = ep * etp
        num = len(self.node) // size * size
        shape = (-1, ep, etp)
        return Devices(node=self.node[:num].reshape(shape), group=self.group[:num].reshape(shape))


def devices_of(
    cluster: ClusterSpec, group: int | None = None, per_node: int | None = None
) -> Devices:
    """Of all nodes or of one group's; the first `per_node` of each node alone, where that is
    given."""
    node = np.array(nodes_of_devices(cluster), np.int64)
    kind = np.searchsorted(starts_of(cluster)[1:], np.arange(len(node)), side="right")
    kept = np.ones(len(node), np.bool_) if group is None else kind == group
    if per_node is not None:
        first = np.searchsorted(node, node)
        kept &= np.arange(len(node)) - first < per_node
    return Devices(node=node[kept], group=kind[kept])


def ranks_per_node(seats: Devices) -> int:
    """Places of ep that follow each other on one node, in all blocks: the most that divide ep."""
    blocks, ep, etp = seats.node.shape
    for per in range(ep, 1, -1):
        if ep % per == 0:
            runs = seats.node.reshape(blocks, ep // per, per, etp)
            if (runs == runs[:, :, :1]).all():
                return per
    return 1


def spread_ranks(
    devices: Devices,
    rates: Sequence[Rates],
    ep: int,
    etp: int,
    slots_per_rank: int,
    *,
    traffic: Traffic = "home",
    copies: Copies = "choice",
    num_groups: int = 1,
) -> Ranks:
    """The ranks of ep groups on `devices`, of which there is a block at least; `rates` of each node
    group of the cluster, where nothing is spread over etp. `num_groups` of experts."""
    seats = devices.seats(ep, etp)
    per, own = ranks_per_node(seats), _of_places(seats, rates)
    compute, intra, inter = (_slowest(seats, own, n) for n in ("compute_s", "intra_s", "inter_s"))
    used = Rates(
        compute_s=float(compute.max()), intra_s=float(intra.max()), inter_s=float(inter.max())
    )
    return Ranks(
        num_ranks=ep,
        ranks_per_node=per,
        slots_per_rank=slots_per_rank,
        rates=used,
        traffic=traffic,
        copies=copies,
        num_groups=num_groups,
        slowdown=compute / used.compute_s if np.ptp(compute) > 0 else None,
        near_s=_of_nodes(intra, per) if np.ptp(intra) > 0 else None,
        far_s=_of_nodes(inter, per) if np.ptp(inter) > 0 else None,
    )


def unlike_ranks(devices: Devices, rates: Sequence[Rates], ep: int, etp: int) -> Unlike:
    """Speeds of the places of ep groups on `devices` and of each node group, as above."""
    seats = devices.seats(ep, etp)
    own = _of_places(seats, rates)
    return Unlike(
        compute_s=_slowest(seats, own, "compute_s"),
        copy_s=_slowest(seats, own, "inter_s"),
        group_compute_s=np.array([each.compute_s for each in own]),
        group_copy_s=np.array([each.inter_s for each in own]),
    )


def _slowest(seats: Devices, rates: Sequence[Rates], name: str) -> Floats:
    """[ep]: of each place, a field of its node groups' rates."""
    values = np.array([getattr(each, name) for each in rates])
    return np.asarray(values[seats.group].max(axis=(0, 2)))


def _of_places(seats: Devices, rates: Sequence[Rates]) -> list[Rates]:
    """Per node group, seconds of a choice at a place of its devices."""
    etp = seats.node.shape[2]
    inside = bool((seats.node == seats.node[..., :1]).all())
    return [_of_place(each, etp, inside=inside) for each in rates]


def _of_place(rates: Rates, etp: int, *, inside: bool) -> Rates:
    """Seconds of a choice at a place of `etp` devices, which are `inside` a node."""
    gather_s = rates.intra_s if inside else rates.inter_s
    return replace(
        rates,
        compute_s=(rates.compute_s + (etp - 1) * gather_s) / etp,
        intra_s=rates.intra_s / etp,
        inter_s=rates.inter_s / etp,
    )


def _of_nodes(values: Floats, per: int) -> Floats:
    """[nodes]: the largest of each node's places."""
    return np.asarray(values.reshape(-1, per).max(axis=1))
