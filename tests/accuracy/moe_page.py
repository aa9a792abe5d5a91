"""Expert placement, on recordings and on a stopwatch: writes docs/moe.md.

`python -P -m tests.accuracy.moe_page [FOLDER] [--data DIR]` (`make moe-bench`): FOLDER has the
results of `tests.lab.moe_bench`, which is run where they are missing. `--data`: recordings that are
not the project's own (a Mixtral trace, one made after DeepSeek-V3's published routing), which are
left out where it is not given.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launch.artifact import write_atomic
from launch.routing_files import read_any_routing
from profiler.routing.readers import Wanted
from profiler.routing.trace import RoutingTrace
from solvers.experts.problem import Copies, Ints, Problem, Traffic
from solvers.experts.score import count
from tests.accuracy import experts_bench
from tests.accuracy.readme import write_block
from tests.lab.moe_bench import Results

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "moe.md"
MARK = "moe: written by `make moe-bench`"
SETTLED = 300
_H100 = {"compute_s": 0.22020096e-6, "intra_s": 21504 / 450e9, "inter_s": 21504 / 50e9}
"""A choice of DeepSeek-V3's shape: 7168 x 2048, 400 TFLOP/s, 8-bit out and 16-bit back over NVLink
of 450 GB/s and a NIC of 50 GB/s."""
_MIXTRAL = {"compute_s": 0.88080384e-6, "intra_s": 8192 / 450e9, "inter_s": 8192 / 50e9}


WITHOUT_GROUPS = ("contiguous", "round_robin", "shadow", "eplb_global", "auto")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A recording on some ranks."""

    title: str
    file: str
    ranks: int
    per_node: int
    room: int
    """Slots per rank."""
    rates: dict[str, float]
    arrays: str = ""
    shuffle: bool = False
    held_out: float = 0.25
    groups: int = 1
    traffic: Traffic = "home"
    copies: Copies = "node"
    objective: str = "time"
    methods: tuple[str, ...] = (
        "contiguous",
        "round_robin",
        "shadow",
        "eplb",
        "eplb_global",
        "auto",
    )


OURS = tuple(
    Asked(
        title=f"examples/tiny-moe, 4 x 2 ranks, {room} slots each", file="", ranks=8, per_node=2,
        room=room, rates=_H100, methods=WITHOUT_GROUPS,
    )
    for room in (2, 3)
)  # fmt: skip
OTHERS = (
    *(
        Asked(
            title=f"Mixtral 8x7B, {nodes}, chained ({objective})", arrays="humaneval,gsm8k",
            file="mixtral_8x7b_32x8_top2.npz", ranks=4, per_node=per_node, room=2, rates=_MIXTRAL,
            shuffle=True, held_out=0.3, traffic="chained", objective=objective,
            methods=("contiguous", "eplb_global", "sweeps", "exact"),
        )
        for nodes, per_node, objective in (("2 x 2 ranks", 2, "time"), ("1 x 4 ranks", 4, "hops"))
    ),
    *(
        Asked(
            title=f"DeepSeek-V3-like, 60 x 256, 8 x 8 ranks, {64 * room} slots",
            file="deepseek_like_60x256_top8.npz", ranks=64, per_node=8, room=room, rates=_H100,
            groups=8,
        )
        for room in (4, 5)
    ),
)  # fmt: skip


def settled() -> RoutingTrace:
    """The project's own recording, after training has settled."""
    path = ROOT / "examples" / "tiny-moe" / "routing.npz"
    routing = read_any_routing(path, Wanted(num_experts=None, keys=()))
    assert isinstance(routing, RoutingTrace)
    assert routing.step is not None
    return routing.since(SETTLED)


def tokens_of(asked: Asked, data: Path | None) -> tuple[Ints, Ints]:
    """(tokens to place by, tokens to judge by)."""
    if asked.file:
        assert data is not None
        return experts_bench.read(data / asked.file, asked.arrays, asked.shuffle, asked.held_out)
    train, test = settled().parted(asked.held_out)
    return train.ids.astype(np.int64), test.ids.astype(np.int64)


def table(asked: Asked, data: Path | None) -> list[str]:
    """One recording: methods against each other."""
    ids, test = tokens_of(asked, data)
    problem = Problem(
        ids=ids, counts=count(ids, int(ids.max()) + 1), num_ranks=asked.ranks,
        ranks_per_node=asked.per_node, slots_per_rank=asked.room, traffic=asked.traffic,
        copies=asked.copies, num_groups=asked.groups, **asked.rates,
    )  # fmt: skip
    print(asked.title, file=sys.stderr, flush=True)
    how = Namespace(objective=asked.objective, effort=None)
    rows = [experts_bench.row(problem, test, how, method) for method in asked.methods]
    return [
        f"### {asked.title}", "", f"{len(ids):,} tokens to place by, {len(test):,} held out.", "",
        "| " + " | ".join(experts_bench.HEAD) + " |", "|" + "---|" * len(experts_bench.HEAD),
        *("| " + " | ".join(cells) + " |" for cells in rows), "",
    ]  # fmt: skip


def lab(results: Results) -> list[str]:
    """Measured and predicted, per model and topology."""
    lines = []
    for model, name, rows in each_of(results):
        by_layout: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_layout.setdefault(row["layout"], []).append(row)
        seen = {k: [statistics.median(r["steps"]) for r in own] for k, own in by_layout.items()}
        base = statistics.mean(seen["contiguous"])
        lines += [
            f"### {model}, {name}", "",
            "| placement | fullest rank | step | noise | predicted | error | exchange | "
            "against contiguous |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        errors = []
        for placement, own in by_layout.items():
            times = seen[placement]
            mean, predicted = statistics.mean(times), own[0]["predicted"]
            # The rank that waits least is the one the others wait for: what is left is exchange.
            least = statistics.mean(min(r.get("ep", 0.0) for r in row["by_axis"]) for row in own)
            errors.append(abs(predicted / mean - 1))
            lines.append(
                f"| {placement} | {own[0]['imbalance']:.2f} | {mean:.3f} s | "
                f"{(max(times) - min(times)) / mean:.0%} | {predicted:.3f} s | "
                f"{predicted / mean - 1:+.0%} | {least:.3f} s | {mean / base - 1:+.1%} |"
            )
        lines += ["", f"Median error {statistics.median(errors):.0%}.", ""]
    return lines


def each_of(results: Results) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Model, topology and rows."""
    for model, own in results.items():
        for name, rows in own.items():
            yield model.replace("-", " "), name, rows


def brief(results: Results) -> str:
    """Steps against others', for the README."""
    said = "Steps of small mixtures of experts in the lab, four hosts of two ranks, real routing:"
    head = (
        "model, topology", "ours, 8 spare slots, against contiguous", "against EPLB with 8",
        "ours, none spare, against contiguous", "against EPLB",
    )  # fmt: skip
    lines = [said, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    pairs = (("ours +8", "contiguous"), ("ours +8", "eplb +8"), ("ours", "contiguous"),
             ("ours", "eplb"))  # fmt: skip
    for model, name, rows in each_of(results):
        steps: dict[str, list[float]] = {}
        for row in rows:
            steps.setdefault(row["layout"], []).append(statistics.median(row["steps"]))
        mean = {layout: statistics.mean(times) for layout, times in steps.items()}
        cells = [f"{mean[a] / mean[b] - 1:+.1%}" for a, b in pairs]
        lines.append(f"| {model}, {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    path = folder / "results.json"
    if not path.exists():
        command = [sys.executable, "-P", "-m", "tests.lab.moe_bench", str(folder)]
        subprocess.run(command, check=True)
    results = json.loads(path.read_text())
    notes = (ROOT / "tests" / "accuracy" / "moe_notes.md").read_text().split("<!-- lab -->\n")
    given = [*OURS, *(OTHERS if args.data else ())]
    machine = f"{os.cpu_count()} cores; torch {torch.__version__}, gloo"
    head = f"Written by `make moe-bench` on a machine with {machine}; do not edit."
    lines = [
        "# Experts where tokens go", "", *textwrap.wrap(head, 99), "", notes[0].rstrip(), "",
        *(line for asked in given for line in table(asked, args.data)),
        notes[1].rstrip(), "", *lab(results), notes[2].rstrip(), "",
    ]  # fmt: skip
    write_atomic(PAGE, "\n".join(lines))
    write_block(MARK, brief(results))


if __name__ == "__main__":
    main()
