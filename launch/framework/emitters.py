"""The frameworks that a plan can be written for, and what is written: `train.sh`, its files, and
what starts it on each node.

`train.sh` runs what it is given, torchrun on each node or the interpreter for each rank; where the
framework's own launcher starts the ranks, the script runs it on each node.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from launch.framework import (
    accelerate,
    deepspeed,
    megatron,
    megatron_bridge,
    nanotron,
    torchtitan_recipe,
    torchtitan_toml,
)
from launch.framework.base import SCRIPT_NAME, Emitted, not_carried, script
from launch.framework.native import (
    Meeting,
    RankProgram,
    agents_of,
    nodes_of,
    places_of_nodes,
    shell_words,
    torchrun,
    torchrun_of,
)
from launch.recipe import Recipe
from launch.scheduler.base import Job, Scheduler
from launch.scheduler.kubernetes import FILE_NAME as MANIFEST_NAME
from launch.scheduler.kubernetes import Kubernetes
from launch.scheduler.slurm import SCRIPT_NAME as JOB_NAME
from launch.scheduler.slurm import Slurm
from launch.scheduler.ssh_nodes import SshNodes
from planner.plan import Plan
from profiler.codec import replace
from profiler.errors import UserError

FrameworkName = Literal[
    "megatron",
    "megatron-bridge",
    "torchtitan",
    "torchtitan-0.2",
    "deepspeed",
    "accelerate",
    "nanotron",
]
FRAMEWORKS: tuple[FrameworkName, ...] = get_args(FrameworkName)
_EMITTERS: dict[FrameworkName, Callable[[Plan, Recipe], tuple[Plan, Emitted]]] = {
    "megatron": megatron.emit,
    "megatron-bridge": megatron_bridge.emit,
    "torchtitan": torchtitan_recipe.emit,
    "torchtitan-0.2": torchtitan_toml.emit,
    "deepspeed": deepspeed.emit,
    "accelerate": accelerate.emit,
    "nanotron": nanotron.emit,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What `launch --for` writes and prints."""

    framework: FrameworkName
    emitted: Emitted
    files: dict[str, str]
    command: str
    """What starts it."""
    where: str = ""
    """` on every node, with ...` where there are several."""


def framework_of(name: str) -> FrameworkName:
    """The framework of that name; `UserError` where there is none."""
    found = next((known for known in FRAMEWORKS if known == name), None)
    if found is None:
        raise UserError(f"`--for {name[:40]}` is not known", hint=f"one of {', '.join(FRAMEWORKS)}")
    return found


def write(
    name: FrameworkName, plan: Plan, recipe: Recipe, folder: Path, scheduler: Scheduler | None
) -> Written:
    """The plan for a framework, its files to lie in `folder`; with what `scheduler` starts, None:
    the user does. `UserError` where the framework cannot run it, or the start cannot say its order.
    """
    ordered, emitted = _EMITTERS[name](plan, recipe)
    done = ("max_restarts",) if isinstance(scheduler, (Slurm, Kubernetes)) else ()
    emitted = replace(emitted, differs=(*emitted.differs, *not_carried(recipe, done)))
    files = {**emitted.files, SCRIPT_NAME: script(ordered, emitted)}
    if scheduler is None:
        several = len(set(nodes_of(ordered))) > 1
        return Written(
            framework=name,
            emitted=emitted,
            files=files,
            command=f"bash {SCRIPT_NAME}" if emitted.starts_ranks else _on_each_node(ordered),
            where=f" on every node, with HEAD_NODE and NODE_RANK{places_of_nodes(ordered)}"
            if several
            else "",
        )
    program = _program(emitted, str(folder / SCRIPT_NAME), scheduler)
    own = scheduler.files(Job(plan=ordered, recipe=recipe, run_dir=folder, program=program))
    command, where = _start(folder, scheduler, own)
    return Written(framework=name, emitted=emitted, files=files | own, command=command, where=where)


def _program(emitted: Emitted, path: str, scheduler: Scheduler) -> RankProgram:
    """The script as what a scheduler starts. Slurm's tasks have the user's own PATH, hosts and pods
    an interpreter."""
    python = _python(scheduler)
    start = ("torchrun",) if isinstance(scheduler, Slurm) else torchrun_of(python)
    return RankProgram(
        torchrun=("bash", path, *start),
        interpreter=("bash", path, python),
        argv=(),
        env=(),
        per_node=("bash", path) if emitted.starts_ranks else (),
        reads_node=True,
    )


def _python(scheduler: Scheduler) -> str:
    """Interpreter of the ranks."""
    if isinstance(scheduler, Kubernetes):
        return scheduler.pods.python
    if isinstance(scheduler, SshNodes):
        return scheduler.ssh.python
    assert isinstance(scheduler, Slurm)
    return scheduler.script.python


def _start(folder: Path, scheduler: Scheduler, own: dict[str, str]) -> tuple[str, str]:
    """What starts the job of a scheduler, and where."""
    if isinstance(scheduler, Slurm):
        return f"sbatch {shell_words((str(folder / JOB_NAME),))}", ""
    if isinstance(scheduler, Kubernetes):
        return f"kubectl create -f {shell_words((str(folder / MANIFEST_NAME),))}", ""
    return "".join(own.values()).rstrip("\n"), ", on each host its line"


def _on_each_node(plan: Plan) -> str:
    """torchrun on each node; a line for each number of ranks where nodes differ."""
    agents = agents_of(plan)
    meeting = Meeting(num_nodes=len(agents)) if len(agents) > 1 else None
    start = ("bash", SCRIPT_NAME, "torchrun")
    lines = {
        agent.num_ranks: shell_words(torchrun(agent.num_ranks, meeting=meeting, start=start))
        for agent in agents
    }
    if len(lines) == 1:
        return next(iter(lines.values()))
    of_nodes = {
        number: ",".join(str(k) for k, agent in enumerate(agents) if agent.num_ranks == number)
        for number in lines
    }
    return "\n".join(f"{line}  # NODE_RANK {of_nodes[n]}" for n, line in lines.items())
