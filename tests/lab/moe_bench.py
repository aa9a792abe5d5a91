"""Placements of experts on clusters of unlike hosts: predicted against measured.

Two small mixtures of experts (that of examples/tiny-moe with wider experts, and one with more and
narrower ones) are trained on this machine, which records their routing. Experts are then placed by
that recording, as usual systems do and as the planner does, and the trained model goes on under
each placement on four hosts of two ranks, in rounds: a placement's runs have all others between
them. The learning rate is 0, so that routing stays what it was.
`python -P -m tests.lab.moe_bench [FOLDER] [--rounds N] [--model NAME] [--only TOPOLOGY]` keeps what
it has in FOLDER and goes on there; `tests.accuracy.moe_page` makes a page of it.
"""

import json
import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
EP, REPLICAS, STEPS = 8, 8, 3
"""Ranks; spare slots of a layer; timed steps of a run."""
TRAINED, SETTLED = 160, 120
"""Steps of training; after so many, routing is taken to have settled."""

Results = dict[str, dict[str, list[dict[str, Any]]]]
"""Model -> topology -> rows."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A model, and what a rank takes of it at once. Its experts are wide enough to be most of the
    work, as in models of use."""

    num_experts: int
    num_chosen: int
    width: int
    micro_batch: int
    topologies: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder and its part of the page."""
        return f"{self.num_experts}-experts"

    @property
    def job(self) -> JobSpec:
        """A step of one micro-batch per rank."""
        return JobSpec(global_batch=EP * self.micro_batch, seq_len=128, precision="fp32")


MIXTURES = (
    Mixture(
        num_experts=16, num_chosen=2, width=512, micro_batch=8,
        topologies=("uniform", "two-islands"),
    ),
    Mixture(
        num_experts=64, num_chosen=4, width=256, micro_batch=4,
        topologies=("uniform", "two-islands", "one-bad-nic"),
    ),
)  # fmt: skip


def trained(mixture: Mixture, folder: Path) -> tuple[Path, RoutingTrace]:
    """The trained model's run and the routing of its last steps, made where they are not there."""
    runs, job = folder / "runs", mixture.job
    config = json.loads((EXAMPLE / "config.json").read_text()) | {
        "intermediate_size": mixture.width,
        "num_local_experts": mixture.num_experts,
        "num_experts_per_tok": mixture.num_chosen,
    }
    (folder / "config.json").write_text(json.dumps(config))
    if not list(runs.glob("*/routing.npz")):
        ask = (
            "plan", "-m", folder / "config.json", "-c", "cpu-1x2", "--layout",
            EXAMPLE / "layout.yaml", "--seq-len", job.seq_len, "--global-batch", 16,
            "--precision", job.precision, "-o", folder / "plan.json",
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
    profile: Profile, job: JobSpec, routing: RoutingTrace
) -> Iterator[tuple[str, tuple[ExpertSlots, ...]]]:
    """Name and placement: usual ones, ours, and both with replicas."""
    for spare in (0, REPLICAS):
        ranks = ranks_of(profile, job, EP, spare)
        found = place(routing, ranks, held_out=0)
        ending = f" +{spare}" if spare else ""
        for name, placed in usual(found.problem).items():
            if name == "eplb" or not spare:
                yield name + ending, slots_of_layers(placed, EP)
        yield "ours" + ending, found.layers


def cases(mixture: Mixture, facts: Profile, routing: RoutingTrace) -> Iterator[Case]:
    """Every placement under the one layout, priced with its loads."""
    job = mixture.job
    for name, layers in placements(facts, job, routing):
        layout = LayoutFile(dp_replicate=EP, ep=EP, micro_batch=mixture.micro_batch, experts=layers)
        priced = with_layout(facts, routing, job, layers)
        plan = plan_for(facts.model, job, priced, layout, name)
        yield Case(name=name, order="placed", plan=plan, nic="eth0")


def main() -> None:
    """Measure what is missing."""
    args = asked(__doc__, "model")
    folder: Path = args.folder
    path = folder / "results.json"
    results: Results = json.loads(path.read_text()) if path.exists() else {}
    with Ranks() as ranks:
        for mixture in MIXTURES:
            if args.model in (None, mixture.name):
                for name, rows in measured(mixture, folder, ranks, args.rounds, args.only):
                    results.setdefault(mixture.name, {})[name] = rows
                    path.write_text(canonical(results))
    found = {
        f"{model}, {name}": summary(rows)
        for model, own in results.items()
        for name, rows in own.items()
    }
    print(json.dumps(found, indent=1))


def measured(
    mixture: Mixture, folder: Path, ranks: Ranks, rounds: int, only: str | None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(topology, rows) of a model, where wanted; links are the same for all models."""
    own = folder / mixture.name
    own.mkdir(exist_ok=True)
    source, routing = trained(mixture, own)
    model = resolve_model(str(own / "config.json"))
    # A run that goes on counts the steps before it; its first has no beginning.
    recipe = Recipe(steps=TRAINED - 1 + STEPS, learning_rate=0.0, resume=str(source))
    batches = tuple(mixture.micro_batch // n for n in (4, 2, 1))
    profile = profiled(own, ranks, model, mixture.job, tp_degrees=(1,), micro_batches=batches)
    for name in (only,) if only else mixture.topologies:
        with Lab(shipped(name)) as lab:
            links = measured_links(folder, lab, ranks, "eth0")
            facts = with_exchange(folder, lab, ranks, on_hosts(profile, links, PER_HOST))
            todo = list(cases(mixture, facts, routing))
            begin, rows = time.monotonic(), list[dict[str, Any]]()
            for number in range(rounds):
                for case in todo:
                    rows.append(run(own, lab, ranks, case, number, recipe))
                    say(name, rows[-1], len(rows), len(todo) * rounds, begin)
        yield name, [row | loads(case) for row, case in zip(rows, todo * rounds, strict=True)]


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
