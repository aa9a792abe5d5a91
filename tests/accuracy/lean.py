"""What the runtime adds to a plain PyTorch loop of the same model, on one process.

Two loops over the same blocks, weights, data and optimizer take turns, step by step, in one
process: the trainer as a run uses it (recording), and `forward; backward; optimizer.step()`. A
third is the trainer without recording. What counts is the ratio of neighbouring steps, whose median
does not drift with the machine. `python -P -m tests.accuracy.lean [--write]`; `--write` keeps the
result in docs/benchmarks/runtime.md.
"""

import argparse
import contextlib
import gc
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from launch.recipe import Recipe
from launch.runtime.mesh import build_mesh
from launch.runtime.model import Stage
from launch.runtime.optimizer import make_adamw
from launch.runtime.pieces import first_value
from launch.runtime.record import Recorder
from launch.runtime.routing_log import RoutingLog
from launch.runtime.trainer import Trainer
from planner.config import ParallelConfig, Placement
from profiler.job import JobSpec
from profiler.model import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "runtime.md"
PAIRS, WARMUP, MICRO_BATCHES = 40, 4, 2
PLAIN = "plain loop"
MODELS = {
    "dense": ModelSpec(
        name="dense", family="llama", vocab_size=2048, hidden_size=256, num_layers=4, num_heads=8,
        num_kv_heads=4, head_dim=32, ffn_hidden_size=688,
    ),
    "MoE": ModelSpec(
        name="moe", family="mixtral", vocab_size=2048, hidden_size=256, num_layers=4, num_heads=8,
        num_kv_heads=4, head_dim=32, ffn_hidden_size=344, num_experts=8, num_experts_per_token=2,
    ),
}  # fmt: skip
JOB = JobSpec(global_batch=4, seq_len=256, precision="fp32")
CONFIG = ParallelConfig(
    pp=1, dp_replicate=1, tp=1, micro_batch=JOB.global_batch // MICRO_BATCHES, recompute="none",
    schedule="1f1b",
)  # fmt: skip


Loop = Callable[[Tensor, Tensor], float]
"""Trains a step on inputs and targets; its loss."""


def _plain(model: ModelSpec) -> Loop:
    stage = Stage(model, 0, len(model.blocks))
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            prefix, _, leaf = name.rpartition(".")
            if prefix.endswith(".ffn.experts"):
                for expert, part in enumerate(parameter):
                    whole = f"{prefix}.{expert}.{leaf}"
                    part.copy_(first_value(whole, tuple(part.shape), 0))
            else:
                parameter.copy_(first_value(name, tuple(parameter.shape), 0))
    weights: list[nn.Parameter] = list(stage.parameters())
    optimizer = make_adamw(Recipe())(weights)

    def step(inputs: Tensor, targets: Tensor) -> float:
        total = torch.zeros(())
        for x, y in zip(inputs.chunk(MICRO_BATCHES), targets.chunk(MICRO_BATCHES), strict=True):
            loss = F.cross_entropy(stage(x).flatten(0, 1), y.flatten()) / MICRO_BATCHES
            loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    return step


def runtime_loop(
    model: ModelSpec, *, recording: bool, routing: float = 0.0, run_dir: Path | None = None,
    log_type: type[RoutingLog] = RoutingLog,
) -> Loop:  # fmt: skip
    """The trainer; `routing` is the share of tokens whose experts are recorded, into `run_dir`."""
    placement = Placement(stages=((0, len(model.blocks)),))
    mesh = build_mesh(CONFIG, placement, "cpu")
    recorder = Recorder(mesh.axis_of_group())
    trainer = Trainer(
        model, JOB, CONFIG, placement, mesh=mesh, recorder=recorder,
        make_optimizer=make_adamw(Recipe()), device=torch.device("cpu"), seed=0,
    )  # fmt: skip

    log = None
    if run_dir is not None:
        log = log_type(trainer, JOB, CONFIG, recorder, share=routing, seed=0, run_dir=run_dir)
    number = itertools.count()

    def step(inputs: Tensor, targets: Tensor) -> float:
        if log is not None:
            log.begin(next(number), torch.device("cpu"))
        if not recording:
            loss = trainer.step(inputs, targets).loss
        else:
            with recorder.active():
                loss = trainer.step(inputs, targets).loss
            recorder.drain()
        if log is not None:
            log.end()
        return float(loss) if loss is not None else 0.0

    return step


def _seconds(step: Loop, tokens: Tensor, clock: Callable[[], float]) -> tuple[float, float]:
    start = clock()
    loss = step(tokens[:, :-1], tokens[:, 1:])
    return clock() - start, loss


def compare(model: ModelSpec) -> dict[str, list[float]]:
    """Seconds of the steps of plain loop and runtime."""
    loops = {
        PLAIN: _plain(model),
        "runtime, recording": runtime_loop(model, recording=True),
        "runtime, not recording": runtime_loop(model, recording=False),
    }
    return in_turn(loops, model.vocab_size, PAIRS)


def in_turn(
    loops: dict[str, Loop], vocab_size: int, pairs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each loop's steps, in turn; the losses must agree."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    generator = torch.Generator().manual_seed(0)
    names = list(loops)
    for i in range(WARMUP + pairs):
        shape = (JOB.global_batch, JOB.seq_len + 1)
        tokens = torch.randint(0, vocab_size, shape, generator=generator)
        losses = []
        first = i % len(names)
        for name in names[first:] + names[:first]:  # none is always first
            seconds, loss = _seconds(loops[name], tokens, clock)
            losses.append(loss)
            times[name] += [seconds] if i >= WARMUP else []
        if max(losses) - min(losses) > 1e-4:
            raise SystemExit(f"the loops do not train the same model: {losses}")
    return times


def rows(times: dict[str, list[float]], label: str, base_name: str = PLAIN) -> list[str]:
    """Markdown rows: median seconds, and the ratio to the neighbouring step of the base."""
    base = times[base_name]
    out = []
    for name, seconds in times.items():
        ratios = sorted(a / b for a, b in zip(seconds, base, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        out.append(
            f"| {label} | {name} | {statistics.median(seconds) * 1e3:.1f} ms "
            f"| {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} |"
        )
    return out


@contextlib.contextmanager
def alone() -> Iterator[Path]:
    """One process with one thread and a group of its own; a folder while it lasts."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        yield Path(folder)
        dist.destroy_process_group()


def asked_to_write() -> bool:
    """Whether `--write` is on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    return bool(parser.parse_args().write)


def keep(lines: list[str], path: Path, write: bool) -> None:
    """Print a page, and write it where asked."""
    page = "\n".join(lines) + "\n"
    print(page)
    if write:
        path.parent.mkdir(exist_ok=True)
        path.write_text(page, encoding="utf-8")


def main() -> None:
    """Run, print, and keep the page where asked."""
    write = asked_to_write()
    lines = [
        "# The runtime beside a plain PyTorch loop",
        "",
        f"One process, {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"fp32, one thread; {PAIRS} steps of each loop in turn, {MICRO_BATCHES} micro-batches of "
        f"{CONFIG.micro_batch} x {JOB.seq_len} tokens.",
        "Ratios are those of neighbouring steps (median, middle half). Written by "
        "`python -P -m tests.accuracy.lean --write`.",
        "",
        "| model | loop | step | over the plain loop | middle half |",
        "|---|---|---|---|---|",
    ]
    with alone():
        for label, model in MODELS.items():
            gc.collect()
            lines += rows(compare(model), label)
    keep(lines, PAGE, write)


if __name__ == "__main__":
    main()
