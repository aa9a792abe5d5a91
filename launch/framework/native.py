"""A plan as a command line of the reference runtime.

The runtime reads all it needs from `plan.json`; torchrun only starts one process per device. `-P`
and `PYTHONSAFEPATH` keep the user's folder off the import path, where a `profiler.py` of theirs
would hide ours.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from planner.plan import Plan
from profiler.errors import UserError

DEFAULT_PORT = 29500


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start on each node: arguments, and what to add to the environment."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The command as one would type it."""
        env = [f"{k}={shlex.quote(v)}" for k, v in self.env]
        return " ".join([*env, shlex.join(self.argv)])


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How long and on what to train; the plan says the rest."""

    data: Path
    num_steps: int
    """Timed steps."""
    num_warmup: int
    """Steps before them; the second takes the memory."""
    seed: int
    learning_rate: float

    @property
    def total_steps(self) -> int:
        """Warm-up and timed steps."""
        return self.num_warmup + self.num_steps


def check_runnable(plan: Plan) -> None:
    """Raise `UserError` for a plan that the reference runtime cannot train."""
    if plan.model.num_experts:
        raise UserError(
            f"the reference runtime does not train MoE layers, which `{plan.model.name}` has",
            kind="failed",
        )
    if plan.job.precision != "fp32":
        raise UserError(
            f"the reference runtime trains in fp32, the plan is for {plan.job.precision}",
            hint="plan again with `--precision fp32`",
            kind="failed",
        )


def torchrun(num_nodes: int, per_node: int) -> tuple[str, ...]:
    """The start of a torchrun command line: one process per device on each of `num_nodes` nodes."""
    base = (sys.executable, "-P", "-m", "torch.distributed.run")
    if num_nodes == 1:
        return (*base, "--standalone", f"--nproc-per-node={per_node}")
    return (
        *base,
        f"--nnodes={num_nodes}",
        f"--nproc-per-node={per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=$HEAD_NODE:{DEFAULT_PORT}",
    )


WORKER_ENV = (
    ("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20)),
    ("MALLOC_TRIM_THRESHOLD_", str(64 * 2**30)),
    ("OMP_NUM_THREADS", "1"),
    ("PYTHONSAFEPATH", "1"),
)
"""One thread per process: two halve the speed or worse where processes share cores. Freed memory
stays with the process, as with the caching allocator of an accelerator: glibc would give it back to
the system and fault it in again, page by page, with every micro-batch."""


def command(plan: Plan, run_dir: Path, options: TrainOptions) -> Command:
    """The command that trains `plan` with its files in `run_dir`."""
    node = plan.cluster.uniform
    worker = (
        "-m", "launch.runtime.train",
        "--plan", str(run_dir / "plan.json"),
        "--run-dir", str(run_dir),
        "--data", str(options.data),
        "--steps", str(options.num_steps),
        "--warmup", str(options.num_warmup),
        "--seed", str(options.seed),
        "--lr", str(options.learning_rate),
    )  # fmt: skip
    return Command(argv=(*torchrun(node.num_nodes, node.devices_per_node), *worker), env=WORKER_ENV)
