"""The space of a small job, laid out and simulated exhaustively: what a search is compared with."""

from collections import Counter

from planner.layouts import Layouts
from planner.plan import SearchOptions
from planner.simulate import simulate
from planner.space import RULES, enumerate_layouts
from profiler.analytic import analytic_profile
from profiler.cluster import ClusterSpec
from profiler.codec import replace

ANY = SearchOptions(pin={}, forbid={})


def pins(**axes):
    """Options that pin axes to values."""
    return SearchOptions(pin={k: tuple(map(str, v)) for k, v in axes.items()}, forbid={})


def layouts(costs, options=ANY, rejected=None):
    """All layouts of the space that break no rule."""
    chunks = enumerate_layouts(
        costs.profile.cluster.num_devices,
        costs.job,
        costs.model,
        options,
        costs.coverage,
        devices_per_node=costs.node.devices_per_node,
        rejected=rejected if rejected is not None else Counter(),
        rules=(*RULES, *costs.rules),
    )
    return Layouts.concat(list(chunks))


def simulated(costs, space, stages=None):
    """(seconds, layout, prepared) of each of the layouts that fit, the fastest first."""
    found = []
    for config in space.configs():
        prepared = costs.prepare(config, stages)
        if prepared is not None and prepared.peak_bytes <= costs.capacity_bytes:
            seconds = simulate(prepared.program, prepared.sharing).step_s
            found.append((seconds, config, prepared))
    return sorted(found, key=lambda each: each[0])


def best_of_kin(found):
    """Seconds of the layouts, of those that differ in sharding alone the best."""
    kin = {}
    for seconds, config, _ in found:
        kin.setdefault(replace(config, dp_replicate=1, dp_shard=1, zero=0), seconds)
    return list(kin.values())


def with_group(cluster: ClusterSpec, **changes: object) -> ClusterSpec:
    """The cluster with other fields of its nodes."""
    return replace(cluster, groups=(replace(cluster.groups[0], **changes),))


def with_memory(cluster: ClusterSpec, num_bytes: int) -> ClusterSpec:
    """The cluster with so much memory per device."""
    device = replace(cluster.groups[0].device, memory_bytes=num_bytes)
    return with_group(cluster, device=device)


def analytic(model, job, cluster, software="pytorch"):
    """Its profile by the software that does everything."""
    return analytic_profile(model, job, cluster, software)
