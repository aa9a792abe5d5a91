"""Links and traffic made at random."""

import numpy as np

from planner.traffic import Traffic
from profiler.links import Links


def random_links(num_hosts: int, seed: int, spread: float = 0.8) -> Links:
    """Every pair has a rate and latency of its own in each direction."""
    random = np.random.default_rng(seed)
    rate = 10e9 * random.uniform(1 - spread, 1, (num_hosts, num_hosts))
    np.fill_diagonal(rate, 100e9)
    latency = random.uniform(1e-6, 1e-5, (num_hosts, num_hosts))
    return Links(
        hosts=tuple(f"host{k}" for k in range(num_hosts)), bytes_per_s=rate, latency_s=latency
    )


def alike(num_hosts: int, rate: float = 10e9) -> np.ndarray:
    """Rates of hosts that are all joined alike."""
    rates = np.full((num_hosts, num_hosts), rate)
    np.fill_diagonal(rates, 100e9)
    return rates


def links_of(rates: np.ndarray) -> Links:
    """Hosts with these rates."""
    names = tuple(f"host{k}" for k in range(len(rates)))
    return Links(hosts=names, bytes_per_s=rates, latency_s=np.full(rates.shape, 5e-6))


RING = Traffic(axis="dp", shape="ring", num_bytes=3e9, messages=14)
CHAIN = Traffic(axis="pp", shape="chain", num_bytes=5e8, messages=20)
CLOSED = Traffic(axis="pp", shape="chain", num_bytes=5e8, messages=20, closed=True)
INNER = Traffic(axis="tp", shape="ring", num_bytes=4e9, messages=100)
EXPERTS = Traffic(axis="ep", shape="all_to_all", num_bytes=2e8, messages=50)
