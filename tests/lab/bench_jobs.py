"""What ranks of a lab do for its benchmark, by `Ranks.run`: profile, measure links, train."""

import os
import statistics
import time
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist

from launch.artifact import read_plan
from launch.recipe import FILE_NAME, read_recipe
from launch.runtime.profile_worker import measure_all
from launch.runtime.train import train
from profiler.measure.cases import COLLECTIVE_SIZES
from profiler.measure.journal import Journal
from profiler.measure.links import (
    leader_decides,
    mean_over,
    measure_collective,
    measure_p2p,
    sender_decides,
)
from profiler.measure.timer import Limits

CPU = torch.device("cpu")
SIZES = (4, 1 << 16, 1 << 18, 1 << 20)
"""Bytes of a message, the smallest first."""
LINK_S, PASSES, WORK_S, EXCHANGE_S = 0.5, 3, 1.0, 15.0
"""Time for a pair of hosts in one direction, once; how often; time for the
speed of a host; for exchanges."""


def profile(folder: str) -> None:
    """Measure what the journal of `folder` asks for."""
    os.environ["MESHWRIGHT_SUPERVISOR"] = "self"  # the parent is in no list of the host
    measure_all(Journal(Path(folder)))


def links() -> list[list[tuple[int, float]]]:
    """[target] -> (bytes, seconds one way) of messages from this rank, the median of some passes;
    ranks are on hosts of their own, and one pair sends at a time."""
    rank, world = dist.get_rank(), dist.get_world_size()
    found: dict[tuple[int, int], list[float]] = {}
    for _, source, target in product(range(PASSES), range(world), range(world)):
        if source != target and rank in (source, target):
            pair, limits = (source, target), Limits(budget_s=LINK_S, warmup=1)
            agree = sender_decides(dist.group.WORLD, pair, CPU)
            for num_bytes, seen in measure_p2p(dist.group.WORLD, pair, SIZES, limits, CPU, agree):
                found.setdefault((target, num_bytes), []).append(seen.median_s)
        dist.barrier()
    return [
        [(n, statistics.median(found[target, n])) for n in SIZES if target != rank]
        for target in range(world)
    ]


def exchange() -> list[tuple[int, float]]:
    """(bytes that each rank sends, seconds) of all-to-alls of all ranks, sustained."""
    world = dist.group.WORLD
    agree, reduce = leader_decides(world, CPU), mean_over(world, CPU)
    limits = Limits(budget_s=EXCHANGE_S, warmup=2)
    times = measure_collective(
        "all_to_all", COLLECTIVE_SIZES[:-1], limits, world, CPU, agree, reduce
    )  # fmt: skip
    return [(num_bytes, timing.median_s) for num_bytes, timing in times]


def exchange_after_work(num_bytes: int, products: int, repeats: int) -> list[tuple[float, float]]:
    """(seconds of some matrix products, seconds in the all-to-all after them), each repeat."""
    rows, a = torch.randn(num_bytes // 4), torch.randn(128, 128)
    received, found = torch.empty_like(rows), []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(products):
            a @ a
        between = time.perf_counter()
        dist.all_to_all_single(received, rows)
        found.append((between - begin, time.perf_counter() - between))
    return found


def speed() -> float:
    """Matrix products per second, all ranks at once."""
    a = torch.randn(128, 128)
    dist.barrier()
    begin, number = time.perf_counter(), 0
    while time.perf_counter() - begin < WORK_S:
        for _ in range(20):
            a @ a
        number += 20
    return number / (time.perf_counter() - begin)


def run(folder: str) -> None:
    """Train the plan of a folder, by its recipe; what comes before the first step has whole cores,
    and takes a fraction of the time."""
    here = Path(folder)

    def to_own_group() -> None:
        Path(os.environ["LAB_PROCS"]).write_text("0")
        dist.barrier()

    plan, recipe = read_plan(here / "plan.json"), read_recipe(here / FILE_NAME)
    # On a fifth of a core, tracing takes as long as some steps.
    train(plan, recipe, here, CPU, ready=to_own_group, trace_memory=False)
