"""Placements of experts on clusters of unlike hosts: predicted against measured.

A small mixture of experts (that of examples/tiny-moe with wider experts) is trained on this
machine, which records its routing. Experts are then placed by that recording, as usual systems do
and as the planner does, and the trained model goes on under each placement on four hosts of two
ranks, in rounds: a placement's runs have all others between them. The learning rate is 0, so that
routing stays what it was.
`python -P -m tests.lab.moe_bench [FOLDER] [--rounds N] [--only TOPOLOGY]` keeps what it has in
FOLDER and goes on there; `tests.accuracy.moe_page` makes a page of it.
"""

import json
import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.recipe import Recipe
from launch.routing_files import read_any_routing
from planner.config import ExpertSlots
from planner.expert_placement import place, slots_of_layers, usual
from planner.given import LayoutFile, plan_for
from planner.placed import on_hosts
from planner.routed_plan import ranks_of, with_layout
from profiler.catalog import resolve_model
from profiler.codec import canonical, replace
from profiler.job import JobSpec
from profiler.profile import Profile, Timing, TransferEntry
from profiler.routing.readers import Wanted
from profiler.routing.trace import RoutingTrace
from tests.commands import command
from tests.lab import bench_jobs
from tests.lab.bench_parts import PER_HOST, Case, asked, measured_links, profiled, run, say
from tests.lab.lab import Lab
from tests.lab.ranks import Ranks
from tests.lab.topology import shipped

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "tiny-moe"
TOPOLOGIES = ("uniform", "two-islands")
JOB = JobSpec(global_batch=64, seq_len=128, precision="fp32")
EP, REPLICAS, STEPS, MICRO_BATCH = 8, 8, 3, 8
"""Ranks; spare slots of a layer; timed steps of a run; sequences of a micro-batch."""
WIDTH, TRAINED, SETTLED = 512, 160, 120
"""Of an expert: as in models of use, experts are most of the work. Steps of training; after so
many, routing is taken to have settled."""


def trained(folder: Path) -> tuple[Path, RoutingTrace]:
    """The trained model's run and the routing of its last steps, made where they are not there."""
    runs = folder / "runs"
    config = json.loads((EXAMPLE / "config.json").read_text()) | {"intermediate_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    if not list(runs.glob("*/routing.npz")):
        ask = (
            "plan", "-m", folder / "config.json", "-c", "cpu-1x2", "--layout",
            EXAMPLE / "layout.yaml", "--seq-len", JOB.seq_len, "--global-batch", 16,
            "--precision", JOB.precision, "-o", folder / "plan.json",
        )  # fmt: skip
        train = (
            "launch", folder / "plan.json", "--recipe", EXAMPLE / "recipe.yaml", "--runs", runs,
            "--steps", TRAINED - 2, "--checkpoint-every", TRAINED,
        )  # fmt: skip
        for words in (ask, train):
            subprocess.run(command(*words), check=True, stdout=subprocess.DEVNULL)
    (path,) = runs.glob("*/routing.npz")
    routing = read_any_routing(path, Wanted(num_experts=None, keys=()))
    assert isinstance(routing, RoutingTrace)
    assert routing.step is not None
    return path.parent, routing.since(SETTLED)


def with_exchange(folder: Path, lab: Lab, ranks: Ranks, facts: Profile) -> Profile:
    """The profile with what all-to-alls of all ranks take on these hosts."""
    path = folder / f"exchange-{lab.topology.name}.json"
    if not path.exists():
        (points, *_) = ranks.run(lab, bench_jobs.exchange, timeout_s=300)
        path.write_text(json.dumps(points))
    entries = tuple(
        TransferEntry(
            op="all_to_all", ranks=tuple(range(EP)), scope="cluster", num_bytes=num_bytes,
            time=Timing(median_s=seconds, repeats=1), source="measured",
        )
        for num_bytes, seconds in json.loads(path.read_text())
    )  # fmt: skip
    return replace(facts, transfers=facts.transfers + entries)


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
    args = asked(__doc__)
    folder: Path = args.folder
    source, routing = trained(folder)
    model = resolve_model(str(folder / "config.json"))
    # A run that goes on counts the steps before it; its first has no beginning.
    recipe = Recipe(steps=TRAINED - 1 + STEPS, learning_rate=0.0, resume=str(source))
    results: dict[str, list[dict[str, Any]]] = {}
    with Ranks() as ranks:
        profile = profiled(
            folder, ranks, model, JOB, tp_degrees=(1,), micro_batches=(2, 4, MICRO_BATCH)
        )
        for name in (args.only,) if args.only else TOPOLOGIES:
            with Lab(shipped(name)) as lab:
                links = measured_links(folder, lab, ranks, "eth0")
                facts = with_exchange(folder, lab, ranks, on_hosts(profile, links, PER_HOST))
                todo = list(cases(facts, routing))
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
    """What is predicted now, of a run that may be kept from before."""
    (load,) = case.plan.profile.expert_loads
    return {"imbalance": load.imbalance, "predicted": case.plan.chosen.cost.step_s}


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
