"""Every layout on clusters of unlike hosts: predicted against measured; writes docs/lab.md.

For each topology the links between hosts and the hosts' speeds are measured in the lab; blocks are
profiled once, on a host. Then every layout that the planner covers is run with its ranks in the
order of the hosts, and as the planner maps them, in rounds: a layout's runs have all others between
them. `python -P -m tests.lab.bench [FOLDER] [--rounds N] [--only TOPOLOGY]` keeps what it has in
FOLDER and goes on there.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launch.artifact import read_profile
from launch.collect import collect
from launch.recipe import FILE_NAME, Recipe
from planner.config import ParallelConfig
from planner.given import LayoutFile, plan_for
from planner.measured import MeasuredCosts
from planner.placed import on_hosts
from planner.plan import Plan, SearchOptions
from planner.search import make_plan
from profiler.catalog import load_device, resolve_model
from profiler.codec import canonical, encode
from profiler.job import JobSpec
from profiler.link_files import fit_line, links_document, read_links
from profiler.links import Links
from profiler.measure.assemble import assemble
from profiler.measure.cases import ProfileInputs, case_list
from profiler.measure.journal import open_journal
from profiler.profile import Environment, Profile
from tests.accuracy.readme import write_block
from tests.lab import bench_jobs, bench_page
from tests.lab.lab import Lab
from tests.lab.ranks import Ranks
from tests.lab.topology import shipped

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "lab" / "bench_model.json"
TOPOLOGIES = (
    "uniform", "two-islands", "one-bad-link", "one-bad-nic", "slow-host", "mixed-nics",
)  # fmt: skip
MARK = "lab: written by `make lab-bench`"
JOB = JobSpec(global_batch=16, seq_len=128, precision="fp32")
PINS = {"schedule": ("1f1b",), "recompute": ("none",), "mbs": ("1", "4")}
OPTIONS = SearchOptions(pin=PINS, forbid={}, top=1000)
FAR = 5.0
"""Layouts that take so many times as long as the chosen one, as predicted, are not run."""
STEPS, PER_HOST = 2, 2
PROFILE_S = 40.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layout in one order, to be run on a topology."""

    name: str
    order: str
    """`default` or `map`."""
    plan: Plan
    nic: str


def profiled(folder: Path, ranks: Ranks) -> Profile:
    """Blocks and transfers of one host, measured where they are not yet in the folder."""
    path = folder / "profile.json"
    if not path.exists():
        inputs = ProfileInputs(
            model=resolve_model(str(MODEL)),
            seq_len=JOB.seq_len,
            precision=JOB.precision,
            micro_batches=(1, 2, 4),
            tp_degrees=(1, 2),
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


def cases(profile: Profile, by_nic: dict[str, Links]) -> list[Case]:
    """Every layout in the default order on the first NIC, and as the planner has it on the best."""
    on = {nic: on_hosts(profile, links) for nic, links in by_nic.items()}
    first = next(iter(on))
    plans = {nic: make_plan(profile.model, JOB, facts, OPTIONS) for nic, facts in on.items()}
    best = min(plans, key=lambda nic: plans[nic].chosen.cost.step_s)
    costs = MeasuredCosts(profile.model, JOB, on[first])
    found = []
    chosen = plans[best].chosen
    for candidate in (chosen, *plans[best].alternatives):
        if candidate.cost.step_s > FAR * chosen.cost.step_s:
            break  # the best come first
        config = candidate.config
        plain = costs.in_order(config)
        assert plain is not None
        stages = {"default": plain.placement, "map": candidate.placement}
        for order, placement in stages.items():
            nic = first if order == "default" else best
            layout = layout_file(config, placement.stages, placement.ranks)
            plan = plan_for(profile.model, JOB, on[nic], layout, config.label)
            found.append(Case(name=config.label, order=order, plan=plan, nic=nic))
    return found


def layout_file(config: ParallelConfig, stages: Any, ranks: tuple[int, ...]) -> LayoutFile:
    """The layout as a user would give it."""
    names = ParallelConfig.__dataclass_fields__
    degrees = {name: getattr(config, name) for name in names}
    return LayoutFile(**degrees, stages=stages, ranks=ranks)


def run(folder: Path, lab: Lab, ranks: Ranks, case: Case, number: int) -> dict[str, Any]:
    """One run of a case, or what the folder has of it."""
    name = f"{case.name}-{case.order}-{number}".replace(" ", "-")
    kept = folder / lab.topology.name / f"{name}.json"
    if kept.exists():
        row: dict[str, Any] = json.loads(kept.read_text())
        return row
    kept.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as text:
        here = Path(text)
        (here / "plan.json").write_text(encode(case.plan))
        (here / FILE_NAME).write_text(encode(Recipe(steps=STEPS)))
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
        "ranks": list(case.plan.chosen.placement.ranks),
        "stages": [list(stage) for stage in case.plan.chosen.placement.stages],
    }
    kept.write_text(json.dumps(row))
    return row


def main() -> None:
    """Measure what is missing; write the page where all is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}
    names = (args.only,) if args.only else TOPOLOGIES
    with Ranks() as ranks:
        profile = profiled(folder, ranks)
        for name in names:
            with Lab(shipped(name)) as lab:
                nics = [nic.name for nic in lab.topology.hosts[0].nics]
                by_nic = {nic: measured_links(folder, lab, ranks, nic) for nic in nics}
                todo = cases(profile, by_nic)
                begin = time.monotonic()
                rows = []
                for number in range(args.rounds):
                    ran: dict[tuple[str, str], dict[str, Any]] = {}
                    for case in todo:
                        same = (case.plan.id, case.nic)  # mapped as the hosts' order is
                        if same not in ran:
                            ran[same] = run(folder, lab, ranks, case, number)
                            say(name, ran[same], len(rows) + 1, len(todo) * args.rounds, begin)
                        rows.append(ran[same] | {"order": case.order})
                results[name] = rows
    if not args.only:
        notes = (ROOT / "tests" / "lab" / "bench_notes.md").read_text()
        text = bench_page.page(results, intro(profile, results, args.rounds), notes)
        (ROOT / "docs" / "lab.md").write_text(text)
        verdicts = {name: bench_page.judge(bench_page.gather(r)) for name, r in results.items()}
        said = "Every layout of a small Llama on six clusters of unlike hosts, four of two ranks:"
        write_block(MARK, f"{said}\n\n{bench_page.brief(verdicts)}")


def intro(profile: Profile, results: dict[str, list[dict[str, Any]]], rounds: int) -> str:
    """What was done, and on what."""
    layouts = len({row["layout"] for rows in results.values() for row in rows})
    model = profile.model
    done = (
        "Written by `make lab-bench`; do not edit. Four hosts of two ranks in a lab of network "
        f"namespaces on one machine ({os.cpu_count()} cores; torch {torch.__version__}, gloo), "
        f"each rank with a fifth of a core. A Llama of {model.num_layers} layers, "
        f"{model.num_params / 1e6:.1f} M parameters, global batch {JOB.global_batch} x "
        f"{JOB.seq_len} tokens, fp32. Blocks were profiled once on one host; links and speeds of "
        "hosts were measured on each topology before its runs; nothing is fitted to the runs. All "
        f"{layouts} layouts that the planner covers with 1f1b, micro-batches of 1 and 4, and no "
        "recomputation (memory is ample), and that are not predicted to take over "
        f"{FAR:g} times as long as the best, ran in the hosts' order and with their ranks mapped: "
        f"{rounds} rounds of {STEPS} timed steps, all others between the runs of one. `noise` is "
        "the distance between rounds."
    )
    return f"\n{textwrap.fill(done, 99, break_on_hyphens=False)}\n"


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


if __name__ == "__main__":
    main()
