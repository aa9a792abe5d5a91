"""One host's part of `meshwright profile --links`: `python -P -m launch.runtime.link_agent
HOST:PORT [NAME]`, started by ssh, by srun or by hand.

Tasks come over the connection to the coordinator and run in threads, so that one host can have
several streams at a time. The agent ends when the connection does. The token of the run is in the
environment (`launch.link_wire.TOKEN_ENV`).
"""

import contextlib
import fcntl
import os
import signal
import socket
import struct
import sys
import threading
import time

import torch

from launch.link_wire import BEAT_S, TOKEN_ENV, Message, encode, split
from launch.runtime.link_transfers import Transfers
from launch.scheduler.orphans import end_with_parent

_SIOCGIFADDR = 0x8915  # <linux/sockios.h>
_CONNECT_S = 30.0


def nics() -> tuple[str, ...]:
    """Interfaces that have an IPv4 address, loopback left out."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has none
                continue
            if answer[20] != 127:
                found.append(name)
    return tuple(found)


class Agent:
    """The connection, and the tasks that came over it."""

    def __init__(self, control: socket.socket, name: str, host: str) -> None:
        self.control, self.name, self.host = control, name, host
        self._lock = threading.Lock()
        self._transfers: Transfers | None = None

    def send(self, message: Message) -> None:
        """One whole line."""
        with self._lock:
            self.control.sendall(encode(message))

    def serve(self) -> None:
        """Until the coordinator closes the connection."""
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        token = os.environ.get(TOKEN_ENV, "")
        hello = {"hello": self.name, "token": token, "nics": nics(), "backend": backend}
        self.send(hello)
        threading.Thread(target=self._beat, daemon=True).start()
        buffer = bytearray()
        while data := self.control.recv(1 << 16):
            buffer += data
            for message in split(buffer):
                self._take(message)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            try:
                self.send({"beat": 1})
            except OSError:
                os._exit(1)

    def _take(self, message: Message) -> None:
        if "store" in message:
            store = (self.host, int(message["store"]))
            own = self.control.getsockname()[0]
            self._transfers = Transfers(self.name, store, own, message["run"])
        elif "task" in message:
            threading.Thread(target=self._do, args=(message,), daemon=True).start()

    def _do(self, task: Message) -> None:
        assert self._transfers is not None
        reply: Message = {"reply": task["task"], "part": task.get("part", 0)}
        try:
            reply["result"] = self._transfers.do(task)
        except Exception as e:  # whatever a transport raises is this task's result
            reply["error"] = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:300]
        with contextlib.suppress(OSError):  # the coordinator is gone, and so will we be
            self.send(reply)


def _connect(address: tuple[str, int]) -> socket.socket:
    """To a coordinator that may be about to start."""
    deadline = time.monotonic() + _CONNECT_S
    while True:
        try:
            return socket.create_connection(address, timeout=_CONNECT_S)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def main(argv: list[str]) -> None:
    """Connect, serve, end."""
    end_with_parent(signal.SIGKILL)
    host, _, port = argv[0].rpartition(":")
    name = argv[1] if len(argv) > 1 else socket.gethostname()
    torch.set_num_threads(1)
    with _connect((host, int(port))) as control:
        control.settimeout(None)
        control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Agent(control, name, host).serve()
    os._exit(0)  # threads may still wait for hosts that are gone


if __name__ == "__main__":
    main(sys.argv[1:])
