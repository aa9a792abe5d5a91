"""Slurm in a lab: slurmctld on the controller, slurmd on each host, munge between them.

`sbatch`, `srun` and `squeue` work on all machines of a lab as they do in a cluster; configuration,
state and logs are in the box's memory. Made for Slurm 22.05 and later. A rank is a CPU of Slurm's;
GPUs are pretended (`--gres=gpu:N`), one per rank, each a null device.
"""

import os
import shutil
import time
from pathlib import Path

from tests.lab import CONTROLLER
from tests.lab.box import SHARED
from tests.lab.lab import Lab, LabError
from tests.lab.topology import Topology

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
PACKAGES = "slurmctld slurmd slurm-client munge"
_HOME = SHARED / "slurm"
_CONF = SHARED / "etc" / "slurm"
"""What /etc/slurm is in the box."""
_SOCKET = _HOME / "munge.socket"
_START_S = 20.0
_GENERAL = f"""\
ClusterName=lab
SlurmctldHost={CONTROLLER}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={_SOCKET}
StateSaveLocation={_HOME}/state
SlurmdSpoolDir={_HOME}/spool.%n
SlurmctldPidFile={_HOME}/slurmctld.pid
SlurmdPidFile={_HOME}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
GresTypes=gpu
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
KillWait=2
"""


def missing() -> list[str]:
    """Programs that are not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    return [name for name in PROGRAMS if not shutil.which(name, path=path)]


def start(lab: Lab) -> None:
    """Start a cluster of all hosts; returns when all nodes are idle."""
    if gone := missing():
        raise LabError(f"{', '.join(gone)} not installed (apt-get install {PACKAGES})")
    if not Path("/etc/slurm").is_dir():
        raise LabError("there is no /etc/slurm to put the lab's configuration over")
    _configure(lab)
    munged = ["/usr/sbin/munged", "--foreground", "--force", f"--socket={_SOCKET}"]
    for option in ("key-file", "pid-file", "log-file", "seed-file"):
        munged.append(f"--{option}={_HOME}/munge.{option}")
    lab.serve(CONTROLLER, munged, "munged")
    deadline = time.monotonic() + _START_S
    while not lab.shared("slurm/munge.socket").exists():
        _pause(lab, deadline)
    lab.serve(CONTROLLER, ["/usr/sbin/slurmctld", "-D"], "slurmctld")
    for host in lab.topology.hosts:
        lab.serve(host.name, ["/usr/sbin/slurmd", "-D", "-N", host.name], f"slurmd.{host.name}")
    idle = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
    wanted = sorted(f"{h.name} idle" for h in lab.topology.hosts)
    while sorted(lab.run(CONTROLLER, idle).stdout.split("\n")[:-1]) != wanted:
        _pause(lab, deadline)


def _configure(lab: Lab) -> None:
    home, conf = lab.shared("slurm"), lab.shared("etc/slurm")
    (home / "state").mkdir(parents=True)
    key = home / "munge.key-file"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for host in lab.topology.hosts:
        (home / f"spool.{host.name}").mkdir()
    most = max(h.ranks for h in lab.topology.hosts)
    for k in range(most):
        os.mknod(home / f"gpu{k}", 0o20666, os.makedev(1, 3))
    (conf / "slurm.conf").write_text(_GENERAL + "".join(_nodes(lab.topology)))
    gpus = (
        f"NodeName={h.name} Name=gpu File={_HOME}/gpu[0-{h.ranks - 1}]\n"
        for h in lab.topology.hosts
    )
    (conf / "gres.conf").write_text("AutoDetect=off\n" + "".join(gpus))
    # Which version is not found out inside a host.
    version = 1 if Path("/sys/fs/cgroup/cpu").is_dir() else 2
    (conf / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v{version}\nCgroupAutomount=no\n")


def _nodes(topology: Topology) -> list[str]:
    lines = [
        f"NodeName={h.name} NodeAddr={topology.address(h.name)} CPUs={h.ranks} RealMemory=1000 "
        f"Gres=gpu:{h.ranks} State=UNKNOWN\n"
        for h in topology.hosts
    ]
    names = ",".join(h.name for h in topology.hosts)
    lines.append(f"PartitionName=all Nodes={names} Default=YES MaxTime=60 State=UP\n")
    return lines


def _pause(lab: Lab, deadline: float) -> None:
    """Wait a moment; `LabError` with the end of each log when it was too long."""
    if time.monotonic() > deadline:
        logs = sorted(lab.shared("log").glob("*"))
        said = "\n".join(f"{p.name}: {p.read_text(errors='replace')[-800:]}" for p in logs)
        raise LabError(f"Slurm did not come up in {_START_S:g} s\n{said}")
    time.sleep(0.1)
