"""What a host has for a run: `python -m launch.scheduler.probe FILE PORT` prints it as JSON.

Imports nothing that takes time, torch least of all: it runs on every host before a run starts.
"""

import importlib.metadata
import importlib.util
import json
import socket
import sys
from pathlib import Path
from typing import TypedDict

from launch.scheduler.gpus import num_gpus


class Found(TypedDict):
    """What is printed."""

    host: str
    token: str | None
    """Content of the file; None where the host does not see it."""
    torch: str | None
    """Version; None where it is not installed."""
    num_gpus: int
    interfaces: list[str]
    port: int
    """The wished one where nobody listens on it, else one that is free."""


def free_port(wished: int) -> int:
    """A port of this machine that nobody has, `wished` where that is one."""
    for port in (wished, 0):
        with socket.socket() as taken:
            try:
                taken.bind(("", port))
            except OSError:
                continue
            return int(taken.getsockname()[1])
    raise OSError("no port is free")


def look(file: Path, port: int) -> Found:
    """What this host has."""
    try:
        token = file.read_text(encoding="utf-8")
    except OSError:
        token = None
    has_torch = importlib.util.find_spec("torch") is not None
    return Found(
        host=socket.gethostname(),
        token=token,
        torch=importlib.metadata.version("torch") if has_torch else None,
        num_gpus=num_gpus(),
        interfaces=sorted(name for _, name in socket.if_nameindex()),
        port=free_port(port),
    )


if __name__ == "__main__":
    print(json.dumps(look(Path(sys.argv[1]), int(sys.argv[2]))))
