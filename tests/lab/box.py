"""The box that holds a whole lab, and dies with its owner: `python -m tests.lab.box SPEC`.

Two processes come before the hosts'. The *warden* waits until its stdin closes, its parent ends or
the box does, then kills the box and removes the control groups. The box's first process has
namespaces of its own (its network is the switch's, and the controller's) and starts for each host
a first process in a nested set of namespaces; it reaps, and sorts ranks into their control groups.
SIGKILL to the first process of a process namespace ends all in it, nested ones too, and with them
their interfaces and mounts: nothing is left to clean but the control groups.

The warden's stdout says once which ids the first processes have in the owner's namespace.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from launch.scheduler.orphans import end_with_parent
from tests.lab import CONTROLLER, quota
from tests.lab.kernel import BIND, MACHINE, NEW_PID, PRIVATE, RECURSIVE, mount, unshare

SHARED = Path("/run/lab")
"""Inside the box, in memory, the same for all hosts: keys, configuration, logs."""
SORT_S = 0.1
"""How often ranks are sought."""
_END_S = 10.0


@dataclass(frozen=True, slots=True)
class Spec:
    """What the box needs to know."""

    hosts: list[str]
    etc_hosts: str
    """Text of /etc/hosts."""
    cgroups: str | None
    """Folder in which the lab's tree of control groups is made; None without quotas."""


def tree(folder: str | Path, warden: int) -> Path:
    """Top of the control groups of the lab that has the warden with that process id."""
    return Path(folder) / f"meshwright-lab-{warden}"


def main() -> None:
    """The warden."""
    spec = Spec(**json.loads(sys.argv[1]))
    top = tree(spec.cgroups, os.getpid()) if spec.cgroups else None
    owner = os.pidfd_open(os.getppid())
    inner, report = os.pipe()
    unshare(NEW_PID)
    first = os.fork()
    if first == 0:
        os.close(inner)
        _box(spec, top, report)
    os.close(report)
    ends = [0, owner, os.pidfd_open(first)]
    try:
        if select.select([inner, *ends], [], [])[0][0] == inner:
            said = os.read(inner, 1 << 16).decode()
            print(json.dumps(_as_seen_here(said, first)), flush=True)
            select.select(ends, [], [])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)
        # Not waitpid: the box's end waits for whoever should reap a process that was entered and
        # orphaned, which is the machine's own first process.
        select.select([ends[-1]], [], [], _END_S)
        if top is not None:
            quota.remove(top)


def _as_seen_here(report: str, first: int) -> dict[str, Any]:
    """The box's report, its process ids turned into those of this namespace."""
    said: dict[str, Any] = json.loads(report or '{"error": "the box ended while it was built"}')
    if "error" in said:
        return said
    here = {}
    for pid in Path(f"/proc/{first}/task/{first}/children").read_text().split():
        status = Path(f"/proc/{pid}/status").read_text()
        ids = next(x for x in status.splitlines() if x.startswith("NSpid:")).split()[1:]
        here[int(ids[1])] = int(ids[0])  # from this namespace inwards
    return {"pids": {CONTROLLER: first} | {h: here[p] for h, p in said["pids"].items()}}


def _box(spec: Spec, top: Path | None, report: int) -> NoReturn:
    """The first process of the box."""
    with _reporting(report):
        end_with_parent(signal.SIGKILL)
        unshare(MACHINE)
        mount("none", "/", flags=RECURSIVE | PRIVATE)
        mount("proc", "/proc", "proc")
        _only_ipv4()
        _furnish(spec.etc_hosts)
        socket.sethostname(CONTROLLER)
        pids = {name: _start_host(name) for name in spec.hosts}
        os.write(report, json.dumps({"pids": pids}).encode())
    if top is None:
        _reap_for_ever(lambda: signal.sigwait({signal.SIGCHLD}))

    def look_around() -> None:
        quota.sort_ranks(top)
        signal.sigtimedwait({signal.SIGCHLD}, SORT_S)

    _reap_for_ever(look_around)


def _only_ipv4() -> None:
    """NICs to come get no IPv6 address, whose packets no filter would know."""
    switch = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    if switch.exists():
        switch.write_text("1")


def _furnish(etc_hosts: str) -> None:
    """Names without DNS, and places in memory for what services keep; seen by all hosts."""
    mount("none", "/run", "tmpfs")
    for folder in (SHARED, SHARED / "log", Path("/run/sshd")):
        folder.mkdir()
    texts = {
        "hosts": etc_hosts,
        "resolv.conf": "",
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
        "ssh/ssh_config": "",  # filled when sshd is asked for
    }
    for name, text in texts.items():
        own = SHARED / "etc" / name
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(text)
        if (Path("/etc") / name).is_file():
            mount(own, Path("/etc") / name, flags=BIND)
    own = SHARED / "etc" / "slurm"
    own.mkdir()
    if Path("/etc/slurm").is_dir():
        mount(own, "/etc/slurm", flags=BIND)


def _start_host(name: str) -> int:
    """Process id of a new host's first process in this namespace."""
    inner, report = os.pipe()
    between = os.fork()  # a process can make a process namespace for its children once only
    if between == 0:
        with _reporting(report):
            unshare(MACHINE | NEW_PID)
            first = os.fork()
            if first == 0:
                _host(name, report)
            os._exit(0 if os.write(report, f"{first}\n".encode()) else 1)
        os._exit(1)
    os.close(report)
    os.waitpid(between, 0)
    with os.fdopen(inner) as stream:
        said = stream.read()
    if "error" in said:
        raise RuntimeError(f"{name}: {said}")
    return int(said)


def _host(name: str, report: int) -> NoReturn:
    """The first process of a host."""
    with _reporting(report):
        mount("proc", "/proc", "proc")
        _only_ipv4()
        mount("none", "/dev/shm", "tmpfs")
        # The machine's /sys shows another network's devices; control groups stay where they were.
        kept = SHARED / "etc" / name
        kept.mkdir()
        mount("/sys/fs/cgroup", kept, flags=BIND | RECURSIVE)
        mount("sysfs", "/sys", "sysfs")
        mount(kept, "/sys/fs/cgroup", flags=BIND | RECURSIVE)
        socket.sethostname(name)
    _reap_for_ever(lambda: signal.sigwait({signal.SIGCHLD}))


@contextlib.contextmanager
def _reporting(report: int) -> Iterator[None]:
    """The end of building: what failed goes to the pipe; then all files are let go."""
    try:
        yield
    except Exception:
        os.write(report, json.dumps({"error": traceback.format_exc()}).encode())
        os._exit(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.closerange(3, 256)  # a pipe that a fork holds open has no end for its reader


def _reap_for_ever(wait: Callable[[], object]) -> NoReturn:
    """What a first process does: orphans are its children."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        wait()


if __name__ == "__main__":
    main()
