"""A plan as a command line of the reference runtime.

The runtime reads all it needs from `plan.json` and `recipe.json`; torchrun only starts one process
per device, and all of them again where the recipe asks for it. `-P` and `PYTHONSAFEPATH` keep the
user's folder off the import path, where a `profiler.py` of theirs would hide ours.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from launch.recipe import Recipe
from planner.layout import check_devices_of, check_layout, runtime_refuses
from planner.plan import Plan
from planner.where import nodes_of_ranks
from profiler.errors import UserError
from profiler.model_support import check_reference

DEFAULT_PORT = 29500
PRECISIONS = ("bf16", "fp32")
"""In which the reference runtime trains."""


_FILLED = ("$HEAD_NODE", "$NODE_RANK", "$PORT", "$SLURM_PROCID")
"""Names that a shell is to fill in."""


def shell_words(argv: Sequence[str]) -> str:
    """Words for a shell, quoted, apart from the names that it is to fill in."""
    return " ".join(
        f'"{word}"' if any(name in word for name in _FILLED) else shlex.quote(word) for word in argv
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start on each node: arguments, and what to add to the environment."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The command as one would type it."""
        env = [f"{k}={shlex.quote(v)}" for k, v in self.env]
        return " ".join([*env, shell_words(self.argv)])

    @property
    def typed(self) -> str:
        """The command as another one's words."""
        return f"env {self.text}" if self.env else self.text


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
    if len({group.device.is_host for group in plan.cluster.groups}) > 1:
        raise UserError(
            f"plan `{plan.id}` is for hosts and accelerators together, which the reference "
            "runtime does not join",
            hint="plan for one of them, or start the layout with a framework of yours",
            place=f"plan {plan.id}",
        )
    check_interfaces(plan)


def check_interfaces(plan: Plan) -> None:
    """Raise `UserError` where the plan does not name a network interface for each node, or none."""
    names, nodes = plan.chosen.placement.interfaces, len(set(nodes_of(plan)))
    if names and len(names) != nodes:
        raise UserError(
            f"plan `{plan.id}` names {len(names)} network interfaces for {nodes} nodes",
            hint="give one for each node, in their order, or none",
        )


def nodes_of(plan: Plan) -> tuple[int, ...]:
    """Node of each rank, counted through the groups of the plan's cluster."""
    return nodes_of_ranks(plan.cluster, plan.chosen.config, plan.chosen.placement)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One torchrun: it starts the ranks of a node, which follow each other."""

    node: int
    """Counted through the groups of the plan's cluster."""
    num_ranks: int


def agents_of(plan: Plan) -> tuple[Agent, ...]:
    """The agents in the order of their ranks; `UserError` where a node's ranks do not follow each
    other."""
    agents = [Agent(node=n, num_ranks=len(list(own))) for n, own in groupby(nodes_of(plan))]
    if len({agent.node for agent in agents}) < len(agents):
        raise UserError(
            f"plan `{plan.id}` deals the ranks of a node out among those of others, and torchrun "
            "numbers those of a node one after the other",
            hint="launch it with `--on slurm --tasks rank`",
            place=f"plan {plan.id}",
        )
    return tuple(agents)


_MOST_NAMED = 16


def places_of_nodes(plan: Plan) -> str:
    """` (0: host3, 1: host0)`: which node has which place in the order of ranks, for people who
    start each themselves; empty where that is the cluster's order of alike nodes."""
    order = list(dict.fromkeys(nodes_of(plan)))
    each = [group.device.name for group in plan.cluster.groups for _ in range(group.num_nodes)]
    if order == list(range(len(order))) and len({each[node] for node in order}) == 1:
        return ""
    links = plan.profile.links
    names = [
        links.hosts[node] if links else f"node {node + 1} of the cluster, {each[node]}"
        for node in order
    ]
    shown = [f"{place}: {name}" for place, name in enumerate(names[:_MOST_NAMED])]
    return f" ({'; '.join(shown)}{'; ...' if len(names) > _MOST_NAMED else ''})"


def check_alike(plan: Plan, who: str, hint: str) -> None:
    """Raise `UserError` where ranks sit on several kinds of node, of which `who` cannot choose."""
    each = [group for group in plan.cluster.groups for _ in range(group.num_nodes)]
    kinds = list(dict.fromkeys(each[node].device.name for node in nodes_of(plan)))
    if len(kinds) > 1:
        raise UserError(
            f"plan `{plan.id}` places its ranks on {' and '.join(kinds)} nodes, and {who} does not "
            "know which node is of which kind",
            hint=hint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """How the agents of several nodes find each other; texts, as a shell may fill them in."""

    num_nodes: int
    node_rank: str = "$NODE_RANK"
    head: str = "$HEAD_NODE"
    port: str = str(DEFAULT_PORT)


def torchrun_of(python: str) -> tuple[str, ...]:
    """torchrun of an interpreter."""
    return (python, "-P", "-m", "torch.distributed.run")


def torchrun(
    num_ranks: int,
    *,
    max_restarts: int = 0,
    meeting: Meeting | None = None,
    python: str = sys.executable,
    start: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """The start of a torchrun command line: `num_ranks` processes on this node.

    After one failed all are started again, up to `max_restarts` times. Nodes keep the order of
    their node ranks. Only where they must meet again after a fault do they have none: there
    torchrun sorts them by their addresses. `start` is torchrun itself; empty: that of `python`.
    """
    base = start or torchrun_of(python)
    each = (f"--nproc-per-node={num_ranks}", f"--max-restarts={max_restarts}")
    if meeting is None:
        return (*base, "--standalone", *each)
    nodes = f"--nnodes={meeting.num_nodes}"
    if max_restarts:
        point = f"--rdzv-endpoint={meeting.head}:{meeting.port}"
        return (*base, nodes, *each, "--rdzv-backend=c10d", point)
    order = (f"--node-rank={meeting.node_rank}", f"--master-addr={meeting.head}")
    return (*base, nodes, *each, *order, f"--master-port={meeting.port}")


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


def worker(run_dir: Path) -> tuple[str, ...]:
    """What each rank runs, after the interpreter's own options."""
    plan = str(run_dir / "plan.json")
    return ("-m", "launch.runtime.train", "--plan", plan, "--run-dir", str(run_dir))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankProgram:
    """What starts the ranks, and what they run."""

    torchrun: tuple[str, ...]
    """One for the ranks of a node."""
    interpreter: tuple[str, ...]
    """One for each rank."""
    argv: tuple[str, ...]
    """What follows either."""
    env: tuple[tuple[str, str], ...]
    per_node: tuple[str, ...] = ()
    """Instead of torchrun: starts the ranks of a node itself, told which by $NODE_RANK."""
    reads_node: bool = False
    """It reads NODE_RANK, HEAD_NODE and PORT where there are several nodes."""

    def agent(self, num_ranks: int, meeting: Meeting | None) -> tuple[str, ...]:
        """What starts the `num_ranks` ranks of one node; `meeting`: of several nodes."""
        told: tuple[str, ...] = ()
        if meeting is not None and self.reads_node:
            told = ("env", f"HEAD_NODE={meeting.head}", f"NODE_RANK={meeting.node_rank}",
                    f"PORT={meeting.port}")  # fmt: skip
        if self.per_node:
            return (*told, *self.per_node)
        start = torchrun(num_ranks, meeting=meeting, start=self.torchrun)
        return (*told, *start, *self.argv)


def runtime(run_dir: Path, python: str) -> RankProgram:
    """The reference runtime."""
    return RankProgram(
        torchrun=torchrun_of(python),
        interpreter=(python, "-P"),
        argv=worker(run_dir),
        env=WORKER_ENV,
    )


def command(plan: Plan, run_dir: Path, recipe: Recipe) -> Command:
    """The command that trains `plan` with its files, `recipe.json` among them, in `run_dir`; for
    several nodes one for each of them."""
    agents = agents_of(plan)
    if len({agent.num_ranks for agent in agents}) > 1:
        raise UserError(
            f"plan `{plan.id}` takes unlike numbers of devices of its nodes, which no one command "
            "starts",
            hint="launch it with `--on ssh` or `--on slurm --tasks rank`",
        )
    meeting = Meeting(num_nodes=len(agents)) if len(agents) > 1 else None
    start = torchrun(agents[0].num_ranks, max_restarts=recipe.max_restarts, meeting=meeting)
    return Command(argv=(*start, *worker(run_dir)), env=WORKER_ENV)
