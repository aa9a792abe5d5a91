"""JSON lines between the coordinator of link profiling and its agents, over TCP.

An agent says `hello` with its name, the run's token, its NICs and backend, then `beat` every
second. The coordinator answers with its store's port, then sends tasks; each member of a task
replies with its `result` or an `error`.
"""

import json
import os
import socket
from typing import Any

from profiler.errors import UserError

TOKEN_ENV = "MESHWRIGHT_LINK_TOKEN"
BEAT_S = 1.0
SILENT_S = 8.0
"""An agent that says nothing for so long is lost: eight beats, which a loaded host may delay."""
MAX_LINE = 1 << 22
"""Bytes; a task names at most some thousand hosts."""

MESSAGE_BYTES = (1 << 18, 1 << 24)
"""Least and most of a message of a stream: short beside the stream, long beside its overhead."""

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """One line."""
    return json.dumps(message, allow_nan=False).encode() + b"\n"


def split(buffer: bytearray) -> list[Message]:
    """Whole lines at the start of a buffer, taken out of it; `ValueError` where one is not ours."""
    *lines, rest = bytes(buffer).split(b"\n")
    if len(rest) > MAX_LINE:
        raise ValueError("a line without an end")
    buffer[:] = rest
    messages = [json.loads(line) for line in lines]
    if not all(isinstance(message, dict) for message in messages):
        raise ValueError("a line that is no object")
    return messages


def address_towards(host: str) -> str:
    """Our address on the way to a host, as the kernel would choose it; sends nothing."""
    family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def token() -> str:
    """A word that agents of this run show: that of the environment, for agents that are started by
    other means, or a new one."""
    return os.environ.get(TOKEN_ENV) or os.urandom(12).hex()


def parse_address(text: str) -> tuple[str, int]:
    """`HOST` or `HOST:PORT` -> host and port, 0 where none is given; `UserError` otherwise."""
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "0")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UserError(f"`{text[:80]}` is no address", hint="`HOST` or `HOST:PORT`")
    return host, int(port)
