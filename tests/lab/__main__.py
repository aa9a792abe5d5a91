"""A lab from the shell: `python -m tests.lab up topologies/uniform.yaml`, and `run` for a command.

`up` stays until Ctrl-C, SIGTERM or the end of its stdin, and prints how to enter hosts. `run` runs
a command on every host at once and ends with the worst of their statuses.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from launch.scheduler.local import signals_interrupt
from profiler.errors import UserError
from tests.lab import slurm, ssh
from tests.lab.lab import Lab, LabError, why_not
from tests.lab.topology import read


def main() -> int:
    """Exit status: 2 for a topology that cannot be, 1 for a lab that failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "run"):
        command = commands.add_parser(name)
        command.add_argument("topology", type=Path)
        command.add_argument("--ssh", action="store_true", help="start sshd on each host")
        command.add_argument("--slurm", action="store_true", help="start Slurm")
        if name == "run":
            command.add_argument("argv", nargs=argparse.REMAINDER, help="-- COMMAND...")
    asked = parser.parse_args()
    if reason := why_not():
        print(f"error: no lab on this machine: {reason}", file=sys.stderr)
        return 1
    try:
        with signals_interrupt(), Lab(read(asked.topology)) as lab:
            for service in [ssh] * asked.ssh + [slurm] * asked.slurm:
                service.start(lab)
            return stay(lab) if asked.command == "up" else run(lab, asked.argv)
    except KeyboardInterrupt:
        return 0 if asked.command == "up" else 128 + signal.SIGINT
    except UserError as e:
        print(f"error: {e}" + (f"\n\nhint: {e.hint}" if e.hint else ""), file=sys.stderr)
        return 2
    except LabError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


def stay(lab: Lab) -> int:
    """Keep the lab up until stdin ends."""
    width = max(map(len, lab.pids))
    for name, pid in lab.pids.items():
        enter = f"nsenter --target {pid} --net --mount --uts --ipc --pid"
        print(f"{name:{width}}  {lab.topology.address(name):12}  {enter}")
    print("Up until Ctrl-C", flush=True)
    sys.stdin.read()
    return 0


def run(lab: Lab, argv: list[str]) -> int:
    """Run a command on each host; lines of its output have the host's name before them."""
    command = argv[1:] if argv[:1] == ["--"] else argv
    if not command:
        raise UserError("no command", hint="python -m tests.lab run TOPOLOGY -- COMMAND...")
    processes = {
        host.name: lab.popen(
            host.name, command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for host in lab.topology.hosts
    }  # fmt: skip
    readers = [
        threading.Thread(target=_show, args=(name, process.stdout), daemon=True)
        for name, process in processes.items()
    ]
    for thread in readers:
        thread.start()
    worst = 0
    for name, process in processes.items():
        status = process.wait()
        if status:
            print(f"{name}: `{shlex.join(command)}` ended with {status}", file=sys.stderr)
        worst = max(worst, abs(status))
    for thread in readers:
        thread.join()
    return worst


def _show(name: str, stream: IO[str]) -> None:
    for line in stream:
        print(f"{name}: {line}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
