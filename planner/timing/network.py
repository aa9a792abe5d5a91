"""Seconds of collectives and messages, all sibling groups of an axis at once.

    ring          passes * ((n - 1)/n * bytes / rate + steps)          passes 1, all-reduce 2
    hierarchical  2 * ((g - 1)/g * bytes / inner + (N - 1)/N * bytes / (g * nic) + steps)
                  an all-reduce of g ranks in each of N nodes, if that is faster
    steps         base + (n - 1) * inner step in a domain of fast links; else min(n - 1, trees')
                  * network step

A group of g ranks per node has g shares of its node's NICs, never more than the fast link gives
(Thakur, Rabenseifner, Gropp 2005; NCCL's rings and trees). Steps and rates were set from measured
all-reduces of 2 to 8 A100 and from all-gathers of 2 to 64 nodes of H100 over EFA, then fitted.
"""

import numpy as np

from planner.timing.quantities import Constants, Machine, Num


def crosses(hw: Machine, size: Num, stride: Num) -> Num:
    """Whether a group of `size` ranks, `stride` apart, leaves a domain of fast links."""
    return (size * stride > hw.domain) | straddles(hw, size, stride)


def straddles(hw: Machine, size: Num, stride: Num) -> Num:
    """Whether groups that a node could hold do not divide it, so that some lie across two. Racks of
    nodes are taken to be filled in blocks that do."""
    span = np.minimum(size * stride, hw.domain)
    uneven = np.mod(hw.domain, np.maximum(span, 1.0)) > 0
    return uneven & (hw.num_devices > hw.domain) & (hw.domain == hw.per_node)


def collective_s(
    hw: Machine, c: Constants, num_bytes: Num, size: Num, stride: Num, *, reduces: bool = False
) -> Num:
    """All-gather or reduce-scatter of `num_bytes` (the whole tensor); all-reduce if `reduces`."""
    size = np.asarray(size, dtype=np.float64)
    outside = crosses(hw, size, stride)
    near = _near(hw, size, stride)
    inner = hw.inner_rate * c.inner_efficiency
    nic = hw.nic_rate * c.network_efficiency
    rate = np.where(outside, np.minimum(nic * near, inner), inner)
    nodes = np.ceil(size / near)
    trees = c.tree_depth * 8.0 * np.log2(np.maximum(size, 2.0))
    steps = np.where(
        outside,
        np.minimum(size - 1, trees) * c.network_step_s,
        c.collective_base_s + (size - 1) * c.inner_step_s,
    )
    ring = (size - 1) / np.maximum(size, 1.0) * num_bytes / rate + steps
    if not reduces:
        return np.where(size > 1, ring, 0.0)
    across = (nodes - 1) / nodes * num_bytes / (nic * near)
    hierarchical = (near - 1) / near * num_bytes / inner + across + steps
    best = np.where(outside & (near > 1), np.minimum(ring, hierarchical), ring)
    return np.where(size > 1, 2.0 * best, 0.0)


def _near(hw: Machine, size: Num, stride: Num) -> Num:
    """Ranks of a group in one domain: the fewest, where they are unequally many."""
    near = np.clip(np.floor(hw.domain / np.minimum(stride, hw.domain)), 1.0, size)
    return np.where(straddles(hw, size, stride), 1.0, near)


def exchange_s(hw: Machine, c: Constants, num_bytes: Num, size: Num, stride: Num = 1.0) -> Num:
    """All-to-all in which each rank of `size` sends `num_bytes` in all, evenly spread."""
    size = np.asarray(size, dtype=np.float64)
    near = _near(hw, size, stride)
    inside = num_bytes * (near - 1) / size / (hw.inner_rate * c.inner_efficiency)
    outside = num_bytes * (size - near) / size / (hw.nic_rate * c.network_efficiency)
    moved = np.where(crosses(hw, size, stride), outside, inside) / c.exchange_efficiency
    return np.where(size > 1, moved + c.exchange_base_s, 0.0)


def message_s(hw: Machine, c: Constants, num_bytes: Num, distance: Num) -> Num:
    """One message between ranks `distance` apart, while every rank of the node sends one."""
    far = distance >= hw.domain
    rate = np.where(far, hw.nic_rate * c.network_efficiency, hw.inner_rate * c.inner_efficiency)
    return num_bytes / rate + np.where(far, c.network_step_s, c.inner_step_s)
