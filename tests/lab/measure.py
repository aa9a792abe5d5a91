"""What a lab's links do, measured with plain sockets; waiting for what is to come."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from profiler.links import Links
from tests.lab.lab import ROOT, Lab, LabError

_TRANSFER = (sys.executable, "-I", "-S", str(ROOT / "tests" / "lab" / "transfer.py"))
_PORT = 5201


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until it is true; `LabError` where that takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited for {seconds:g} s in vain")
        time.sleep(0.05)


def rate_mbit(
    lab: Lab, source: str, target: str, expected_mbit: float, *, nic: str | None = None
) -> float:
    """Median rate of three transfers from a host to another, each of 0.3 s at the expected rate."""
    seen = _transfers(lab, [(source, target)], expected_mbit, 0.3, nic, times=3)[0]
    return statistics.median(num_bytes * 8e-6 / (end - begin) for begin, end, num_bytes in seen)


def links_of(lab: Lab, inside: float) -> Links:
    """Every pair of hosts, both ways, as a transfer between the two finds it; `inside`: bytes per
    second between ranks of a host, which are not measured."""
    names = tuple(host.name for host in lab.topology.hosts)
    rates = np.full((len(names), len(names)), inside)
    for i, source in enumerate(names):
        for j, target in enumerate(names):
            if i != j:
                expected = lab.topology.mbit(source, target, "eth0")
                mbit = rate_mbit(lab, source, target, expected)
                rates[i, j] = mbit * 1e6 / 8
    return Links(hosts=names, bytes_per_s=rates, latency_s=np.full(rates.shape, 1e-4))


def together_mbit(lab: Lab, flows: Sequence[tuple[str, str]], expected_mbit: float) -> float:
    """What flows (source, target) reach that go at once: all their bytes from the first one's begin
    to the last one's end. Each takes 0.8 s at the expected rate.
    """
    seen = [one for (one,) in _transfers(lab, flows, expected_mbit, 0.8, None, times=1)]
    seconds = max(end for _, end, _ in seen) - min(begin for begin, _, _ in seen)
    return sum(num_bytes for _, _, num_bytes in seen) * 8e-6 / seconds


def _transfers(
    lab: Lab, flows: Sequence[tuple[str, str]], expected_mbit: float, seconds: float,
    nic: str | None, times: int,
) -> list[list[tuple[float, float, int]]]:  # fmt: skip
    """[flow, transfer] -> (begin, end, bytes) of flows at once, each through a port of its own."""
    num_bytes = max(1 << 20, round(expected_mbit * 1e6 / 8 * seconds))
    receivers = []
    for i, (_, target) in enumerate(flows):
        place = [lab.topology.address(target, nic), str(_PORT + i), str(times)]
        receivers.append(_listen(lab, target, [*_TRANSFER, "receive", *place]))
    senders = []
    for i, (source, target) in enumerate(flows):
        place = [lab.topology.address(target, nic), str(_PORT + i), str(times)]
        senders.append(lab.popen(source, [*_TRANSFER, "send", *place, str(num_bytes)]))
    out = [json.loads(_last(receiver)) for receiver in receivers]
    if any(sender.wait(10) for sender in senders):
        raise LabError("a sender failed")
    return out


def round_trip_ms(lab: Lab, source: str, target: str, *, times: int = 21) -> float:
    """Median time of a byte there and back."""
    place = [lab.topology.address(target), str(_PORT), str(times)]
    listener = _listen(lab, target, [*_TRANSFER, "answer", *place])
    asked = lab.run(source, [*_TRANSFER, "ask", *place], check=True)
    _last(listener)
    times_ms: list[float] = json.loads(asked.stdout)
    return statistics.median(times_ms)


def _listen(lab: Lab, host: str, argv: Sequence[str]) -> "subprocess.Popen[str]":
    process = lab.popen(host, argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _last(process: "subprocess.Popen[str]") -> str:
    try:
        return process.communicate(timeout=60)[0]
    finally:
        process.kill()
