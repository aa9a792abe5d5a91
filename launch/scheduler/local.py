"""Run a command on this machine and stop all of it when asked.

The command gets a session of its own, so that Ctrl-C at the terminal reaches only us; we pass
SIGTERM on to torchrun, which ends its workers, and after a grace period kill it. Its workers, in
sessions of their own, are set to end with it, and it with us.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from launch.scheduler.orphans import end_with_parent

if TYPE_CHECKING:  # `launch.scheduler.guard` starts on every host: it imports no planner
    from launch.framework.native import Command

GRACE_S = 20.0


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the work like Ctrl-C does, inside this context (main thread only)."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def end_with_us() -> None:
    """In a child before its command: it gets SIGTERM when this process is gone."""
    end_with_parent(signal.SIGTERM)


def stop(process: "subprocess.Popen[Any]", grace_s: float = GRACE_S) -> None:
    """End a process group: SIGTERM to its leader, SIGKILL to all of it after `grace_s`."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(timeout=grace_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass  # a second Ctrl-C does not wait for the grace period
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(command: "Command", log: Path, on_line: Callable[[str], None]) -> int:
    """Run to the end; every output line goes to `log` and to `on_line`. Returns the exit status.

    KeyboardInterrupt (also from SIGTERM, SIGHUP) stops all processes and is raised again.
    """
    # Unbuffered: what a full disk does not take is not tried again when the file is closed.
    with signals_interrupt(), log.open("wb", buffering=0) as out:
        process = subprocess.Popen(
            command.argv,
            env=os.environ | dict(command.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=end_with_us,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                with contextlib.suppress(OSError):  # a full disk is the ranks' to report
                    out.write(line.encode())
                on_line(line.rstrip("\n"))
            return process.wait()
        finally:
            stop(process)
            if process.stdout is not None:
                process.stdout.close()
