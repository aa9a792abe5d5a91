"""`meshwright profile --links` without its terminal: starts an agent on each host, measures, makes
the links file.

The journal beside the output keeps what was measured. A host that does not come or goes away is
named, and the links of the others are measured all the same.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.framework.native import WORKER_ENV
from launch.link_agents import Agents
from launch.link_measure import Course, LinkJournal, Progress
from launch.link_wire import TOKEN_ENV, address_towards, token
from launch.profiling import partial_folder, resumable
from launch.scheduler import local
from launch.scheduler.hosts import Host
from launch.scheduler.ssh import FAILED_STATUS, Ssh
from profiler.errors import UserError
from profiler.link_assemble import assemble
from profiler.link_files import Fabric
from profiler.link_profile import LinkInputs, LinkReport, TaskResult
from profiler.link_rounds import ALL_PAIRS_HOSTS
from profiler.links import Links
from profiler.measure.journal import opened

BUDGET_S = 60.0
CONNECT_S = 90.0
"""For agents to come: they import torch, from a shared file system maybe."""
STOP_S = 10.0
AGENT = ("-m", "launch.runtime.link_agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How the hosts are reached, and what of them is measured."""

    hosts: tuple[Host, ...]
    ssh: Ssh | None
    """None: agents are started by hand, by srun or so."""
    nics: tuple[str, ...] = ("",)
    """Empty: all that every host has."""
    budget_s: float = BUDGET_S
    serial: bool = False
    seed: int = 0
    address: str | None = None
    port: int = 0
    fabric: Fabric | None = None


def measure_links(
    how: How, out: Path, *, restart: bool, progress: Progress, tell: Callable[[str], None]
) -> tuple[Links, LinkReport]:
    """Measure; writes nothing but the partial folder of `out`. `tell` is given lines to show.

    Raises `UserError`: invalid, stale (a partial folder of other inputs), failed (no link was
    measured), interrupted.
    """
    if len(how.hosts) < 2:
        raise UserError("links need two hosts or more", hint="list them in the hostfile")
    if how.ssh is not None and shutil.which("ssh") is None:
        raise UserError(
            "there is no `ssh` on this machine",
            hint="install OpenSSH's client, or start agents by other means and give `--wait`",
        )
    folder = partial_folder(out)
    with resumable(folder):
        return _measure(how, folder, restart, progress, tell)


def _measure(
    how: How, folder: Path, restart: bool, progress: Progress, tell: Callable[[str], None]
) -> tuple[Links, LinkReport]:
    names = tuple(host.address for host in how.hosts)
    inputs = LinkInputs(
        hosts=names, nics=how.nics, budget_s=how.budget_s, serial=how.serial, seed=how.seed
    )
    journal = opened(LinkJournal(folder, LinkInputs, TaskResult), inputs, restart=restart)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(journal.log.open("ab"))
        agents = _agents(how, names, stack, log.fileno(), tell)
        for host, why in agents.lost.items():
            tell(f"{host} is left out: {why}")
        if len(agents.alive) < 2:
            raise UserError(
                "fewer than two hosts answered",
                hint=f"what their agents said is in `{journal.log}`",
                kind="failed",
                details=tuple(f"{host}: {why}" for host, why in agents.lost.items())[:5],
            )
        known = set(agents.lost)
        nics = _nics(how.nics, agents, tell)
        used = LinkInputs(
            hosts=names, nics=nics, budget_s=how.budget_s, serial=how.serial, seed=how.seed
        )
        leaves = None
        if how.fabric is not None and len(names) > ALL_PAIRS_HOSTS:
            leaves = [how.fabric.leaves(name) for name in names]
        Course(agents, journal, used, leaves, progress).run()
        for host in agents.lost.keys() - known:
            tell(f"{host} was lost: {agents.lost[host]}")
        alive, backend = agents.alive, agents.backend
    done = journal.finished()
    lost = [name for name in names if name not in alive]
    return assemble(alive, nics, done.values(), _failed(done, alive), lost, backend, how.fabric)


def _failed(done: dict[str, TaskResult], alive: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of hosts that are there, of which no message arrived."""
    failed = []
    for name, result in done.items():
        kind, *words = name.split()
        if kind == "pair" and result.error and set(words[-2:]) <= set(alive):
            failed.append((words[-2], words[-1]))
    return list(dict.fromkeys(failed))


def _nics(asked: tuple[str, ...], agents: Agents, tell: Callable[[str], None]) -> tuple[str, ...]:
    """The NICs to measure; a host that lacks one is an error, not a slow link."""
    if asked == ():
        common = agents.common_nics()
        if not common:
            raise UserError("the hosts have no NIC of the same name", hint="name them by `--nics`")
        tell(f"NICs: {', '.join(common)}")
        return common
    for host in agents.alive:
        lacking = [nic for nic in asked if nic and nic not in agents.nics_of(host)]
        if lacking:
            raise UserError(
                f"`{host}` has no NIC `{lacking[0]}` with an address",
                hint=f"it has {', '.join(agents.nics_of(host)) or 'none'}",
            )
    return asked


def _agents(
    how: How,
    names: tuple[str, ...],
    stack: contextlib.ExitStack,
    log: int,
    tell: Callable[[str], None],
) -> Agents:
    """Agents that are there, once all came or cannot; they end with the stack."""
    secret = token()
    store = stack.enter_context(_store(log))
    try:
        agents = Agents(names, secret, store, how.port)
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise UserError(f"cannot listen on port {how.port}: {reason}", kind="failed") from None
    stack.callback(agents.close)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    if how.ssh is None:
        own = how.address or "ADDRESS"
        line = f"{TOKEN_ENV}={secret} python -P {' '.join(AGENT)} {own}:{agents.port} [NAME]"
        tell(f"Waiting for agents; start on each host: {line}")
    else:
        for host in how.hosts:
            processes[host.address] = stack.enter_context(_agent(how, host, secret, agents, log))

    def ended() -> dict[str, str]:
        codes = {name: process.poll() for name, process in processes.items()}
        return {name: _why(code) for name, code in codes.items() if code is not None}

    agents.wait(CONNECT_S, ended)
    return agents


def _why(code: int) -> str:
    if code == FAILED_STATUS:
        return "ssh could not connect; what it said is in the log of the partial folder"
    return f"its agent ended with status {code}; what it said is in the log"


@contextlib.contextmanager
def _agent(
    how: How, host: Host, secret: str, agents: Agents, log: int
) -> "Iterator[subprocess.Popen[bytes]]":
    assert how.ssh is not None
    try:
        own = how.address or address_towards(how.ssh.address(host.name))
    except OSError:  # no such name; its connection says what is wrong
        own = how.address or "localhost"
    argv = [how.ssh.python, "-P", *AGENT, f"{own}:{agents.port}", host.address]
    command = how.ssh.command(host.name, argv, dict(WORKER_ENV) | {TOKEN_ENV: secret})
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()  # ends the command on the host
        local.stop(process, STOP_S)


@contextlib.contextmanager
def _store(log: int) -> Iterator[int]:
    """Port of the store's process."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "launch.runtime.link_store"],
        env=os.environ | dict(WORKER_ENV),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip().isdigit():
            raise UserError(
                "the store of the agents did not start",
                hint="measuring needs PyTorch on this host too: pip install 'meshwright[run]'",
                kind="failed",
            )
        yield int(line)
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        local.stop(process, STOP_S)
