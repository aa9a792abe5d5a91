"""Plans and folders of runs for tests of launching; no process, no search."""

import json
import os
import socket
from pathlib import Path

from launch.recipe import recipe_of
from launch.scheduler.base import Job
from launch.status import Status, started_at, write_status
from planner.given import LayoutFile, plan_for
from planner.plan import Plan, plan_id
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster, resolve_model
from profiler.codec import encode, replace
from profiler.job import JobSpec
from tests.unit.records import step

MODEL = resolve_model("tiny-llama")
ASKED = JobSpec(global_batch=8, seq_len=64, precision="fp32")


def plan_of(cluster: str = "cpu-2x2", **placement: object) -> Plan:
    """Data-parallel over four devices of a cluster, placed as told."""
    profile = analytic_profile(MODEL, ASKED, resolve_cluster("cpu-2x2"))
    plan = plan_for(MODEL, ASKED, profile, LayoutFile(dp_replicate=4), "layout")
    plan = replace(plan, cluster=resolve_cluster(cluster))
    placed = replace(plan.chosen.placement, **placement)
    plan = replace(plan, chosen=replace(plan.chosen, placement=placed))
    return replace(plan, id=plan_id(plan))


def job_of(plan: Plan, run_dir: Path = Path("/shared/runs/p-1"), **recipe: object) -> Job:
    """A run of it."""
    return Job(plan=plan, recipe=recipe_of(recipe), run_dir=run_dir)


def run_of(plan: Plan, folder: Path, steps: int, **status: object) -> Path:
    """The folder of a run whose ranks have taken `steps` of ten steps of 2 s, launched by this
    process where `status` does not say otherwise."""
    (folder / "ranks").mkdir(parents=True)
    (folder / "plan.json").write_text(encode(plan))
    for rank in range(plan.chosen.config.num_devices):
        loss = 5.0 if rank == 0 else None
        rows = [step(k, 2.0 * k, 2.0 * k + 2, [], loss=loss) for k in range(steps)]
        header = {"rank": rank, "coordinate": {}, "host": "here", "torch": "2", "device": "cpu"}
        text = "".join(json.dumps(row) + "\n" for row in (header, *rows))
        (folder / "ranks" / f"rank-{rank:05d}.jsonl").write_text(text)
    plain = Status(
        plan_id=plan.id,
        state="running",
        host=socket.gethostname(),
        pid=os.getpid(),
        started=started_at(os.getpid()) or 0,
        num_steps=10,
        steps_done=0,
    )
    write_status(folder, replace(plain, **status))
    return folder
