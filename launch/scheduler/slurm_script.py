"""A plan as a batch script of Slurm, which places every rank on the host that the plan names.

Tasks are laid out in the order of a host list (sbatch(1), srun(1): SLURM_HOSTFILE with
`--distribution=arbitrary`), one torchrun per node or one rank per task. Without a hostfile of the
user's the nodes are those that Slurm allots, in its order.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launch.framework.native import Meeting, agents_of, nodes_of, shell_words
from launch.scheduler.base import LOG_NAME, Job
from profiler.errors import UserError

Tasks = Literal["node", "rank"]
STATUS_NAME = "exit-status"
"""Written by the script at its end: Slurm forgets a job after a while."""
_OPTION = re.compile(r"[a-z][a-z0-9-]*(?:=[^\s\"'\\`$#;]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptOptions:
    """What the user chooses of it."""

    tasks: Tasks = "node"
    python: str = sys.executable
    hosts: tuple[str, ...] = ()
    """Of each rank; empty: nodes in Slurm's order."""
    options: tuple[str, ...] = ()
    """Long options of sbatch, `partition=x`; they win over ours."""


def check_options(options: Sequence[str]) -> None:
    """Raise `UserError` for what is no `key=value` of sbatch."""
    for option in options:
        if not _OPTION.fullmatch(option):
            raise UserError(
                f"`--sbatch-option {option[:80]}` is not of the form KEY=VALUE",
                hint="long options of sbatch without dashes, like `partition=gpu` or `time=30`",
            )


def batch_script(job: Job, how: ScriptOptions) -> str:
    """The text of the script; `UserError` where tasks per node cannot say the plan's order."""
    nodes = nodes_of(job.plan)
    used = list(dict.fromkeys(nodes))
    per_node = max(nodes.count(node) for node in used)
    agents = agents_of(job.plan) if how.tasks == "node" else ()
    if len({agent.num_ranks for agent in agents}) > 1:
        raise UserError(
            f"plan `{job.plan.id}` takes unlike numbers of devices of its nodes",
            hint="launch it with `--tasks rank`",
        )
    # Per task its node: by name, or by its place in what Slurm allots.
    places = how.hosts or tuple(str(used.index(node)) for node in nodes)
    if agents:
        places = places[:: len(nodes) // len(agents)]
    head = _directives(job, how, len(used), per_node)
    return "".join(f"{line}\n" for line in [*head, "", *_body(job, how, places, per_node)])


def _directives(job: Job, how: ScriptOptions, num_nodes: int, per_node: int) -> list[str]:
    log = job.run_dir / LOG_NAME
    lines = [
        f"job-name={job.plan.id}",
        f"nodes={num_nodes}",
        f"ntasks={job.plan.chosen.config.num_devices if how.tasks == 'rank' else num_nodes}",
        "exclusive",
        "no-requeue",
        f"output={_escaped(str(log))}",
        "open-mode=append",
    ]
    if how.hosts:
        lines.append(f"nodelist={','.join(dict.fromkeys(how.hosts))}")
    if not job.plan.cluster.groups[0].device.is_host:
        lines.append(f"gpus-per-node={per_node}")
    return ["#!/bin/bash", *(f"#SBATCH --{line}" for line in (*lines, *how.options))]


def _escaped(path: str) -> str:
    """A path in a line of #SBATCH, whose `%` stands for a pattern."""
    return shlex.quote(path.replace("%", "%%"))


def _body(job: Job, how: ScriptOptions, places: Sequence[str], per_node: int) -> list[str]:
    run = shlex.quote(str(job.run_dir))
    listed = " ".join(places)
    if how.hosts:
        hosts = [f"tasks=({listed})"]
    else:
        hosts = [
            'mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
            f'tasks=(); for node in {listed}; do tasks+=("${{nodes[node]}}"); done',
        ]
    attempts = job.recipe.max_restarts + 1
    return [
        f"run={run}",
        f"trap 'echo $? > \"$run/{STATUS_NAME}\"' EXIT",
        "# The host of each task, in order.",
        *hosts,
        'printf "%s\\n" "${tasks[@]}" > "$run/hosts"',
        'export SLURM_HOSTFILE="$run/hosts" HEAD_NODE="${tasks[0]}"',
        "export PORT=$((20000 + SLURM_JOB_ID % 20000))",
        *(f"export {key}={shlex.quote(value)}" for key, value in job.program_of(how.python).env),
        f"for attempt in {' '.join(str(k) for k in range(attempts))}; do",
        f"  srun --distribution=arbitrary --ntasks={len(places)} --kill-on-bad-exit=1 \\",
        f"    --cpu-bind=none bash -c {shlex.quote(_task(job, how, per_node))}",
        "  status=$?",
        '  if [ "$status" = 0 ]; then exit 0; fi',
        "done",
        'exit "$status"',
    ]


def _task(job: Job, how: ScriptOptions, per_node: int) -> str:
    """What each task runs, in a shell that knows its number."""
    program = job.program_of(how.python)
    if how.tasks == "rank" and program.per_node:
        raise UserError(
            "this framework's launcher starts the ranks of a node itself",
            hint="leave `--tasks rank` out",
        )
    if how.tasks == "rank":
        names = (
            "env RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS "
            "MASTER_ADDR=$HEAD_NODE MASTER_PORT=$PORT "
        )
        argv = (*program.interpreter, *program.argv)
    else:
        names = ""
        num_nodes = len(agents_of(job.plan))
        meeting = Meeting(num_nodes=num_nodes, node_rank="$SLURM_PROCID", port="$PORT")
        argv = program.agent(per_node, meeting if num_nodes > 1 else None)
    return f"exec {names}{shell_words(argv)}"
