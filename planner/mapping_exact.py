"""All assignments of few ranks to nodes, with what flows take where nodes hold any of the ranks.

The same as `planner.mapping_flows` says, for many assignments at once: which flows share a pair of
nodes or a node's NICs differs from one to the next.
"""

from collections.abc import Sequence
from math import factorial

import numpy as np

from planner.mesh import Mesh, hops
from planner.traffic import Traffic
from profiler.links import Links
from solvers.mapping import enumerate_nodes
from solvers.mapping_problem import Floats, Ints

MOST = 100_000
"""Assignments."""


def all_assignments(
    mesh: Mesh, traffic: Sequence[Traffic], links: Links, per_node: int
) -> tuple[Ints, Floats] | None:
    """(node of each rank [k, ranks], seconds of each phase [k, phases]); None where there are too
    many."""
    counts = [per_node] * len(links.hosts)
    if _number(counts, mesh.num_ranks) > MOST:
        return None
    tables = enumerate_nodes(counts, mesh.num_ranks)
    phases = [_phase(axis, mesh.groups(axis.axis), links, tables) for axis in traffic]
    return tables, np.array(phases).reshape(-1, len(tables)).T


def _number(counts: Sequence[int], num_ranks: int) -> int:
    """Ways to give each rank a node: of an exponential generating function, the coefficient."""
    ways = [factorial(num_ranks)] + [0] * num_ranks
    for room in counts:
        ways = [
            sum(ways[held - k] // factorial(k) for k in range(min(room, held) + 1))
            for held in range(num_ranks + 1)
        ]
    return ways[num_ranks]


def _phase(axis: Traffic, groups: Ints, links: Links, tables: Ints) -> Floats:
    """Seconds of one axis, [k]."""
    n, num = len(links.hosts), len(tables)
    source, target = hops(axis, groups)
    u, v = tables[:, source], tables[:, target]
    which = np.arange(num)[:, None]
    key = (which * n + u) * n + v
    count = np.bincount(key.reshape(-1), minlength=num * n * n).reshape(num, n, n)
    if axis.shape == "all_to_all":
        return _sums(axis, links, count, tables)
    apart = count * ~np.eye(n, dtype=np.bool_)
    out, into = apart.sum(axis=2), apart.sum(axis=1)

    def one_way(a: Ints, b: Ints, leave: Ints, enter: Ints) -> Floats:
        ends = np.maximum(
            leave[which, u if a is u else v] / links.out_bytes_per_s[a],
            enter[which, v if b is v else u] / links.in_bytes_per_s[b],
        )
        rate = np.maximum(count[which, u, v] / links.bytes_per_s[a, b], ends)
        seconds = np.where(u == v, 1 / links.bytes_per_s[a, b], rate) * axis.num_bytes
        return np.asarray(seconds + axis.messages * links.latency_s[a, b])

    seconds = one_way(u, v, out, into)
    if axis.shape == "ring":
        return np.asarray(seconds.max(axis=1))
    # On the way back what was entered is left.
    seconds = seconds + one_way(v, u, into, out)
    return np.asarray(seconds.reshape(num, len(groups), -1).sum(axis=2).max(axis=1))


def _sums(axis: Traffic, links: Links, count: Ints, tables: Ints) -> Floats:
    """Of an all-to-all: what the slowest node sends or receives."""
    num, n, _ = count.shape
    key = np.arange(num)[:, None] * n + tables
    held = np.bincount(key.reshape(-1), minlength=num * n).reshape(num, n)
    flows = count.astype(np.float64)
    inside = np.arange(n)
    flows[:, inside, inside] = count[:, inside, inside] // np.maximum(held, 1)
    seconds = flows / links.bytes_per_s * axis.num_bytes
    seconds += (count > 0) * axis.messages * links.latency_s
    return np.asarray(np.maximum(seconds.sum(axis=2).max(axis=1), seconds.sum(axis=1).max(axis=1)))
