"""A profile from the catalogue alone: no entries, but the constants that time any layout.

The time model (`planner.timing`) computes from shapes, the cluster's rates and these constants,
which were fitted to published runs (`profiler.catalog.constants`). Nothing here was measured.
"""

from profiler.catalog.constants import load_software, resolve_constants
from profiler.cluster import ClusterSpec
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Environment, Profile

DEFAULT_SOFTWARE = "pytorch"
"""What `launch` runs."""


def analytic_profile(
    model: ModelSpec, job: JobSpec, cluster: ClusterSpec, software: str | None = None
) -> Profile:
    """Profile of `model` on `cluster`; `UserError` for a software that the catalogue lacks."""
    group = cluster.groups[0]
    name = software or DEFAULT_SOFTWARE
    return Profile(
        source="analytic",
        model=model,
        seq_len=job.seq_len,
        precision=job.precision,
        cluster=cluster,
        environment=Environment(device=group.device.name),
        blocks=(),
        transfers=(),
        software=load_software(name).facts(name),
        constants=resolve_constants(group, name),
        group_constants=tuple(resolve_constants(g, name) for g in cluster.groups)
        if len(cluster.groups) > 1
        else (),
    )
