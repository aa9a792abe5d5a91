"""What recording routing costs a run, on one process.

Trainers of the same model and data take turns, step by step, in one process: one that records no
routing, and one for each share of tokens. What counts is the ratio of neighbouring steps, whose
median does not drift with the machine; and seconds are those of the processor, of which a step on
one process takes as many however busy the machine is.

`python -P -m tests.accuracy.routing_cost [--write]`; `--write` keeps the result in
docs/benchmarks/routing.md.
"""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from launch.runtime.routing_log import RoutingLog
from profiler.huggingface import read_model
from profiler.model import ModelSpec
from tests.accuracy.lean import (
    CONFIG,
    JOB,
    MICRO_BATCHES,
    ROOT,
    alone,
    asked_to_write,
    in_turn,
    keep,
    rows,
    runtime_loop,
)

PAGE = ROOT / "docs" / "benchmarks" / "routing.md"
EXAMPLE = ROOT / "examples" / "tiny-moe" / "config.json"
SHARES = (0.01, 0.05, 1.0)
PAIRS = 60
BASE = "none"


class _Timed(RoutingLog):
    """Adds up what its own calls take; a class of its own per share."""

    spent = 0.0
    steps = 0

    def begin(self, step: int, device: torch.device) -> None:
        self._add(lambda: RoutingLog.begin(self, step, device))
        type(self).steps += 1

    def _note(self, layer: int, ids: Tensor, kept: Tensor | None) -> None:
        self._add(lambda: RoutingLog._note(self, layer, ids, kept))

    def end(self) -> None:
        self._add(lambda: RoutingLog.end(self))

    def _add(self, call: Callable[[], None]) -> None:
        start = time.process_time()
        call()
        type(self).spent += time.process_time() - start


def compare(model: ModelSpec, folder: Path) -> list[str]:
    """Rows of each share."""
    loops = {BASE: runtime_loop(model, recording=True)}
    logs: dict[str, type[_Timed]] = {}
    for share in SHARES:
        name = f"{share:.0%} of tokens"
        logs[name] = type("Log", (_Timed,), {})
        loops[name] = runtime_loop(
            model, recording=True, routing=share, run_dir=folder / name, log_type=logs[name]
        )
    times = in_turn(loops, model.vocab_size, PAIRS, time.process_time)
    found = [f"{row} - |" for row in rows(times, model.name, BASE)]
    for i, (name, log) in enumerate(logs.items(), 1):
        own = log.spent / log.steps
        part = own / statistics.median(times[name])
        found[i] = f"{found[i].removesuffix('- |')}{own * 1e3:.2f} ms, {part:.2%} |"
    return found


def main() -> None:
    """Run, print, and keep the page where asked."""
    write = asked_to_write()
    lines = [
        "# What recording routing costs",
        "",
        f"One process, {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"fp32, one thread; {PAIRS} steps of each share in turn, {MICRO_BATCHES} micro-batches of "
        f"{CONFIG.micro_batch} x {JOB.seq_len} tokens. Steps are in seconds of the processor, "
        "ratios those of neighbouring steps (median, middle half). Written by "
        "`python -P -m tests.accuracy.routing_cost --write`. "
        "The last column is the time inside of recording's own calls.",
        "",
        "| model | recorded | step | over none | middle half | own calls |",
        "|---|---|---|---|---|---|",
    ]
    with alone() as folder:
        lines += compare(read_model(EXAMPLE), folder)
    keep(lines, PAGE, write)


if __name__ == "__main__":
    main()
