"""Speed of planning: large questions, growth with the cluster, the simulator by itself.

`python -P -m tests.accuracy.bench [--write]`; `--write` keeps docs/benchmarks/planning.md. Each
question is answered in fresh processes, on one core: by `make_plan` with timers around its
parts, and by the whole command. Times are the best of `REPEATS`, since others only add to them.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from launch.artifact import write_atomic
from launch.cli.terminal import note
from planner.config import ScheduleName
from planner.dependencies import forget_graphs
from planner.plan import SearchOptions
from planner.program import Batch, Program
from planner.schedules import table_of
from planner.search import make_plan
from planner.simulate import simulate, simulate_many
from planner.space import MEMORY_RULE
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster, resolve_model
from profiler.job import JobSpec
from tests.accuracy.bench_page import Answer, Bar, Case, Command, SimulatorRow, page

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "planning.md"
REPEATS = 3
FAST, LARGE = Bar(seconds=5.0, rate=1e6), Bar(seconds=20.0, bytes=2 * 2**30)
CASES = (
    Case("gpt3-175b", "h100-512x8", 1536, 2048, FAST),
    Case("deepseek-v3", "deepseek-h800-256", 15360, 4096, LARGE),
    Case("llama3.1-405b", "dgx-h100-2048", 2048, 8192, LARGE),
    Case("llama3.1-405b", "dgx-h100-2048", 128, 131072, LARGE),
    Case("mixtral-8x22b", "h100-32x8", 1024, 4096),
    Case("qwen3-235b-a22b", "h100-32x8", 1024, 4096),
)
GROWTH = tuple(Case("llama3-70b", f"h100-{8 << k}x8", 4096, 4096) for k in range(9))
SHAPES: tuple[tuple[ScheduleName, int, int, int], ...] = (
    ("1f1b", 64, 1, 512),
    ("gpipe", 64, 1, 512),
    ("zero_bubble", 64, 1, 512),
    ("interleaved", 16, 4, 512),
    ("zbv", 16, 2, 512),
    ("dualpipev", 16, 2, 512),
    ("1f1b", 8, 1, 64),
    ("1f1b", 4, 1, 16),
)
PARTS = (
    ("planner.screening", "enumerate_layouts", "enumeration"),
    ("planner.analytic", "distinct_layers", "layer times"),
    ("planner.analytic:AnalyticCosts", "_layers", "layer times"),
    ("planner.analytic:AnalyticCosts", "_mean_bounds", "bounds"),
    ("planner.analytic:AnalyticCosts", "_fill_bounds", "bounds"),
    ("planner.analytic:AnalyticCosts", "_peaks", "memory"),
    ("planner.analytic:AnalyticCosts", "_room", "memory"),
    ("planner.analytic:AnalyticCosts", "_closed", "closed form"),
    ("planner.analytic:AnalyticCosts", "_level_over", "memory where times are level"),
    ("planner.search", "screen_all", "keeping the best"),
    ("planner.analytic:AnalyticCosts", "prepare", "preparing"),
    ("planner.search", "simulate", "simulation"),
    ("planner.search", "estimate", "estimates"),
    ("planner.search", "plan_id", "identity"),
)
"""(module or class, function, part that it counts as): each less those that it calls."""


@dataclass(slots=True)
class Timers:
    """Seconds of parts, each without the parts inside it, and of whole screening."""

    own: dict[str, float] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    _inside: list[float] = field(default_factory=lambda: [0.0])

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside as this part."""
        begin = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self.own[name] = self.own.get(name, 0.0) + seconds - self._inside.pop()
            self.whole[name] = self.whole.get(name, 0.0) + seconds
            self._inside[-1] += seconds

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted; of a generator, what it takes to its next value."""

        def counted(*args: Any, **named: Any) -> Any:
            with self.part(name):
                result = function(*args, **named)
            return self._each(name, result) if isinstance(result, Iterator) else result

        return counted

    def _each(self, name: str, values: Iterator[Any]) -> Iterator[Any]:
        nothing = object()
        while True:
            with self.part(name):
                value = next(values, nothing)
            if value is nothing:
                return
            yield value


@contextlib.contextmanager
def timed_parts(timers: Timers) -> Iterator[None]:
    """Timers around `PARTS` while this lasts."""
    with contextlib.ExitStack() as stack:
        for place, name, part in PARTS:
            module, _, owner = place.partition(":")
            holder: Any = importlib.import_module(module)
            holder = getattr(holder, owner) if owner else holder
            function = timers.around(part, getattr(holder, name))
            stack.enter_context(mock.patch.object(holder, name, function))
        yield


def answer_here(case: Case) -> Answer:
    """`make_plan` of a case, with timers around its parts."""
    model, cluster = resolve_model(case.model), resolve_cluster(case.cluster)
    job = JobSpec(global_batch=case.batch, seq_len=case.seq_len)
    profile = analytic_profile(model, job, cluster)
    timers = Timers()
    with timed_parts(timers):
        begin = time.perf_counter()
        plan = make_plan(model, job, profile, SearchOptions(pin={}, forbid={}))
        seconds = time.perf_counter() - begin
    counts, step_s = plan.counts, plan.chosen.cost.step_s
    parts = {**timers.own, "the rest": seconds - sum(timers.own.values())}
    return Answer(
        seconds=seconds,
        screening_s=timers.whole["keeping the best"],
        considered=counts.enumerated,
        screened=counts.pruned + counts.simulated + counts.rejected.get(MEMORY_RULE, 0),
        simulated=counts.simulated,
        gap=1 - plan.bound_s / step_s,
        layout=f"{plan.chosen.config.label} {plan.chosen.config.schedule}",
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        parts=parts,
    )


def in_process(case: Case) -> Answer:
    """The best of fresh processes that call `make_plan`."""
    asked = json.dumps([case.model, case.cluster, case.batch, case.seq_len])
    command = [sys.executable, "-P", "-m", "tests.accuracy.bench", "--one", asked]
    found = []
    for _ in range(REPEATS):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(Answer(**json.loads(done.stdout)))
    return min(found, key=lambda a: a.seconds)


def whole_command(case: Case) -> Command:
    """`meshwright plan`, the best of fresh processes."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-P", "-m", "launch.cli.app", "-q", "plan", "-m", case.model,
            "-c", case.cluster, "--global-batch", str(case.batch), "--seq-len", str(case.seq_len),
            "-o", f"{folder}/plan.json",
        ]  # fmt: skip
        for _ in range(REPEATS):
            begin = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"{' '.join(command)} ended with {process.returncode}")
            found.append(
                Command(
                    seconds=time.perf_counter() - begin,
                    cpu_s=used.ru_utime + used.ru_stime,
                    peak_bytes=used.ru_maxrss * 1024,
                )
            )
    return min(found, key=lambda c: c.seconds)


def one_program(schedule: ScheduleName, pp: int, vpp: int, num_microbatches: int) -> Program:
    """A step whose stages differ a little."""
    ones = (1.0,) * (pp * vpp)
    return Program(
        schedule=schedule,
        num_microbatches=num_microbatches,
        vpp=vpp,
        forward_s=tuple(1 + 0.01 * (s % 7) for s in range(pp * vpp)),
        input_s=ones,
        weight_s=ones,
        send_forward_s=ones,
        send_backward_s=ones,
        bucket_s=ones[:pp],
        sync_s=ones,
        optimizer_s=ones[:pp],
    )


def simulator_row(schedule: ScheduleName, pp: int, vpp: int, num: int) -> SimulatorRow:
    """Seconds of a program's first simulation, of the next, and of one of 32 at once."""
    program = one_program(schedule, pp, vpp, num)
    batch = Batch.of([program] * 32)

    def first() -> None:
        forget_graphs()
        table_of.cache_clear()
        simulate(program)

    return SimulatorRow(
        label=f"{schedule}, {pp} ranks x {vpp} x {num} micro-batches",
        first_s=best_of(first),
        again_s=best_of(lambda: simulate(program)),
        one_of_many_s=best_of(lambda: simulate_many(batch)) / 32,
    )


def best_of(thunk: Callable[[], object]) -> float:
    """Least seconds of `REPEATS` calls."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        thunk()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    """Measure, print, and keep the page where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(asdict(answer_here(Case(*json.loads(args.one))))))
        return
    answers, commands = [], []
    for case in CASES:
        note(f"planning {case.model} on {case.cluster}")
        answers.append(in_process(case))
        commands.append(whole_command(case))
    note("planning for growing clusters")
    growth = [in_process(case) for case in GROWTH]
    text = page(
        where=f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"numpy {np.__version__}, best of {REPEATS}",
        cases=list(zip(CASES, answers, commands, strict=True)),
        growth=list(zip(GROWTH, growth, strict=True)),
        simulator=[simulator_row(*shape) for shape in SHAPES],
    )
    print(text)
    if args.write:
        PAGE.parent.mkdir(exist_ok=True)
        write_atomic(PAGE, text)


if __name__ == "__main__":
    main()
