"""On what it is trained: nodes of devices, links inside a node, NICs between nodes.

A link is `latency_s + bytes / bytes_per_s`, one direction, as one device sees it. A node's NICs are
shared by its devices: `nics_per_node * nic.bytes_per_s` leaves a node, whatever the number of
flows. Sources: each number of the catalogue carries its own.
"""

import re
from typing import Annotated

from annotated_types import Gt, Le

from profiler.codec import record
from profiler.errors import UserError
from profiler.model import NotNegative, Positive

PositiveFloat = Annotated[float, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]


@record
class LinkSpec:
    """One kind of link: time of `n` bytes one way is `latency_s + n / bytes_per_s`."""

    name: str
    bytes_per_s: PositiveFloat
    latency_s: PositiveFloat


@record
class DeviceSpec:
    """One kind of device. Rates are peaks without sparsity; efficiencies are what kernels reach of
    them.
    """

    name: str
    memory_bytes: Positive
    flops_per_s: dict[str, PositiveFloat]
    """Peak dense matrix FLOP/s by precision (`bf16`, `fp16`, `fp8`, `fp4`, `fp32`)."""
    memory_bytes_per_s: PositiveFloat
    """Peak rate of the device's own memory."""
    gemm_efficiency: Share
    """Share of peak that a large, well-shaped GEMM reaches."""
    memory_efficiency: Share
    """Share of the memory rate that a streaming kernel reaches."""
    launch_s: Annotated[float, Gt(0)]
    """Time to start one kernel."""
    units: Positive = 1
    """Multiprocessors (NVIDIA) or compute units (AMD): what one wave of tiles fills."""
    is_host: bool = False
    """The devices of a node are processes that share its cores (CPU training)."""


@record
class NodeGroup:
    """Nodes of one kind, consecutive in the order of ranks."""

    device: DeviceSpec
    num_nodes: Positive
    devices_per_node: Positive
    intra: LinkSpec
    """Between two devices of a node, per device and direction."""
    nic: LinkSpec
    """One NIC, one direction."""
    nics_per_node: Positive
    domain_devices: NotNegative = 0
    """Devices that `intra` joins where it reaches past the node (72 in a GB200 NVL72, whose nodes
    hold four): consecutive nodes in the order of ranks. 0: the devices of the node.
    """
    rails: NotNegative = 0
    """Planes of the network between nodes: NIC i reaches NIC i of another node without a spine.
    0: as many as NICs; 1: one network that all NICs share.
    """
    price_per_hour: PositiveFloat | None = None
    """What one device costs per hour, in the user's own currency; the catalogue gives none."""

    def __post_init__(self) -> None:
        if self.domain_devices % self.devices_per_node:
            raise UserError(
                f"`domain_devices` {self.domain_devices} is no whole number of nodes "
                f"with {self.devices_per_node} devices each",
                hint="leave it out where the fast link ends at the node",
            )
        if self.rails and self.nics_per_node % self.rails:
            raise UserError(
                f"`rails` {self.rails} does not divide the {self.nics_per_node} NICs of a node"
            )

    @property
    def devices_per_domain(self) -> int:
        """Devices that `intra` joins, within the node or past it."""
        return self.domain_devices or self.devices_per_node

    @property
    def num_rails(self) -> int:
        """Planes of the network between nodes."""
        return self.rails or self.nics_per_node


@record
class ClusterSpec:
    """A cluster: node groups in rank order."""

    name: str
    groups: tuple[NodeGroup, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise UserError(f"cluster `{self.name}` has no nodes")

    @property
    def num_devices(self) -> int:
        """Devices in the whole cluster."""
        return sum(g.num_nodes * g.devices_per_node for g in self.groups)

    @property
    def uniform(self) -> NodeGroup:
        """The only node group; raises `UserError` where there are several kinds of node."""
        if len(self.groups) != 1:
            raise UserError(
                f"cluster `{self.name}` mixes {len(self.groups)} kinds of node, "
                "where one is needed",
                hint="give one node group in the cluster file",
            )
        return self.groups[0]


_SIZED_NAME = re.compile(
    r"(?P<device>[a-z0-9][a-z0-9.-]*?)-(?P<nodes>\d{1,6})x(?P<devices>\d{1,4})"
)


def split_sized_name(name: str) -> tuple[str, int, int] | None:
    """`h100-2x8` -> (`h100`, 2 nodes, 8 devices per node); None for another form of name."""
    match = _SIZED_NAME.fullmatch(name)
    if match is None:
        return None
    return match["device"], int(match["nodes"]), int(match["devices"])
