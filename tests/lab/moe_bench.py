"""Placements of experts on clusters of unlike hosts: predicted against measured.

A small mixture of experts is trained on this machine (examples/tiny-moe), which records its
routing. Experts are then placed by that recording, as usual systems do and as the planner does, and
the trained model goes on under each placement on four hosts of two ranks, in rounds: a placement's
runs have all others between them. The learning rate is 0, so that routing stays what it was.
`python -P -m tests.lab.moe_bench [FOLDER] [--rounds N] [--only TOPOLOGY]` keeps what it has in
FOLDER and goes on there; `tests.accuracy.moe_page` makes a page of it.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.recipe import Recipe, read_recipe
from launch.routing_files import read_any_routing
from planner.config import ExpertSlots
from planner.expert_placement import place, slots_of_layers, usual
from planner.given import LayoutFile, plan_for
from planner.placed import on_hosts
from planner.routed_plan import ranks_of, with_layout
from profiler.catalog import resolve_model
from profiler.codec import canonical
from profiler.job import JobSpec
from profiler.profile import Profile
from profiler.routing.readers import Wanted
from profiler.routing.trace import RoutingTrace
from tests.lab.bench_parts import PER_HOST, Case, measured_links, profiled, run, say
from tests.lab.lab import Lab
from tests.lab.ranks import Ranks
from tests.lab.topology import shipped

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "tiny-moe"
TOPOLOGIES = ("uniform", "two-islands", "one-bad-nic")
JOB = JobSpec(global_batch=64, seq_len=128, precision="fp32")
EP, REPLICAS, STEPS, SETTLED, MICRO_BATCH = 8, 8, 3, 300, 8
"""Ranks; spare slots of a layer; timed steps of a run; training steps after which routing has
nearly settled; sequences of a micro-batch."""


def trained(folder: Path) -> tuple[Path, RoutingTrace]:
    """The trained model's run and the routing of its last steps, made where they are not there."""
    runs = folder / "runs"
    if not list(runs.glob("*/routing.npz")):
        ask = (
            "plan", "-m", EXAMPLE / "config.json", "-c", "cpu-1x2", "--layout",
            EXAMPLE / "layout.yaml", "--seq-len", JOB.seq_len, "--global-batch", 16,
            "--precision", JOB.precision, "-o", folder / "plan.json",
        )  # fmt: skip
        train = (
            "launch", folder / "plan.json", "--recipe", EXAMPLE / "recipe.yaml", "--runs", runs,
            "--checkpoint-every", 400,
        )  # fmt: skip
        for words in (ask, train):
            command = [sys.executable, "-P", "-m", "launch.cli.app", *map(str, words)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (path,) = runs.glob("*/routing.npz")
    routing = read_any_routing(path, Wanted(num_experts=None, keys=()))
    assert isinstance(routing, RoutingTrace)
    assert routing.step is not None
    late = routing.step >= SETTLED
    return path.parent, RoutingTrace(
        ids=routing.ids[late], num_experts=routing.num_experts, step=routing.step[late]
    )


def placements(
    profile: Profile, routing: RoutingTrace
) -> Iterator[tuple[str, tuple[ExpertSlots, ...]]]:
    """Name and placement: usual ones, ours, and both with replicas."""
    for spare in (0, REPLICAS):
        ranks = ranks_of(profile, JOB, EP, spare)
        found = place(routing, ranks, held_out=0)
        ending = f" +{spare}" if spare else ""
        for name, placed in usual(found.problem).items():
            if name == "eplb" or not spare:
                yield name + ending, slots_of_layers(placed, EP)
        yield "ours" + ending, found.layers


def cases(facts: Profile, routing: RoutingTrace) -> Iterator[Case]:
    """Every placement under the one layout, priced with its loads."""
    for name, layers in placements(facts, routing):
        layout = LayoutFile(dp_replicate=EP, ep=EP, micro_batch=MICRO_BATCH, experts=layers)
        priced = with_layout(facts, routing, JOB, layers)
        plan = plan_for(facts.model, JOB, priced, layout, name)
        yield Case(name=name, order="placed", plan=plan, nic="eth0")


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    source, routing = trained(folder)
    model = resolve_model(str(EXAMPLE / "config.json"))
    done = read_recipe(EXAMPLE / "recipe.yaml")
    # A run that goes on counts the steps before it; its first has no beginning.
    recipe = Recipe(
        steps=done.steps + 1 + STEPS, warmup=done.warmup, learning_rate=0.0, resume=str(source)
    )
    results: dict[str, list[dict[str, Any]]] = {}
    with Ranks() as ranks:
        profile = profiled(
            folder, ranks, model, JOB, tp_degrees=(1,), micro_batches=(2, 4, MICRO_BATCH)
        )
        for name in (args.only,) if args.only else TOPOLOGIES:
            with Lab(shipped(name)) as lab:
                links = measured_links(folder, lab, ranks, "eth0")
                todo = list(cases(on_hosts(profile, links, PER_HOST), routing))
                begin, rows = time.monotonic(), list[dict[str, Any]]()
                for number in range(args.rounds):
                    for case in todo:
                        rows.append(run(folder, lab, ranks, case, number, recipe))
                        say(name, rows[-1], len(rows), len(todo) * args.rounds, begin)
                results[name] = [
                    row | loads(case) for row, case in zip(rows, todo * args.rounds, strict=True)
                ]
    (folder / "results.json").write_text(canonical(results))
    print(json.dumps({name: summary(rows) for name, rows in results.items()}, indent=1))


def loads(case: Case) -> dict[str, float]:
    """What the placement leaves to the fullest rank, as predicted."""
    (load,) = case.plan.profile.expert_loads
    return {"imbalance": load.imbalance}


def summary(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Placement -> predicted and measured seconds (the fastest round), and their ratio."""
    found: dict[str, list[float]] = {}
    for row in rows:
        seen = sorted(row["steps"])[len(row["steps"]) // 2]
        before = found.get(row["layout"], [0.0, math.inf, 0.0])[1]
        best = min(before, seen)
        found[row["layout"]] = [row["predicted"], best, row["predicted"] / best - 1]
    return found


if __name__ == "__main__":
    main()
