"""Clusters of leaf switches made at random, and what would be measured of them."""

import numpy as np

from profiler.link_profile import PairTime
from profiler.link_rounds import sampled_rounds

NEAR_RATE, FAR_RATE = 25e9, 10e9


def made_cluster(num_hosts, leaf, seed, slow_out=None, noise=0.03):
    """Rates and tiers, [n, n]; `slow_out`: bytes per second of hosts that send slowly."""
    random = np.random.default_rng(seed)
    leaves = np.arange(num_hosts) // leaf
    tiers = (leaves[:, None] != leaves[None, :]).astype(np.int64)
    out = np.full(num_hosts, np.inf)
    for host, rate in (slow_out or {}).items():
        out[host] = rate
    rates = np.minimum(out[:, None], np.array([NEAR_RATE, FAR_RATE])[tiers])
    rates = rates * np.exp(random.normal(0, noise, rates.shape))
    np.fill_diagonal(rates, np.nan)
    return rates, tiers


def sampled(rates, tiers=None):
    """The rates that sampled rounds would measure, nan elsewhere."""
    n = len(rates)
    leaves = None if tiers is None else [int(np.argmin(row)) for row in tiers]
    seen = np.full_like(rates, np.nan)
    for pairs in sampled_rounds(n, 24, 0, leaves):
        for i, j in pairs:
            seen[i, j], seen[j, i] = rates[i, j], rates[j, i]
    return seen


def pair_times(hosts, rates, latency_s=None, nic="eth0", spread=0.02):
    """Records of a full or partial matrix."""
    return tuple(
        PairTime(
            source=a,
            target=b,
            nic=nic,
            points=(),
            latency_s=5e-5 if latency_s is None else float(latency_s[i, j]),
            bytes_per_s=float(rates[i, j]),
            spread=spread,
        )
        for i, a in enumerate(hosts)
        for j, b in enumerate(hosts)
        if i != j and np.isfinite(rates[i, j])
    )
