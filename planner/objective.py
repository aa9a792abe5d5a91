"""What a search is to make least, and how many of the cluster's devices it may use.

    step      seconds of a step
    cost      device-seconds per token: every device that works costs the same, idle ones nothing;
              on clusters of several kinds each at its price per hour, where all have one
    devices   the number of devices, then the step

A score is a step times a weight, the same for all layouts that use the same devices.
"""

from planner.config import ParallelConfig
from planner.plan import Candidate, SearchOptions
from profiler.cluster import ClusterSpec, NodeGroup
from profiler.errors import UserError

MOST_SIZES = 24
"""Most numbers of devices that are searched without being named."""
_ALL_NODES = 8


def weight_of(options: SearchOptions, num_devices: int) -> float:
    """Factor of a step on so many equal devices in its score; of objective `devices`, whose sizes
    are not compared, 1."""
    return float(num_devices) if options.objective == "cost" else 1.0


def relative_cost(options: SearchOptions, chosen: Candidate, other: Candidate) -> float:
    """The other's score over the chosen one's."""
    ratio = other.cost.step_s / chosen.cost.step_s
    if options.objective != "cost":
        return ratio
    own, others = price_per_hour_of(chosen), price_per_hour_of(other)
    return ratio * others / own


def price_per_hour_of(candidate: Candidate) -> float:
    """Of all its devices: in currency where the plan knows prices, else in devices."""
    return candidate.cost.price_per_hour or float(candidate.config.num_devices)


def price_per_million_tokens(candidate: Candidate) -> float | None:
    """In the currency of the cluster's prices; None where it has none."""
    e = candidate.estimate
    if e is None or not e.price_per_hour or not e.tokens_per_s:
        return None
    return e.price_per_hour / 3600 / e.tokens_per_s * 1e6


def price_of(group: NodeGroup, num_devices: int) -> float:
    """Price per hour of so many devices of a kind; 0 where it is not given."""
    return (group.price_per_hour or 0.0) * num_devices


def numbers_of_devices(options: SearchOptions, group: NodeGroup) -> tuple[int, ...]:
    """Numbers of devices to search, ascending, of one kind of node.

    Those that the user names, else for objective `step` all. For the others whole nodes: up to 8
    each number, above that powers of two, 3 times these, and all; powers of two and all alone where
    that is more than `MOST_SIZES`. On one node: the divisors of its devices.
    """
    total = group.num_nodes * group.devices_per_node
    if options.devices:
        return tuple(sorted({n for n in options.devices if n <= total}))
    if options.objective == "step":
        return (total,)
    if group.num_nodes == 1:
        return tuple(n for n in range(1, total + 1) if total % n == 0)
    powers = {1 << k for k in range(group.num_nodes.bit_length())}
    usual = powers | {3 * n for n in powers} | set(range(1, _ALL_NODES + 1)) | {group.num_nodes}
    nodes = sorted(n for n in usual if n <= group.num_nodes)
    if len(nodes) > MOST_SIZES:
        nodes = sorted({*powers, group.num_nodes})[-MOST_SIZES:]
    return tuple(n * group.devices_per_node for n in nodes)


def check_devices(options: SearchOptions, cluster: ClusterSpec) -> None:
    """Raise `UserError` for numbers of devices that cannot be used."""
    for number in options.devices:
        if number > cluster.num_devices:
            raise UserError(
                f"`--devices {number}`: cluster `{cluster.name}` has {cluster.num_devices}",
                hint="name fewer, or none for all",
            )
        if not any(_whole(number, g) for g in cluster.groups) and len(cluster.groups) == 1:
            per_node = cluster.groups[0].devices_per_node
            raise UserError(
                f"`--devices {number}` is no whole number of nodes with {per_node} devices each",
                hint=f"a part of one node, or like {per_node},{2 * per_node}",
            )


def _whole(number: int, group: NodeGroup) -> bool:
    return number % group.devices_per_node == 0 or number < group.devices_per_node


def order_of(config: ParallelConfig) -> tuple[object, ...]:
    """Among equals the simpler layout: fewer stages, less tensor parallel, no recomputation."""
    return (
        config.pp,
        config.tp,
        config.recompute != "none",
        config.schedule != "1f1b",
        config.cp,
        config.ep,
        config.zero,
        config.vpp,
        config.micro_batch,
    )
