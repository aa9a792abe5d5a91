"""A plan as a command line of the reference runtime.

The runtime reads all it needs from `plan.json` and `recipe.json`; torchrun only starts one process
per device, and all of them again where the recipe asks for it. `-P` and `PYTHONSAFEPATH` keep the
user's folder off the import path, where a `profiler.py` of theirs would hide ours.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from launch.recipe import Recipe
from planner.layout import check_devices_of, check_layout, runtime_refuses
from planner.plan import Plan
from profiler.errors import UserError
from profiler.model_support import check_reference

DEFAULT_PORT = 29500
PRECISIONS = ("bf16", "fp32")
"""In which the reference runtime trains."""


def _quoted(word: str) -> str:
    """For a shell, which is to fill in $HEAD_NODE."""
    return f'"{word}"' if "$HEAD_NODE" in word else shlex.quote(word)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start on each node: arguments, and what to add to the environment."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The command as one would type it."""
        env = [f"{k}={shlex.quote(v)}" for k, v in self.env]
        return " ".join([*env, *(_quoted(word) for word in self.argv)])


def check_runnable(plan: Plan) -> None:
    """Raise `UserError` for a plan that the reference runtime cannot train."""
    check_reference(
        plan.model,
        hint="plan another model, or launch with another framework",
        place=f"plan {plan.id}",
    )
    if plan.job.precision not in PRECISIONS:
        raise UserError(
            f"the reference runtime does not train in {plan.job.precision}",
            hint=f"plan with `--precision {PRECISIONS[0]}`, or launch with another framework",
            place=f"plan {plan.id}",
        )
    chosen = plan.chosen
    check_layout(plan.model, plan.job, chosen.config, chosen.placement, place=f"plan {plan.id}")
    check_devices_of(plan.cluster, chosen.config, chosen.placement, place=f"plan {plan.id}")
    if why := runtime_refuses(chosen.config):
        raise UserError(
            f"the reference runtime does not train layout `{chosen.config.label}`: {why}",
            hint="plan without it, or launch with another framework",
            place=f"plan {plan.id}",
        )
    if len(plan.cluster.groups) > 1:
        raise UserError(
            f"plan `{plan.id}` is for {len(plan.cluster.groups)} kinds of node; the reference "
            "launcher starts nodes of one kind",
            hint="plan for one of them, or start the layout with a framework of yours",
            place=f"plan {plan.id}",
        )
    if chosen.placement.devices:
        raise UserError(
            f"plan `{plan.id}` names the device of each rank, which the reference launcher does "
            "not place",
            hint="plan for the nodes that it may use",
            place=f"plan {plan.id}",
        )
    names, (nodes, _) = chosen.placement.interfaces, nodes_of(plan)
    if names and len(names) != nodes:
        raise UserError(
            f"plan `{plan.id}` names {len(names)} network interfaces for {nodes} nodes",
            hint="give one for each node, in their order, or none",
        )


def nodes_of(plan: Plan) -> tuple[int, int]:
    """(nodes, devices of each) that the layout uses, the first of the cluster."""
    num, per_node = plan.chosen.config.num_devices, plan.cluster.uniform.devices_per_node
    return max(1, num // per_node), min(num, per_node)


def torchrun(num_nodes: int, per_node: int, max_restarts: int = 0) -> tuple[str, ...]:
    """The start of a torchrun command line: one process per device on each of `num_nodes` nodes.

    After one failed all are started again, up to `max_restarts` times.
    """
    base = (sys.executable, "-P", "-m", "torch.distributed.run")
    each = (f"--nproc-per-node={per_node}", f"--max-restarts={max_restarts}")
    if num_nodes == 1:
        return (*base, "--standalone", *each)
    return (
        *base,
        f"--nnodes={num_nodes}",
        *each,
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=$HEAD_NODE:{DEFAULT_PORT}",
    )


WORKER_ENV = (
    ("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20)),
    ("MALLOC_TRIM_THRESHOLD_", str(64 * 2**30)),
    ("OMP_NUM_THREADS", "1"),
    ("PYTHONSAFEPATH", "1"),
    ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1"),
)
"""One thread per process: two halve the speed or worse where processes share cores. Freed memory
stays with the process, as with the caching allocator of an accelerator: glibc would give it back to
the system and fault it in again, page by page, with every micro-batch. Each start of the ranks gets
a store of its own: in torchrun's shared one they would find the addresses of the ranks before."""


def command(plan: Plan, run_dir: Path, recipe: Recipe) -> Command:
    """The command that trains `plan` with its files, `recipe.json` among them, in `run_dir`."""
    worker = (
        "-m", "launch.runtime.train",
        "--plan", str(run_dir / "plan.json"),
        "--run-dir", str(run_dir),
    )  # fmt: skip
    start = torchrun(*nodes_of(plan), recipe.max_restarts)
    return Command(argv=(*start, *worker), env=WORKER_ENV)
