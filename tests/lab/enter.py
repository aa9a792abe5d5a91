"""Run something inside a host, from outside of it, so that it behaves like a child of ours.

The process joins the host's namespaces and forks: only a child is in the host's process namespace.
The child joins the cgroup, ends by SIGKILL when this process does, gets the signals that this one
gets, and this one ends as the child ended. As a program: `ENTER PID CGROUP.PROCS|- COMMAND...`.
"""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launch.scheduler.orphans import end_with_parent
from tests.lab.kernel import MACHINE, NEW_PID, join

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
NO_HOST = 255
"""Exit status where the host is not there, as of ssh."""


def run_inside(pid: int, cgroup: str | None, body: Callable[[], NoReturn]) -> NoReturn:
    """Call `body` in a child inside the host whose first process is `pid`.

    `cgroup` is the path of a `cgroup.procs` file; `body` ends by itself (exec or `os._exit`).
    """
    folder = Path.cwd()
    # Opened here, for the host may see other control groups; written by the child, so that this
    # process does not count.
    procs = os.open(cgroup, os.O_WRONLY) if cgroup else None
    try:
        join(pid, MACHINE | NEW_PID)
    except OSError as e:
        print(f"the host is down: {e.strerror}", file=sys.stderr, flush=True)
        os._exit(NO_HOST)
    with contextlib.suppress(OSError):  # a new mount namespace begins at its root
        os.chdir(folder)
    alive, held = os.pipe()  # an end that only this process holds
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        end_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        os.close(held)
        if select.select([alive], [], [], 0)[0]:  # it was killed before the kernel knew
            os._exit(NO_HOST)
        if procs is not None:
            os.write(procs, b"0")
            os.close(procs)
        body()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    end_like(os.waitpid(child, 0)[1])


def end_like(status: int) -> NoReturn:
    """End with the wait status of another process, signal included."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main() -> NoReturn:
    """Run a command."""
    pid, cgroup, *command = sys.argv[1:]

    def start() -> NoReturn:
        try:
            os.execvp(command[0], command)
        except OSError as e:
            print(f"{command[0]}: {e.strerror}", file=sys.stderr, flush=True)
            os._exit(127)

    run_inside(int(pid), None if cgroup == "-" else cgroup, start)
