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
    shell_words,
    torchrun,
)
from launch.recipe import Recipe
from launch.scheduler.base import Job
from launch.scheduler.slurm import SCRIPT_NAME as JOB_NAME
from launch.scheduler.slurm import Slurm
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
    name: FrameworkName, plan: Plan, recipe: Recipe, folder: Path, slurm: Slurm | None
) -> Written:
    """The plan for a framework, its files to lie in `folder`; with a batch script where Slurm is to
    start it. `UserError` where the framework cannot run it, or the start cannot say its order."""
    ordered, emitted = _EMITTERS[name](plan, recipe)
    emitted = replace(
        emitted,
        differs=(
            *emitted.differs,
            *not_carried(recipe, () if slurm is None else ("max_restarts",)),
        ),
    )
    files = {**emitted.files, SCRIPT_NAME: script(plan, emitted)}
    if slurm is None:
        several = len(set(nodes_of(ordered))) > 1
        return Written(
            framework=name,
            emitted=emitted,
            files=files,
            command=f"bash {SCRIPT_NAME}" if emitted.starts_ranks else _on_each_node(ordered),
            where=" on every node, with HEAD_NODE and NODE_RANK" if several else "",
        )
    path = str(folder / SCRIPT_NAME)
    program = RankProgram(
        torchrun=("bash", path, "torchrun"),
        interpreter=("bash", path, slurm.script.python),
        argv=(),
        env=(),
        per_node=("bash", path) if emitted.starts_ranks else (),
    )
    submits = replace(slurm, script=replace(slurm.script, program=program))
    files |= submits.files(Job(plan=ordered, recipe=recipe, run_dir=folder))
    command = f"sbatch {shell_words((str(folder / JOB_NAME),))}"
    return Written(framework=name, emitted=emitted, files=files, command=command)


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
