"""Every layout on clusters of unlike hosts: predicted against measured; writes docs/lab.md.

For each topology the links between hosts and the hosts' speeds are measured in the lab; blocks are
profiled once, on a host. Then every layout that the planner covers is run with its ranks in the
order of the hosts, and as the planner maps them, in rounds: a layout's runs have all others between
them. `python -P -m tests.lab.bench [FOLDER] [--rounds N] [--only TOPOLOGY]` keeps what it has in
FOLDER and goes on there.
"""

import os
import textwrap
import time
from pathlib import Path
from typing import Any

import torch

from launch.recipe import Recipe
from planner.given import plan_for
from planner.measured import MeasuredCosts
from planner.placed import on_hosts
from planner.plan import SearchOptions
from planner.search import make_plan
from profiler.catalog import resolve_model
from profiler.job import JobSpec
from profiler.links import Links
from profiler.profile import Profile
from tests.accuracy.readme import write_block
from tests.lab import bench_page
from tests.lab.bench_parts import Case, asked, layout_file, measured_links, profiled, run, say
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
STEPS = 2


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


def main() -> None:
    """Measure what is missing; write the page where all is there."""
    args = asked(__doc__)
    folder: Path = args.folder
    results: dict[str, list[dict[str, Any]]] = {}
    names = (args.only,) if args.only else TOPOLOGIES
    with Ranks() as ranks:
        profile = profiled(folder, ranks, resolve_model(str(MODEL)), JOB)
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
                            ran[same] = run(folder, lab, ranks, case, number, Recipe(steps=STEPS))
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


if __name__ == "__main__":
    main()
