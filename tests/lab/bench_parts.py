"""What the lab's benchmarks share: a profile of one host, measured links, a run and its row."""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch.artifact import read_profile
from launch.collect import collect
from launch.recipe import FILE_NAME, Recipe
from planner.config import ParallelConfig
from planner.given import LayoutFile
from planner.plan import Plan
from profiler.catalog import load_device
from profiler.codec import canonical, encode
from profiler.job import JobSpec
from profiler.link_files import fit_line, links_document, read_links
from profiler.links import Links
from profiler.measure.assemble import assemble
from profiler.measure.cases import ProfileInputs, case_list
from profiler.measure.journal import open_journal
from profiler.model import ModelSpec
from profiler.profile import Environment, Profile
from tests.lab import bench_jobs
from tests.lab.lab import Lab
from tests.lab.ranks import Ranks
from tests.lab.topology import shipped

PER_HOST = 2
PROFILE_S = 40.0


def asked(description: str | None, *more: str) -> argparse.Namespace:
    """What a benchmark is asked for: `folder`, made where it is not there, `rounds`, `only`, and
    options of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    for name in ("only", *more):
        parser.add_argument(f"--{name}")
    found = parser.parse_args()
    found.folder = found.folder or Path(tempfile.mkdtemp())
    found.folder.mkdir(parents=True, exist_ok=True)
    return found


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layout in one order, to be run on a topology."""

    name: str
    order: str
    """`default` or `map`."""
    plan: Plan
    nic: str


def profiled(
    folder: Path, ranks: Ranks, model: ModelSpec, job: JobSpec,
    tp_degrees: tuple[int, ...] = (1, 2), micro_batches: tuple[int, ...] = (1, 2, 4),
) -> Profile:  # fmt: skip
    """Blocks and transfers of one host, measured where they are not yet in the folder."""
    path = folder / "profile.json"
    if not path.exists():
        inputs = ProfileInputs(
            model=model,
            seq_len=job.seq_len,
            precision=job.precision,
            micro_batches=micro_batches,
            tp_degrees=tp_degrees,
            num_processes=PER_HOST,
            memory_bytes=2 << 30,
            budget_s=PROFILE_S,
            environment=Environment(host="lab", device="cpu", backend="gloo"),
        )
        journal = open_journal(folder / "profile.partial", inputs, restart=False)
        with Lab(shipped("uniform")) as lab:
            placed = ("host0",) * PER_HOST
            ranks.run(
                lab, bench_jobs.profile, placed=placed, folder=str(journal.folder), timeout_s=900
            )
        done = journal.finished()
        results = [done[case.name] for case in case_list(inputs)]
        path.write_text(encode(assemble(inputs, load_device("cpu").device, results)))
    return read_profile(path)


def measured_links(folder: Path, lab: Lab, ranks: Ranks, nic: str) -> Links:
    """Links between the hosts through one NIC, and the hosts' speeds."""
    path = folder / f"links-{lab.topology.name}-{nic}.json"
    if not path.exists():
        names = tuple(host.name for host in lab.topology.hosts)
        n = len(names)
        rates, latencies = np.full((n, n), np.inf), np.zeros((n, n))
        found = ranks.run(lab, bench_jobs.links, placed=names, nic=nic, timeout_s=300)
        for i, row in enumerate(found):
            for j, points in enumerate(row):
                if points:
                    fit = fit_line(points)
                    rates[i, j], latencies[i, j] = fit.bytes_per_s, fit.latency_s
        speeds = np.array(ranks.run(lab, bench_jobs.speed)).reshape(n, PER_HOST).mean(axis=1)
        # Hosts that differ by less than the measurement's noise are alike.
        slow = np.round(np.median(speeds) / speeds * 5) / 5
        links = Links(hosts=names, bytes_per_s=rates, latency_s=latencies, slowdown=slow)
        path.write_text(canonical(links_document(links)))
    return read_links(path)


def layout_file(config: ParallelConfig, stages: Any, ranks: tuple[int, ...]) -> LayoutFile:
    """The layout as a user would give it."""
    names = ParallelConfig.__dataclass_fields__
    degrees = {name: getattr(config, name) for name in names}
    return LayoutFile(**degrees, stages=stages, ranks=ranks)


def run(
    folder: Path, lab: Lab, ranks: Ranks, case: Case, number: int, recipe: Recipe
) -> dict[str, Any]:
    """One run of a case, or what the folder has of it, if its experts were at the same places."""
    name = f"{case.name}-{case.order}-{number}".replace(" ", "-")
    kept = folder / lab.topology.name / f"{name}.json"
    experts = json.loads(encode(case.plan))["chosen"]["placement"].get("experts")
    if kept.exists():
        row: dict[str, Any] = json.loads(kept.read_text())
        if row.get("experts") == experts:
            return row
    kept.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as text:
        here = Path(text)
        (here / "plan.json").write_text(encode(case.plan))
        (here / FILE_NAME).write_text(encode(recipe))
        (here / "status.json").write_text("{}")  # we collect, not rank 0
        ranks.run(lab, bench_jobs.run, nic=case.nic, free=True, folder=text, timeout_s=300)
        observed = collect(case.plan, here, "complete")
    assert observed is not None
    cost = case.plan.chosen.cost
    row = {
        "layout": case.name,
        "order": case.order,
        "nic": case.nic,
        "predicted": cost.step_s,
        "steps": [s.step_s for s in observed.steps],
        "parts": {
            part: [
                getattr(cost, part),
                statistics.mean(getattr(s.split, part) for s in observed.steps),
            ]
            for part in ("compute_s", "p2p_s", "collective_s", "idle_s")
        },
        "by_axis": [rank.collective_by_axis for rank in observed.ranks],
        "ranks": list(case.plan.chosen.placement.ranks),
        "stages": [list(stage) for stage in case.plan.chosen.placement.stages],
        "experts": experts,
    }
    kept.write_text(json.dumps(row))
    return row


def say(name: str, row: dict[str, Any], done: int, total: int, begin: float) -> None:
    """Progress."""
    left = (time.monotonic() - begin) / done * (total - done)
    seen = statistics.median(row["steps"])
    print(
        f"{name} {done}/{total} {row['layout']} {row['order']}: {seen:.3f} s, predicted "
        f"{row['predicted']:.3f} ({row['predicted'] / seen - 1:+.0%}), {left:.0f} s left",
        file=sys.stderr,
        flush=True,
    )
