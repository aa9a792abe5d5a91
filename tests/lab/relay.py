"""Delay on a cable, where the kernel has no netem: a process between two pieces of it.

`relay.py A B DELAYS` passes frames from device A, the host's side, to device B after the delay that
DELAYS (JSON: IPv4 address -> ms) has for their destination, and from B to A at once. `relay.py
whole DEVICE` makes a device compute checksums and cut segments itself, as a card would: what a
relay reads must be what a cable carries. Needs no package.
"""

import array
import contextlib
import fcntl
import heapq
import json
import select
import socket
import struct
import sys
import time

_ALL_FRAMES = 0x0003  # <linux/if_ether.h> ETH_P_ALL
_PACKET, _IGNORE_OUTGOING = 263, 23  # <linux/if_packet.h>
_RECEIVE_BUFFER, _SEND_BUFFER = 33, 32  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
_ETHTOOL, _SET_TX_CHECKSUM = 0x8946, 0x17  # <linux/sockios.h>, <linux/ethtool.h>
_BUFFER_BYTES = 32 << 20
_IPV4 = b"\x08\x00"
_AT_ONCE = 64
"""Frames read before what is due is sent."""


def tap(device: str) -> socket.socket:
    """All frames that arrive at a device; what is sent leaves by it."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_FRAMES))
    made.setsockopt(_PACKET, _IGNORE_OUTGOING, 1)
    made.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER, _BUFFER_BYTES)
    made.setsockopt(socket.SOL_SOCKET, _SEND_BUFFER, _BUFFER_BYTES)
    made.bind((device, 0))
    made.setblocking(False)
    return made


def make_whole(device: str) -> None:
    """No checksums or segments are left to be made by whoever reads the device's frames."""
    value = array.array("I", [_SET_TX_CHECKSUM, 0])
    request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _ETHTOOL, request)


def frames(source: socket.socket) -> list[bytes]:
    """What has arrived, up to `_AT_ONCE`."""
    out: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while len(out) < _AT_ONCE:
            out.append(source.recv(65_600))
    return out


def send(target: socket.socket, frame: bytes) -> None:
    """Send, or lose the frame as a full device would."""
    with contextlib.suppress(OSError):
        target.send(frame)


def relay(host: socket.socket, switch: socket.socket, delays_s: dict[bytes, float]) -> None:
    """Pass frames on for ever; `delays_s` is by the destination's four bytes."""
    waiting: list[tuple[float, int, bytes]] = []
    number = 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select([host, switch], [], [], timeout)
        if host in ready:
            now = time.monotonic()
            for frame in frames(host):
                delay = delays_s.get(frame[30:34], 0.0) if frame[12:14] == _IPV4 else 0.0
                number += 1
                heapq.heappush(waiting, (now + delay, number, frame))
        if switch in ready:
            for frame in frames(switch):
                send(host, frame)
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            send(switch, heapq.heappop(waiting)[2])


def main() -> None:
    """As the module says."""
    if sys.argv[1] == "whole":
        make_whole(sys.argv[2])
        return
    host, switch, delays_ms = sys.argv[1:]
    delays = {socket.inet_aton(a): ms * 1e-3 for a, ms in json.loads(delays_ms).items()}
    ends = tap(host), tap(switch)
    print("ready", flush=True)
    relay(*ends, delays)


if __name__ == "__main__":
    main()
