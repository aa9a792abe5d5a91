"""Speed of planning, each figure beside what it is compared with, in one run on one core.

`make bench` prints a table: median of repeated, interleaved runs, and the ratio. Times on a busy
machine move together, so the ratios are what to quote.
"""

import statistics
import time
from collections.abc import Callable

from planner.config import ScheduleName
from planner.cost import CostModel
from planner.dependencies import forget_graphs
from planner.estimate import estimate
from planner.plan import SearchOptions
from planner.schedules import table_of
from planner.search import make_plan
from planner.simulate import Batch, Program, simulate, simulate_many
from planner.today import Facts, enumerate_layouts, first_broken
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster, resolve_model
from profiler.job import JobSpec

REPEATS = 5
OPTIONS = SearchOptions(pin={}, forbid={})


def pair(a: Callable[[], object], b: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of two thunks, run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for thunk, kept in zip((a, b), times, strict=True):
            begin = time.perf_counter()
            thunk()
            kept.append(time.perf_counter() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


def search_pair(model: str, cluster: str, batch: int) -> tuple[str, float, float]:
    """The search against simulating every layout that fits."""
    spec, target = resolve_model(model), resolve_cluster(cluster)
    job = JobSpec(global_batch=batch, seq_len=8192)
    profile = analytic_profile(spec, job, target)

    def exhaustive() -> None:
        costs = CostModel(spec, job, profile)
        known = Facts(spec, job, costs.table, OPTIONS)
        for config in enumerate_layouts(target.num_devices, job, spec):
            prepared = None if first_broken(config, known) else costs.prepare(config)
            if prepared and prepared.peak_bytes <= costs.capacity_bytes:
                estimate(costs, prepared)

    counts = make_plan(spec, job, profile, OPTIONS).counts
    label = f"plan {model} on {cluster}, {counts.enumerated} layouts, {counts.simulated} simulated"
    return label, *pair(lambda: make_plan(spec, job, profile, OPTIONS), exhaustive)


def simulate_pair(num_stages: int, num_microbatches: int) -> tuple[str, float, float]:
    """1F1B against GPipe of the same size."""

    def program(name: ScheduleName) -> Program:
        ones = (1.0,) * num_stages
        return Program(
            schedule=name,
            num_microbatches=num_microbatches,
            forward_s=ones,
            input_s=ones,
            weight_s=(0.0,) * num_stages,
            send_forward_s=ones,
            send_backward_s=ones,
            bucket_s=ones,
            sync_s=ones,
            optimizer_s=ones,
        )

    one, other = program("1f1b"), program("gpipe")
    label = f"simulate 1f1b, {num_stages} stages x {num_microbatches} micro-batches"
    return label, *pair(lambda: simulate(one), lambda: simulate(other))


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


def simulator_times(
    schedule: ScheduleName, pp: int, vpp: int, num_microbatches: int
) -> tuple[float, float, float]:
    """Seconds of a program's first simulation, of the next, and of one of 32 at once."""
    program = one_program(schedule, pp, vpp, num_microbatches)
    batch = Batch.of([program] * 32)

    def first() -> None:
        forget_graphs()
        table_of.cache_clear()
        simulate(program)

    cold, warm = pair(first, lambda: simulate(program))
    many, _ = pair(lambda: simulate_many(batch), lambda: None)
    return cold, warm, many / 32


def print_simulator() -> None:
    """Times of the simulator by itself."""
    shapes: list[tuple[ScheduleName, int, int, int]] = [
        ("1f1b", 64, 1, 512),
        ("gpipe", 64, 1, 512),
        ("zero_bubble", 64, 1, 512),
        ("interleaved", 16, 4, 512),
        ("zbv", 16, 2, 512),
        ("dualpipev", 16, 2, 512),
        ("1f1b", 8, 1, 64),
        ("1f1b", 4, 1, 16),
        ("1f1b", 1, 1, 64),
    ]
    print(f"\n{'simulate, ms':<38}{'first':>10}{'again':>10}{'one of 32':>12}")
    for schedule, pp, vpp, num in shapes:
        label = f"{schedule}, {pp} ranks x {vpp} stages x {num}"
        times = [seconds * 1e3 for seconds in simulator_times(schedule, pp, vpp, num)]
        print(f"{label:<38}{times[0]:>10.3f}{times[1]:>10.3f}{times[2]:>12.3f}")


def main() -> None:
    """Print the tables."""
    rows = [
        (*search_pair("llama3-8b", "h100-2x8", 256), "simulate all that fit"),
        (*search_pair("llama3-70b", "h100-32x8", 1024), "simulate all that fit"),
        (*simulate_pair(16, 256), "gpipe"),
        (*simulate_pair(64, 512), "gpipe"),
    ]
    for label, ours, theirs, other in rows:
        print(f"{label:<72}{ours * 1e3:>9.1f} ms")
        print(f"    against: {other:<60}{theirs * 1e3:>9.1f} ms   {theirs / ours:.2f}x")
    print_simulator()


if __name__ == "__main__":
    main()
