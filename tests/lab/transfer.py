"""Bytes over one TCP connection after another, timed by who receives them. Needs no package.

`transfer.py receive ADDRESS PORT TIMES` prints for each connection, as JSON, when it began and when
it ended (s, on the clock that all hosts of a lab share) and how many bytes came between;
`transfer.py send ADDRESS PORT TIMES BYTES` sends them. `transfer.py answer ADDRESS PORT TIMES` and
`transfer.py ask ADDRESS PORT TIMES` measure the time of a byte there and back, in ms. Receivers
first print `ready`.
"""

import json
import socket
import sys
import time

_CHUNK = 1 << 20
_FIRST = 1 << 17
"""Bytes that are not timed: what shapers let through at once after a pause."""


def receive(listener: socket.socket, times: int) -> list[tuple[float, float, int]]:
    """(begin, end, bytes) of each connection, without its first bytes."""
    out = []
    for _ in range(times):
        with listener.accept()[0] as connection:
            first = received = 0
            begin = time.monotonic()
            while chunk := connection.recv(_CHUNK):
                received += len(chunk)
                if not first and received >= _FIRST:
                    first, begin = received, time.monotonic()
            out.append((begin, time.monotonic(), received - first))
    return out


def answer(listener: socket.socket, times: int) -> None:
    """Give back each byte that comes."""
    with listener.accept()[0] as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(times):
            connection.sendall(connection.recv(1))


def ask(address: tuple[str, int], times: int) -> list[float]:
    """ms until each byte is back."""
    out = []
    with socket.create_connection(address, 20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(times):
            begin = time.perf_counter()
            connection.sendall(b"x")
            connection.recv(1)
            out.append((time.perf_counter() - begin) * 1e3)
    return out


def main() -> None:
    """As the module says."""
    what, address, times = sys.argv[1], (sys.argv[2], int(sys.argv[3])), int(sys.argv[4])
    if what in ("receive", "answer"):
        with socket.create_server(address) as listener:
            listener.settimeout(30)
            print("ready", flush=True)
            print(json.dumps((receive if what == "receive" else answer)(listener, times)))
    elif what == "ask":
        print(json.dumps(ask(address, times)))
    else:
        block = bytes(int(sys.argv[5]))
        for _ in range(times):
            with socket.create_connection(address, 20) as connection:
                connection.sendall(block)


if __name__ == "__main__":
    main()
