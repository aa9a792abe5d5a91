"""CPU quotas: each rank a control group of its own, so that no rank uses another's idle time.

Version 1 (`cpu.cfs_quota_us`) and version 2 (`cpu.max`) of control groups. The tree of a lab is
`ROOT/meshwright-lab-N/HOST/any` for what runs on a host and `.../HOST/rankK` for its ranks. A rank
started by a launcher or a scheduler is known by `LOCAL_RANK` or `SLURM_LOCALID` in its environment
and moved to its group by `sort_ranks`.
"""

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from profiler.errors import UserError

PERIOD_US = 10_000
"""Of quotas. The usual 100 ms would let a rank that was idle catch up within the period, and so
hide most of a pipeline's bubble."""
_LOCAL_RANK = tuple(
    re.compile(rb"(?:^|\0)%s=(\d+)(?=\0|$)" % name) for name in (b"LOCAL_RANK", b"SLURM_LOCALID")
)
"""The first that is there counts: torchrun under srun starts ranks of its own."""


@dataclass(frozen=True, slots=True)
class Controller:
    """Where CPU quotas are set."""

    root: Path
    version: int

    def quota(self, group: Path, cores: float) -> None:
        """Give a group that many cores at most."""
        quota_us = max(1000, round(cores * PERIOD_US))  # the kernel takes no less than 1 ms
        period_us = max(PERIOD_US, round(quota_us / cores))
        if self.version == 2:
            (group / "cpu.max").write_text(f"{quota_us} {period_us}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(period_us))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))

    def group(self, parent: Path, name: str) -> Path:
        """A new group below one that holds no process."""
        if self.version == 2:
            (parent / "cgroup.subtree_control").write_text("+cpu")
        made = parent / name
        made.mkdir(exist_ok=True)
        return made


def find(mounts: str | None = None) -> Controller:
    """The machine's controller; `mounts` is the text of /proc/self/mounts."""
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    fields = [line.split() for line in text.splitlines()]
    for _, folder, kind, options, *_ in fields:
        if kind == "cgroup" and "cpu" in options.split(","):
            return Controller(Path(folder), 1)
    for _, folder, kind, *_ in fields:
        controllers = Path(folder) / "cgroup.controllers"
        if kind == "cgroup2" and "cpu" in controllers.read_text().split():
            return Controller(Path(folder), 2)
    raise UserError(
        "no control group of this machine limits CPU time",
        hint="leave out `cpu_share`, or mount cgroup with the cpu controller",
        kind="failed",
    )


def why_not() -> str | None:
    """Why quotas cannot be set on this machine; None where they can."""
    try:
        controller = find()
        top = controller.root / f"meshwright-lab-try-{os.getpid()}"
        try:
            Quotas.make(controller, top.name).add_host("host", 1, 0.1)
        finally:
            remove(top)
    except UserError as e:
        return e.message
    except OSError as e:
        return f"CPU quotas cannot be set: {e}"
    return None


@dataclass(frozen=True, slots=True)
class Quotas:
    """The groups of one lab."""

    controller: Controller
    top: Path

    @classmethod
    def make(cls, controller: Controller, name: str) -> "Quotas":
        """An empty tree of that name."""
        return cls(controller, controller.group(controller.root, name))

    def add_host(self, host: str, ranks: int, share: float) -> None:
        """Groups of a host and its ranks, with `share` of a core each."""
        home = self.controller.group(self.top, host)
        for name in ("any", *(f"rank{k}" for k in range(ranks))):
            self.controller.group(home, name)
        self.set_share(host, ranks, share)

    def set_share(self, host: str, ranks: int, share: float) -> None:
        """What runs on the host beside ranks has as much as all its ranks."""
        self.controller.quota(self.top / host / "any", share * ranks)
        for k in range(ranks):
            self.controller.quota(self.top / host / f"rank{k}", share)

    def procs(self, host: str, rank: int | None) -> Path:
        """The file to write a process id to."""
        name = "any" if rank is None else f"rank{rank}"
        return self.top / host / name / "cgroup.procs"


def sort_ranks(top: Path) -> None:
    """Move ranks that are not in their own groups to them."""
    for procs in top.glob("*/*/cgroup.procs"):
        with contextlib.suppress(OSError):  # the lab may go while we look
            for pid in procs.read_text().split():
                _move_rank(procs.parent, pid)


def _move_rank(group: Path, pid: str) -> None:
    with contextlib.suppress(OSError):  # a process may end while we look
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        found = next((m for r in _LOCAL_RANK if (m := r.search(environment))), None)
        own = group.parent / f"rank{int(found[1])}" if found else group
        if own != group and own.is_dir():
            (own / "cgroup.procs").write_text(pid)


def remove(top: Path, timeout_s: float = 5.0) -> None:
    """Remove a lab's groups as its processes, which are dying, leave them."""
    deadline = time.monotonic() + timeout_s
    while top.exists():
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        if top.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes are still in {top}")
            time.sleep(0.02)
