"""A measured profile of one host, and links between hosts like it."""

from collections.abc import Sequence

import numpy as np

from profiler.codec import replace
from profiler.links import Links
from profiler.profile import Profile, Timing, TransferEntry
from tests.unit import facts
from tests.unit.made_links import links_of

LATENCY = 1e-5


def profiled(per_node: int = 2, base: Profile | None = None, **changes: object) -> Profile:
    """Of a host with so many devices; a message inside takes 10 us and 1 ns per byte."""
    base = base or facts.profile(1, per_node, **changes)
    kept = tuple(e for e in base.transfers if e.op != "p2p")
    inside = tuple(
        TransferEntry(
            op="p2p", ranks=(0, 1), scope="node", num_bytes=n, source="measured",
            time=Timing(median_s=LATENCY + n * 1e-9, repeats=3),
        )
        for n in (1, 10**7)
    )  # fmt: skip
    return replace(base, transfers=kept + inside)


def links(
    *slow: tuple[int, int],
    num_hosts: int = 4,
    rate: float = 1e8,
    bad: float = 1e6,
    slowdown: Sequence[float] | None = None,
) -> Links:
    """Alike hosts; between those of `slow` (from, to) a hundredth of the rate."""
    rates = np.full((num_hosts, num_hosts), rate)
    for i, j in slow:
        rates[i, j] = bad
    made = links_of(rates)
    ends = np.full(num_hosts, rate)
    slow_hosts = None if slowdown is None else np.array(slowdown, dtype=float)
    return Links(
        hosts=made.hosts, bytes_per_s=rates, latency_s=np.full(rates.shape, LATENCY),
        out_rate=ends, in_rate=ends, slowdown=slow_hosts,
    )  # fmt: skip
