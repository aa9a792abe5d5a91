"""Every method of expert placement on one trace: load, nodes per token, hops, time, held-out time,
bound and CPU seconds, as rows of a table.

    python -m tests.accuracy.experts_bench TRACE.npz --ranks 64 --per-node 8 --room 5 --groups 8

TRACE.npz: arrays [tokens, layers, k] of expert ids, joined. Seconds are those of a model of time
(`solvers.experts.problem`) with the figures given, not of hardware.
"""

import argparse
import os
from pathlib import Path

import numpy as np

from solvers.experts.problem import Ints, Problem
from solvers.experts.score import count, score
from solvers.experts.solve import METHODS, solve

HEAD = ("method", "max/mean", "nodes/token", "hops", "ms", "held out", "bound ms", "gap", "CPU s")


def read(path: Path, arrays: str, shuffle: bool, held_out: float) -> tuple[Ints, Ints]:
    """(tokens to place by, tokens to judge by)."""
    with np.load(path) as stored:
        names = arrays.split(",") if arrays else stored.files
        ids = np.concatenate([stored[name] for name in names]).astype(np.int64)
    if shuffle:
        ids = ids[np.random.default_rng(0).permutation(len(ids))]
    cut = int(len(ids) * (1 - held_out))
    return ids[:cut], ids[cut:]


def row(problem: Problem, held_out: Ints, args: argparse.Namespace, method: str) -> list[str]:
    """Cells of one method; what it says where it does not fit the problem."""
    began = _cpu_s()
    try:
        found = solve(problem, objective=args.objective, effort=args.effort, method=method)
    except ValueError as error:
        return [method, str(error)]
    took = _cpu_s() - began
    if found.value is None:
        return [method, found.status]
    mine, other = score(problem, found.value), score(problem, found.value, held_out)
    gap = found.gap
    return [
        method if found.method == method else f"{method}: {found.method}",
        f"{mine.max_over_mean:.3f}",
        f"{mine.nodes_per_token:.2f}",
        f"{mine.hops:.1f}",
        f"{mine.time_s * 1e3:.3f}",
        f"{other.max_over_mean:.3f}, {other.time_s * 1e3:.3f}",
        "" if found.bound is None or args.objective != "time" else f"{found.bound * 1e3:.3f}",
        "" if gap is None else f"{gap:.1%}",
        f"{took:.2f}",
    ]


def _cpu_s() -> float:
    """Of this process and of those it started (CBC is one)."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--arrays", default="", help="names in the file, by commas; all")
    parser.add_argument("--shuffle", action="store_true", help="before holding out")
    parser.add_argument("--held-out", type=float, default=0.25)
    parser.add_argument("--experts", type=int, default=0)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--per-node", type=int, required=True)
    parser.add_argument("--room", type=int, required=True, help="slots per rank")
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--traffic", default="home", choices=["home", "chained"])
    parser.add_argument("--copies", default="node", choices=["node", "rank", "choice"])
    parser.add_argument("--objective", default="time", choices=["time", "load", "hops"])
    parser.add_argument("--compute-us", type=float, default=0.22020096)
    parser.add_argument("--intra-us", type=float, default=21504 / 450e3)
    parser.add_argument("--inter-us", type=float, default=21504 / 50e3)
    parser.add_argument("--effort", type=float)
    parser.add_argument("--methods", default=",".join(METHODS))
    return parser.parse_args()


def main() -> None:
    """Prints the table."""
    args = parsed()
    ids, held_out = read(args.trace, args.arrays, args.shuffle, args.held_out)
    experts = args.experts or int(ids.max()) + 1
    problem = Problem(
        ids=ids,
        counts=count(ids, experts),
        num_ranks=args.ranks,
        ranks_per_node=args.per_node,
        slots_per_rank=args.room,
        traffic=args.traffic,
        copies=args.copies,
        compute_s=args.compute_us * 1e-6,
        intra_s=args.intra_us * 1e-6,
        inter_s=args.inter_us * 1e-6,
        num_groups=args.groups,
    )
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for method in args.methods.split(","):
        print("| " + " | ".join(row(problem, held_out, args, method)) + " |", flush=True)


if __name__ == "__main__":
    main()
