"""Runs over ssh: one torchrun on each host of a hostfile, in the order of the plan's nodes.

Before anything starts each host is asked what it has (`launch.scheduler.probe`): whether it sees
the folder of runs, by a token written there, and whether it has torch, GPUs and interfaces. The
agents meet on a port that was free on the first host. After a fault all are ended, and started
again as often as the recipe says: torchrun's own restarts would lose the order of nodes.
"""

import contextlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launch.framework.native import DEFAULT_PORT, Agent, Command, Meeting, agents_of
from launch.scheduler import local
from launch.scheduler.base import LOG_NAME, Ended, Job, OnLine, SchedulerName
from launch.scheduler.hosts import Host, hosts_of_plan
from launch.scheduler.probe import Found
from launch.scheduler.ssh import ASK_S, FAILED_STATUS, Ssh
from launch.scheduler.together import run_together
from planner.plan import Plan
from profiler.codec import replace
from profiler.errors import UserError

_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SshNodes:
    """Hosts that are reached by ssh, in the order of the cluster's nodes."""

    hosts: tuple[Host, ...]
    hosts_file: str
    """What errors call them."""
    ssh: Ssh
    port: int = DEFAULT_PORT
    """Where the agents meet on the first host, where nobody listens on it."""
    head: str = ""
    """Address of the first host; empty: its name in the hostfile."""
    name: SchedulerName = "ssh"

    def ready(self, plan: Plan, runs: Path) -> Self:
        """Ask all hosts that the plan uses."""
        if shutil.which("ssh") is None:
            raise UserError(
                "there is no `ssh` here", hint="install OpenSSH's client", kind="failed"
            )
        chosen = self._chosen(plan)
        hosts = [host for host, _ in chosen]
        with _token_in(runs) as (file, token), ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(lambda host: _ask(self.ssh, host, file, self.port), hosts))
        names = plan.chosen.placement.interfaces or ("",) * len(chosen)
        for (host, agent), seen, interface in zip(chosen, found, names, strict=True):
            _check_software(host, seen, hosts[0], found[0], self.ssh.python)
            if seen["token"] != token:
                raise UserError(
                    f"host `{host.name}` does not see the folder of runs `{runs.absolute()}`",
                    hint="give a folder that all hosts share with `--runs FOLDER`",
                    kind="failed",
                )
            _check_devices(plan, host, seen, agent, interface)
        return replace(self, port=found[0]["port"], head=self.ssh.address(hosts[0].name))

    def files(self, job: Job) -> dict[str, str]:
        """commands.txt, a line for each host."""
        lines = [
            f"{host.name}: {self._agent(job, agent, rank).typed}\n"
            for rank, (host, agent) in enumerate(self._chosen(job.plan))
        ]
        return {"commands.txt": "".join(lines)}

    def run(self, job: Job, on_line: OnLine, on_job: OnLine) -> Ended:
        """All agents, to their end."""
        commands: dict[str, tuple[str, ...]] = {}
        for rank, (host, agent) in enumerate(self._chosen(job.plan)):
            what = self._agent(job, agent, rank)
            commands[host.address] = self.ssh.command(host.name, what.argv, dict(what.env))
        with local.signals_interrupt():
            ended = run_together(commands, job.run_dir / LOG_NAME, on_line)
            for restart in range(job.recipe.max_restarts):
                if ended.code == 0:
                    break
                on_line(f"warning: {ended.fault}; restart {restart + 1}")
                ended = run_together(commands, job.run_dir / LOG_NAME, on_line)
        return ended

    def _chosen(self, plan: Plan) -> list[tuple[Host, Agent]]:
        agents = agents_of(plan)
        wanted = [(agent.node, agent.num_ranks) for agent in agents]
        return list(
            zip(hosts_of_plan(self.hosts, plan, wanted, self.hosts_file), agents, strict=True)
        )

    def _agent(self, job: Job, agent: Agent, node_rank: int) -> Command:
        chosen = self._chosen(job.plan)
        meeting = Meeting(
            num_nodes=len(chosen),
            node_rank=str(node_rank),
            head=self.head or chosen[0][0].address,
            port=str(self.port),
        )
        program = job.program_of(self.ssh.python)
        argv = program.agent(agent.num_ranks, meeting if len(chosen) > 1 else None)
        return Command(argv=argv, env=program.env)


@contextlib.contextmanager
def _token_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """A file in the folder, which is made where it is not there, and its content."""
    token = secrets.token_hex(16)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder.absolute(), prefix=".token.") as file:
            Path(file.name).chmod(0o644)
            file.write(token)
            file.flush()
            yield Path(file.name), token
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise UserError(f"cannot make a run folder: {reason}", place=str(folder)) from None


def _ask(ssh: Ssh, host: Host, file: Path, port: int) -> Found:
    """What a host has; `UserError` where it cannot be asked."""
    probe = (ssh.python, "-P", "-m", "launch.scheduler.probe", str(file), str(port))
    said = ssh.ask(host.name, probe)
    if said.returncode == 0:
        found: Found = json.loads(said.stdout.splitlines()[-1])
        return found
    last = [line.strip() for line in said.stderr.splitlines() if line.strip()][-1:]
    why = f": {last[0].rstrip('.')}" if last else ""
    if said.returncode == FAILED_STATUS:
        raise UserError(
            f"host `{host.name}` cannot be reached by ssh{why}",
            hint=f"`ssh {host.name} true` must work without a question",
            kind="failed",
        )
    if said.returncode < 0:
        raise UserError(f"host `{host.name}` did not answer within {ASK_S:.0f} s", kind="failed")
    raise UserError(
        f"host `{host.name}` does not run meshwright with `{ssh.python}`{why}",
        hint="`--python` names an interpreter that has it on all hosts",
        kind="failed",
    )


def _check_software(host: Host, seen: Found, first: Host, head: Found, python: str) -> None:
    if seen["torch"] is None:
        raise UserError(
            f"torch is not installed for `{python}` on host `{host.name}`",
            hint="pip install 'meshwright[run]' there",
            kind="failed",
        )
    if seen["torch"] != head["torch"]:
        raise UserError(
            f"host `{host.name}` has torch {seen['torch']}, `{first.name}` has {head['torch']}",
            hint="install the same version on all hosts",
            kind="failed",
        )


def _check_devices(plan: Plan, host: Host, seen: Found, agent: Agent, interface: str) -> None:
    """Stale where the host is not what the plan was made for."""
    groups = [group for group in plan.cluster.groups for _ in range(group.num_nodes)]
    device = groups[agent.node].device
    if not device.is_host and seen["num_gpus"] < agent.num_ranks:
        raise UserError(
            f"plan `{plan.id}` is stale: it was made for {agent.num_ranks} x {device.name} on host "
            f"`{host.name}`, which has {seen['num_gpus']} GPUs",
            hint="plan for the devices that the hosts have",
            kind="stale",
        )
    if interface and interface not in seen["interfaces"]:
        raise UserError(
            f"host `{host.name}` has no network interface `{interface}`",
            hint=f"it has {', '.join(seen['interfaces'])}",
            kind="stale",
        )
