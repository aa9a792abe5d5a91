"""Mapping of ranks to hosts: against long annealing on the same objective, and at scale.

`python -P -m tests.accuracy.map_bench [--links FILE] [--anneal-s SECONDS] [--write]`; `--write`
keeps docs/benchmarks/mapping.md. The annealing is the usual one (Kirkpatrick et al. 1983; that of
Pipette, arXiv:2405.18093): one order, swaps, reversals and moves at random, a temperature that
falls geometrically, from the default order, at the default box. `--links` adds a measured matrix.
"""

import argparse
import math
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.artifact import write_atomic
from launch.cli.terminal import note
from planner.config import ParallelConfig
from planner.mapping import Mapped, map_ranks
from planner.mapping_flows import costs_of, flows_of
from planner.mesh import Mesh
from planner.traffic import Traffic, traffic_of
from profiler.catalog import resolve_model
from profiler.job import JobSpec
from profiler.link_files import read_links
from profiler.links import Links
from solvers.mapping_problem import Ints, Problem

MADE_S = 60.0
"""Annealing of hosts that nobody measured, at most."""
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "mapping.md"
PER_NODE, INSIDE = 8, 200e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model's layout on hosts with eight devices."""

    name: str
    model: str
    config: ParallelConfig
    links: Links

    @property
    def mesh(self) -> Mesh:
        """In the default order, axes of one rank left out."""
        mesh = Mesh.of(self.config)
        axes = {name: size for name, size in mesh.axes.items() if size > 1}
        return Mesh(axes=axes, ep=mesh.ep, etp=mesh.etp)

    @property
    def traffic(self) -> tuple[Traffic, ...]:
        """Of 8 micro-batches per pipeline rank."""
        batch = self.config.num_replicas * self.config.pp * 8
        job = JobSpec(global_batch=batch, seq_len=4096)
        return traffic_of(resolve_model(self.model), self.config, job)


def pods(num: int, seed: int = 0) -> Links:
    """Hosts in pods of 16, in no order, with half the rate between pods; rates spread by 15 %, and
    one host of 32 at 0.3 of its rate: a large cluster as `ibnetdiscover` and a bad day make it."""
    random = np.random.default_rng(seed)
    rate = 20e9 * random.uniform(0.85, 1, (num, num))
    pod = random.permutation(num) // 16
    rate = np.where(pod[:, None] == pod[None], rate, rate / 2)
    slow = random.choice(num, max(1, num // 32), replace=False)
    rate[slow] *= 0.3
    np.fill_diagonal(rate, INSIDE)
    names = tuple(f"host{k}" for k in range(num))
    return Links(hosts=names, bytes_per_s=rate, latency_s=np.full((num, num), 5e-6))


def config(*, pp: int, dp: int, shard: int = 1, cp: int = 1, ep: int = 1) -> ParallelConfig:
    """With tp 8."""
    return ParallelConfig(
        pp=pp, dp_replicate=dp, dp_shard=shard, cp=cp, tp=8, ep=ep, micro_batch=1,
        recompute="none", schedule="1f1b",
    )  # fmt: skip


def small(links: Links, name: str) -> list[Case]:
    """All pipelines of 16 hosts."""
    return [
        Case(name=f"{name}, pp{pp} dp{16 // pp} tp8", model="gpt3-175b",
             config=config(pp=pp, dp=16 // pp), links=links)
        for pp in (2, 4, 8, 16)
    ]  # fmt: skip


def anneal(case: Case, seconds: float, seed: int = 0) -> tuple[float, int]:
    """(seconds of a step's communication, orders looked at)."""
    num = len(case.links.hosts)
    flows, kinds = flows_of(case.mesh, case.traffic, np.arange(case.mesh.num_ranks) // PER_NODE)
    problem = Problem(flows, costs_of(kinds, case.links))
    random = np.random.default_rng(seed)
    place: Ints = np.arange(num)
    now = best = float(problem.seconds(place[None])[0][0])
    begin, done, looked = time.process_time(), 0.0, 0
    while done < 1:
        temperature = now * 0.05 * 10 ** (-5 * done)
        for _ in range(200):
            a, b = (int(k) for k in random.integers(0, num, 2))
            moved, kind = place.copy(), random.integers(0, 3)
            if kind == 0:
                moved[[a, b]] = moved[[b, a]]
            elif kind == 1:
                low, high = min(a, b), max(a, b) + 1
                moved[low:high] = moved[low:high][::-1]
            else:
                moved = np.insert(np.delete(place, a), b, place[a])
            found = float(problem.seconds(moved[None])[0][0])
            if found < now or random.random() < math.exp((now - found) / temperature):
                place, now = moved, found
                best = min(best, now)
        looked += 200
        done = (time.process_time() - begin) / seconds
    return best, looked


def timed(case: Case, *, boxes: bool) -> tuple[Mapped, float]:
    """(result, seconds of CPU)."""
    begin = time.process_time()
    mapped = map_ranks(case.mesh, case.traffic, case.links, PER_NODE, boxes=boxes)
    return mapped, time.process_time() - begin


def against_annealing(cases: list[tuple[Case, float]]) -> list[str]:
    """Rows of the first table, each with its seconds of annealing."""
    lines = [
        "| case | default | annealed | ours | CPU | to annealed | proven gap |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, seconds in cases:
        mapped, cpu_s = timed(case, boxes=False)
        annealed, looked = anneal(case, seconds)
        ours = mapped.best.seconds
        lines.append(
            f"| {case.name} | {mapped.default.seconds:.4f} s "
            f"| {annealed:.4f} s ({seconds:.0f} s, {looked:,} orders) | {ours:.4f} s "
            f"| {cpu_s:.2f} s "
            f"| {ours / annealed - 1:+.3%} | {mapped.gap:.1%} |"
        )
        note(lines[-1])
    return lines


def at_scale() -> list[str]:
    """Rows of the second table."""
    cases = (
        (128, config(pp=8, dp=2, shard=4, cp=2, ep=8)),
        (512, config(pp=16, dp=4, shard=4, cp=2, ep=8)),
        (2048, config(pp=16, dp=8, shard=8, cp=2, ep=8)),
    )
    lines = [
        "| GPUs | layout | default | ours | gain | proven gap | CPU | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for num, layout in cases:
        case = Case(name="", model="deepseek-v3", config=layout, links=pods(num))
        mapped, cpu_s = timed(case, boxes=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        before, after = mapped.default.seconds, mapped.best.seconds
        lines.append(
            f"| {num * PER_NODE:,} | {layout.label} | {before:.1f} s | {after:.1f} s "
            f"| {before / after:.2f} | {mapped.gap:.1%} | {cpu_s:.1f} s | {peak:.2f} GiB |"
        )
        note(lines[-1])
    return lines


def main() -> None:
    """Print the page, or keep it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--links", type=Path)
    parser.add_argument("--anneal-s", type=float, default=60.0)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    cases = [(case, min(args.anneal_s, MADE_S)) for case in small(pods(16), "16 made hosts")]
    if args.links:
        measured = read_links(args.links).with_inside(INSIDE)
        cases = [(c, args.anneal_s) for c in small(measured, "measured InfiniBand")] + cases
    text = "\n".join([
        "# Mapping ranks to hosts", "",
        "Seconds that a step communicates, nothing hidden behind computation, as the mapping's",
        "own model says (planner/mapping_flows.py): how good the search is, not how right the",
        "model. One core. Written by `python -P -m tests.accuracy.map_bench --write"
        f" --anneal-s {args.anneal_s:g}{' --links FILE' if args.links else ''}`.", "",
        "## Against annealing", "",
        "The same objective, nodes with consecutive ranks. GPT-3 175B, 8 devices per host.", "",
        *against_annealing(cases), "",
        "## At scale", "",
        "DeepSeek-V3, ep 8, hosts in pods of 16 with half the rate between them, one of 32 slow,",
        "in no order; what a node holds is chosen as well.", "",
        *at_scale(), "",
    ])  # fmt: skip
    if args.write:
        write_atomic(PAGE, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
