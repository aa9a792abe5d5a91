"""Run one command per host and end all of them when one fails.

Each is a client (ssh) whose standard input stays open while it is to run: closing it ends the
command on the host. Lines of all go to one log, with the host's name in front where there are
several hosts. After the first failure the others may end by themselves for a while, so that the
host at fault is told from those that only lost it.
"""

import collections
import contextlib
import queue
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from launch.faults import first_of_hosts
from launch.scheduler import local
from launch.scheduler.base import TAIL_LINES, Ended, OnLine
from launch.scheduler.ssh import ALIVE_S, ALIVE_TIMES, FAILED_STATUS

SETTLE_S = ALIVE_S * (ALIVE_TIMES + 1.0)
"""As long as it takes to see that a host is silent."""
END_S = local.GRACE_S + 5.0
_Client = subprocess.Popen[str]
_Line = tuple[str, str | None]
"""Host, and what it printed; None at its end."""


def run_together(commands: Mapping[str, Sequence[str]], log: Path, on_line: OnLine) -> Ended:
    """Run `commands` (host -> argv) to the end of all, or until one fails."""
    lines: queue.SimpleQueue[_Line] = queue.SimpleQueue()
    with log.open("ab", buffering=0) as out:
        watch = _Watch(out, on_line, prefixed=len(commands) > 1)
        clients: dict[str, _Client] = {}
        readers: list[threading.Thread] = []
        try:
            for host, argv in commands.items():
                clients[host] = _start(argv)
            for host, client in clients.items():
                readers.append(threading.Thread(target=_read, args=(host, client, lines)))
                readers[-1].start()
            watch.until_the_end(clients, lines)
        finally:
            _end(list(clients.values()))
            for reader in readers:
                reader.join()
            while not lines.empty():
                watch.see(*lines.get(), clients)
    return watch.ended()


def _start(argv: Sequence[str]) -> _Client:
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=local.end_with_us,
    )


def _read(host: str, client: _Client, lines: "queue.SimpleQueue[_Line]") -> None:
    assert client.stdout is not None
    with client.stdout:
        for line in client.stdout:
            lines.put((host, line.rstrip("\n")))
    lines.put((host, None))


class _Watch:
    """What was printed, and who ended how."""

    def __init__(self, out: BinaryIO, on_line: OnLine, *, prefixed: bool) -> None:
        self._out, self._on_line, self._prefixed = out, on_line, prefixed
        self._tails: dict[str, collections.deque[str]] = {}
        self._codes: dict[str, int] = {}
        self._stopped = False

    def until_the_end(
        self, clients: Mapping[str, _Client], lines: "queue.SimpleQueue[_Line]"
    ) -> None:
        """Until all ended, or some while after the first that failed."""
        deadline: float | None = None
        while len(self._codes) < len(clients):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            try:
                self.see(*lines.get(timeout=left), clients)
            except queue.Empty:
                break
            if deadline is None and any(self._codes.values()):
                deadline = time.monotonic() + SETTLE_S
        self._stopped = True  # how clients end from here on says nothing of their hosts

    def see(self, host: str, line: str | None, clients: Mapping[str, _Client]) -> None:
        """The next line of a host, or its end."""
        if line is None:
            if not self._stopped:
                self._codes[host] = clients[host].wait()
            return
        text = f"{host}: {line}\n" if self._prefixed else f"{line}\n"
        with contextlib.suppress(OSError):  # a full disk is the ranks' to report
            self._out.write(text.encode())
        self._tails.setdefault(host, collections.deque(maxlen=TAIL_LINES)).append(line)
        if not self._stopped:
            self._on_line(line)

    def ended(self) -> Ended:
        """The run's end: the host that was lost, else the first that shows a cause."""
        failed = {host: code for host, code in self._codes.items() if code != 0}
        if not failed:
            return Ended(code=0)
        for host, code in failed.items():
            if code == FAILED_STATUS:
                said = [line for line in self._tails.get(host, ()) if line.strip()][-1:]
                why = f": {said[0].strip().rstrip('.')}" if said else ""
                return Ended(code=code, fault=f"the connection to host {host} was lost{why}")
        fault = first_of_hosts({host: self._tails.get(host, ()) for host in failed})
        host, code = next(iter(failed.items()))
        return Ended(code=code, fault=fault or f"host {host}: its agent ended with status {code}")


def _end(clients: Sequence[_Client]) -> None:
    """End commands by closing their inputs, all at once; then the clients."""
    for client in clients:
        assert client.stdin is not None
        with contextlib.suppress(OSError):
            client.stdin.close()
    deadline = time.monotonic() + END_S
    try:
        for client in clients:
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(max(0.0, deadline - time.monotonic()))
    finally:  # a second Ctrl-C does not wait
        for client in clients:
            local.stop(client, 2.0)
