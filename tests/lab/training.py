"""Runs of the reference runtime over a lab's hosts, without a launcher."""

from collections.abc import Sequence

from launch.artifact import write_atomic
from launch.collect import collect
from launch.observed import Observed
from launch.recipe import FILE_NAME, recipe_of
from planner.plan import Plan
from profiler.codec import encode
from tests.lab import bench_jobs
from tests.lab.box import SHARED
from tests.lab.lab import Lab
from tests.lab.ranks import Ranks


def trained(
    lab: Lab, ranks: Ranks, plan: Plan, name: str, hosts: Sequence[str], **recipe: object
) -> Observed:
    """What a run of `plan` with a rank on each of `hosts` shows; `name` is its folder's."""
    folder = lab.shared(name)
    (folder / "ranks").mkdir(parents=True)
    write_atomic(folder / "plan.json", encode(plan))
    write_atomic(folder / FILE_NAME, encode(recipe_of(recipe)))
    here = str(SHARED / folder.name)
    ranks.run(lab, bench_jobs.run, placed=hosts, folder=here, timeout_s=120, free=True)
    observed = collect(plan, folder, "complete")
    assert observed is not None
    return observed
