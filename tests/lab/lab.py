"""A lab that runs: `with Lab(topology) as lab: lab.run("host0", ["hostname"])`.

The owner, this process, starts the box (`box.py`), wires and shapes its network from outside and
enters hosts by `enter.py`. It keeps nothing that must be cleaned: a lab ends when its owner does.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from profiler.codec import build, replace, to_plain
from profiler.errors import UserError
from tests.lab import CONTROLLER, network, quota
from tests.lab.box import SHARED, Spec, tree
from tests.lab.enter import NO_HOST
from tests.lab.topology import Host, Nic, Pair, Topology

ROOT = Path(__file__).resolve().parents[2]
_ENTER = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.lab.enter import main; main()"
_TOOLS = ("ip", "tc", "nsenter", "unshare")
_TRY = """
ip link add try0 type veth peer name try1
ip link add try2 type bridge
tc qdisc add dev try0 root handle 1: htb default 2
tc qdisc add dev try1 root tbf rate 1mbit burst 64k latency 50ms
"""
_CLOSE_S = 20.0


class LabError(RuntimeError):
    """The lab, or something in it, is not as asked; the message says what was found."""


def why_not() -> str | None:
    """Why this machine cannot hold a lab; None where it can."""
    if not sys.platform.startswith("linux"):
        return "namespaces are Linux's"
    if os.geteuid():
        return "only root makes namespaces with shaped networks and CPU quotas"
    if missing := [tool for tool in _TOOLS if not shutil.which(tool)]:
        return f"{', '.join(missing)} not found (apt-get install iproute2 util-linux)"
    spaces = ("--net", "--mount", "--pid", "--uts", "--ipc", "--fork")
    done = subprocess.run(["unshare", *spaces, "sh", "-ec", _TRY], capture_output=True, text=True)
    if done.returncode:
        return f"the kernel forbids it: {done.stderr.strip()}"
    return None


class Lab:
    """Hosts of a topology, from `with` to its end."""

    def __init__(self, topology: Topology) -> None:
        cores = len(os.sched_getaffinity(0))
        if topology.cores > cores:
            raise UserError(
                f"ranks of `{topology.name}` use {topology.cores:g} cores, but there are {cores}",
                hint="lower `cpu_share`",
            )
        self.topology = topology
        """As it is now: changes of rates are changes of it."""
        self.pids: dict[str, int] = {}
        """First process of each machine that is up."""
        self.quotas: quota.Quotas | None = None
        self._warden: subprocess.Popen[str] | None = None
        self._services: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        controller = quota.find() if self.topology.cpu_share else None
        spec = Spec(
            hosts=[h.name for h in self.topology.hosts],
            etc_hosts=network.etc_hosts(self.topology),
            cgroups=str(controller.root) if controller else None,
        )
        self._warden = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.lab.box", json.dumps(asdict(spec))],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C at the terminal is the owner's
        )
        assert self._warden.stdout is not None
        said = json.loads(self._warden.stdout.readline() or '{"error": "the box ended"}')
        if "error" in said:
            raise LabError(f"the box did not come up:\n{said['error']}")
        self.pids = said["pids"]
        if controller:
            self._limit(tree(controller.root, self._warden.pid), controller)
        self._wire()

    def _limit(self, top: Path, controller: quota.Controller) -> None:
        try:
            self.quotas = quota.Quotas.make(controller, top.name)
            for host in self.topology.hosts:
                self.quotas.add_host(host.name, host.ranks, self.topology.share(host))
        except OSError as e:
            raise LabError(f"CPU quotas cannot be set: {e}") from None

    def _wire(self) -> None:
        topology = self.topology
        self._batch(CONTROLLER, "ip", network.plug(topology, self.pids))
        for host in topology.hosts:
            self._batch(host.name, "ip", network.address(topology, host))
            self._batch(host.name, "tc", network.shape_host(topology, host))
        ports = [
            x for h, nic in network.cables(topology) for x in network.port_rates(topology, h, nic)
        ]
        self._batch(CONTROLLER, "tc", ports)
        for host, nic in network.cables(topology):
            if delays := network.delays_ms(topology, host.name, nic.name):
                self._delay(host, nic, delays)

    def _delay(self, host: Host, nic: Nic, delays_ms: dict[str, float]) -> None:
        """Put a relay on the cable of a NIC."""
        relay = [sys.executable, "-I", "-S", str(ROOT / "tests" / "lab" / "relay.py")]
        ends = network.relay_ends(self.topology, host.name, nic.name)
        port = network.port(self.topology, host.name, nic.name)
        for place, device in ((host.name, nic.name), (CONTROLLER, port)):
            self.run(place, [*relay, "whole", device], check=True)
        process = self.popen(
            CONTROLLER, [*relay, *ends, json.dumps(delays_ms)], stdout=subprocess.PIPE, text=True
        )
        self._services.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise LabError(f"the relay of {host.name}'s {nic.name} did not come up")

    def close(self) -> None:
        """End all that runs in the lab and remove it."""
        if self._warden is None:
            return
        assert self._warden.stdin is not None
        assert self._warden.stdout is not None
        with contextlib.suppress(BrokenPipeError), self._warden.stdin as stdin:
            stdin.write("end\n")  # a fork of ours may hold the pipe open
        try:
            status = self._warden.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._warden.kill()  # the box ends with it
            status = self._warden.wait()
        self._warden.stdout.close()
        self._warden, self.pids = None, {}
        for process in self._services:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if self.quotas is not None:
            quota.remove(self.quotas.top)
        if status:
            raise LabError(f"the lab's warden ended with {status}")

    def shared(self, name: str = "") -> Path:
        """A file of the box's `SHARED` folder as the owner sees it."""
        return Path(f"/proc/{self.pid(CONTROLLER)}/root{SHARED}") / name

    def command(self, host: str, argv: Sequence[str], *, rank: int | None = None) -> list[str]:
        """A command for this machine that runs `argv` on a host or on the controller.

        With `rank`, a local one, it has that rank's CPU quota.
        """
        limited = self.quotas is not None and host != CONTROLLER
        procs = str(self.quotas.procs(host, rank)) if self.quotas and limited else "-"
        pid = str(self.pid(host))
        return [sys.executable, "-I", "-S", "-c", _ENTER, pid, procs, *argv]

    def popen(
        self, host: str, argv: Sequence[str], *, rank: int | None = None, **options: Any
    ) -> "subprocess.Popen[Any]":
        """Start a command on a host; `options` are those of `subprocess.Popen`.

        Signals to the process reach the command, which ends with it.
        """
        return subprocess.Popen(self.command(host, argv, rank=rank), **options)

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        rank: int | None = None,
        timeout_s: float = 60.0,
        check: bool = False,
        stdin: str | None = None,
        **options: Any,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on a host to its end; what it wrote, as text.

        `check`: `LabError` with what it wrote to stderr where it ended with another status than 0.
        """
        options = {"stdin": subprocess.PIPE if stdin is not None else subprocess.DEVNULL} | options
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with self.popen(host, argv, rank=rank, **(pipes | options)) as process:
            try:
                out, err = process.communicate(stdin, timeout=timeout_s)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(list(argv), process.returncode, out, err)
        if check and done.returncode:
            why = "the host is down" if done.returncode == NO_HOST else f"status {done.returncode}"
            raise LabError(f"`{' '.join(argv)}` on {host}: {why}\n{out or ''}{err or ''}")
        return done

    def serve(self, host: str, argv: Sequence[str], name: str) -> "subprocess.Popen[Any]":
        """Start a service that ends with the lab; it writes to `SHARED/log/NAME`."""
        with self.shared(f"log/{name}").open("ab") as log:
            process = self.popen(
                host, argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._services.append(process)
        return process

    def set_rate(
        self,
        source: str,
        target: str,
        mbit_per_s: float,
        *,
        nic: str | None = None,
        both_ways: bool = False,
    ) -> None:
        """Change what a host sends to another, in Mbit/s, while jobs run."""
        pair = Pair(
            source=source, target=target, mbit_per_s=mbit_per_s, nic=nic, both_ways=both_ways
        )
        self._change(self.topology.with_pair(pair))
        for host in (source, target) if both_ways else (source,):
            self._shape(self.topology.host(host))

    def set_nic_rate(
        self, host: str, nic: str, mbit_per_s: float, receive_mbit_per_s: float | None = None
    ) -> None:
        """Change what a NIC sends and receives (None: as much), in Mbit/s, while jobs run."""
        card = Nic(name=nic, mbit_per_s=mbit_per_s, receive_mbit_per_s=receive_mbit_per_s)
        self._change(self.topology.with_nic(host, card))
        self._shape(self.topology.host(host))

    def _change(self, topology: Topology) -> None:
        """Another topology from now on, checked as a file of it would be."""
        self.topology = build(Topology, to_plain(topology), topology.name)

    def _shape(self, host: Host) -> None:
        rates = [x for nic in host.nics for x in network.class_rates(self.topology, host, nic)]
        ports = [x for nic in host.nics for x in network.port_rates(self.topology, host, nic)]
        self._batch(host.name, "tc", rates)
        self._batch(CONTROLLER, "tc", ports)

    def set_speed(self, host: str, speed: float) -> None:
        """Change the speed of a host's ranks (1: that of a healthy host) while jobs run."""
        if self.quotas is None:
            raise UserError("without `cpu_share` no host has a speed", hint="give `cpu_share`")
        hosts = (replace(h, speed=speed) if h.name == host else h for h in self.topology.hosts)
        self._change(replace(self.topology, hosts=tuple(hosts)))
        found = self.topology.host(host)
        self.quotas.set_share(host, found.ranks, self.topology.share(found))

    def kill_host(self, host: str) -> None:
        """As if its power were cut: no packet leaves any more, then all its processes end."""
        pid = self.pid(host)
        nics = self.topology.host(host).nics
        down = [f"link set {network.port(self.topology, host, nic.name)} down" for nic in nics]
        self._batch(CONTROLLER, "ip", down)
        os.kill(pid, signal.SIGKILL)
        del self.pids[host]

    def pid(self, host: str) -> int:
        """First process of a machine, as this process sees it; `LabError` where it is down."""
        if host in self.pids:
            return self.pids[host]
        if host != CONTROLLER:
            self.topology.host(host)
        raise LabError(f"{host} is down")

    def _batch(self, host: str, tool: str, lines: Sequence[str]) -> None:
        """Lines for `ip` or `tc` in the network of a machine."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid(host)}", "--net", tool, "-batch", "-"],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise LabError(f"{tool} on {host}: {done.stderr.strip()}")
