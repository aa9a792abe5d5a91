"""What recording routing costs a run, on one process.

Trainers of the same model and data take turns, step by step, in one process: one that records no
routing, and one for each share of tokens. What counts is the ratio of neighbouring steps, whose
median does not drift with the machine; and seconds are those of the processor, of which a step on
one process takes as many however busy the machine is.

`python -P -m tests.accuracy.routing_cost [--write]`; `--write` keeps the result in
docs/benchmarks/routing.md.
"""

import argparse
import gc
import platform
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from profiler.huggingface import read_model
from profiler.model import ModelSpec
from tests.accuracy.lean import (
    CONFIG,
    JOB,
    MICRO_BATCHES,
    MODELS,
    ROOT,
    in_turn,
    rows,
    runtime_loop,
)

PAGE = ROOT / "docs" / "benchmarks" / "routing.md"
EXAMPLE = ROOT / "examples" / "tiny-moe" / "config.json"
SHARES = (0.01, 0.05, 1.0)
PAIRS = 40
BASE = "none"


def compare(model: ModelSpec, folder: Path) -> dict[str, list[float]]:
    """Seconds of each share's steps."""
    loops = {BASE: runtime_loop(model, recording=True)}
    for share in SHARES:
        loops[f"{share:.0%} of tokens"] = runtime_loop(
            model, recording=True, routing=share, run_dir=folder / f"{model.name}-{share}"
        )
    return in_turn(loops, model.vocab_size, PAIRS, time.process_time)


def main() -> None:
    """Run, print, and keep the page where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    lines = [
        "# What recording routing costs",
        "",
        f"One process, {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"fp32, one thread; {PAIRS} steps of each share in turn, {MICRO_BATCHES} micro-batches of "
        f"{CONFIG.micro_batch} x {JOB.seq_len} tokens. Steps are in seconds of the processor, "
        "ratios those of neighbouring steps (median, middle half). Written by "
        "`python -P -m tests.accuracy.routing_cost --write`.",
        "",
        "| model | recorded | step | over none | middle half |",
        "|---|---|---|---|---|",
    ]
    models = {"4 layers of 8 experts": MODELS["MoE"], "examples/tiny-moe": read_model(EXAMPLE)}
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        for label, model in models.items():
            gc.collect()
            lines += rows(compare(model, Path(folder)), label, BASE)
        dist.destroy_process_group()
    page = "\n".join(lines) + "\n"
    print(page)
    if write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
