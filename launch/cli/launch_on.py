"""Where `launch` runs a plan: the options of each scheduler, and the scheduler they make."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from profiler.errors import UserError

if TYPE_CHECKING:
    from launch.scheduler.base import Scheduler
    from launch.scheduler.hosts import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What was typed of it; None and empty where nothing was."""

    on: str
    runs: Path
    any_host: bool
    hosts: Path | None
    python: str | None
    ssh_option: tuple[str, ...]
    tasks: str | None
    sbatch_option: tuple[str, ...]
    manifest: str | None
    image: str | None
    claim: str | None
    namespace: str | None


_TAKES = {
    "local": ("any_host",),
    "ssh": ("hosts", "python", "ssh_option"),
    "slurm": ("hosts", "python", "tasks", "sbatch_option"),
    "kubernetes": ("python", "manifest", "image", "claim", "namespace"),
}
"""Options of each scheduler."""


def scheduler_of(where: Where) -> "Scheduler":
    """The scheduler; `UserError` where an option is not one of its, or is missing."""
    if where.on not in _TAKES:
        raise UserError(f"`--on {where.on[:40]}` is not known", hint=f"one of {', '.join(_TAKES)}")
    for option in dict.fromkeys(name for names in _TAKES.values() for name in names):
        if getattr(where, option) and option not in _TAKES[where.on]:
            takers = " and ".join(f"`--on {on}`" for on, names in _TAKES.items() if option in names)
            raise UserError(
                f"`--{option.replace('_', '-')}` is not an option of `--on {where.on}`",
                hint=f"it goes with {takers}",
            )
    return {"local": _local, "ssh": _ssh, "slurm": _slurm, "kubernetes": _kubernetes}[where.on](
        where
    )


def _local(where: Where) -> "Scheduler":
    from launch.scheduler.single_node import SingleNode

    return SingleNode(any_host=where.any_host)


def _hosts(path: Path | None) -> "tuple[Host, ...]":
    from launch.scheduler.hosts import read_hosts

    return () if path is None else read_hosts(path)


def _ssh(where: Where) -> "Scheduler":
    from launch.scheduler.ssh import Ssh
    from launch.scheduler.ssh_nodes import SshNodes

    if where.hosts is None:
        raise UserError(
            "`--on ssh` needs the hosts",
            hint="`--hosts FILE`, one host per line in the order of the cluster's nodes",
        )
    for option in where.ssh_option:
        if not option.partition("=")[0].isalnum() or "=" not in option:
            raise UserError(
                f"`--ssh-option {option[:80]}` is not of the form Key=value",
                hint="ssh_config(5) lists the keys; `Port=2222` is one",
            )
    ssh = Ssh(options=where.ssh_option, python=where.python or sys.executable)
    return SshNodes(hosts=_hosts(where.hosts), hosts_file=str(where.hosts), ssh=ssh)


def _slurm(where: Where) -> "Scheduler":
    from launch.scheduler.slurm import Slurm
    from launch.scheduler.slurm_script import ScriptOptions, Tasks

    tasks = next((name for name in get_args(Tasks) if name == (where.tasks or "node")), None)
    if tasks is None:
        raise UserError(f"`--tasks {where.tasks}` is not known", hint="`node` or `rank`")
    script = ScriptOptions(
        tasks=tasks, python=where.python or sys.executable, options=where.sbatch_option
    )
    return Slurm(script=script, hosts=_hosts(where.hosts), hosts_file=str(where.hosts))


def _kubernetes(where: Where) -> "Scheduler":
    from launch.scheduler.kube_manifest import MANIFESTS, PodOptions
    from launch.scheduler.kubernetes import Kubernetes

    chosen = where.manifest or MANIFESTS[0]
    manifest = next((name for name in MANIFESTS if name == chosen), None)
    if manifest is None:
        raise UserError(
            f"`--manifest {chosen[:40]}` is not known", hint=f"one of {', '.join(MANIFESTS)}"
        )
    if where.image is None or where.claim is None:
        missing = "image" if where.image is None else "claim"
        raise UserError(
            f"`--on kubernetes` needs `--{missing}`",
            hint="`--image` has meshwright installed, `--claim` is the volume that holds the runs",
        )
    claim, _, mount = where.claim.partition(":")
    path = Path(mount) if mount else where.runs.absolute()
    if not claim or not path.is_absolute():
        raise UserError(
            f"`--claim {where.claim[:80]}` is not of the form NAME or NAME:/PATH",
            hint="PATH is where the volume is mounted, here as in the pods",
        )
    pods = PodOptions(
        image=where.image,
        claim=claim,
        mount=path,
        python=where.python or "python",
        namespace=where.namespace or "",
    )
    return Kubernetes(manifest=manifest, pods=pods)
