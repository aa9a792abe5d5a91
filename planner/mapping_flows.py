"""What blocks of ranks send each other, and what it takes between any two nodes.

A flow of n bytes from node u to node v, beside k - 1 others of the same axis between the two, takes

    max(k / rate(u, v), k_out / out(u), k_in / in(v)) * n + messages * latency(u, v)

with k_out and k_in all flows of the axis that leave u and enter v: they share its NICs. Rows of a
ring are its hops, of a chain the chain with both ways of each hop, of an all-to-all what a block
sends and what it receives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.mesh import Mesh, hops
from planner.traffic import Traffic
from profiler.links import Links
from solvers.mapping_problem import Floats, Flows, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Flows of one axis with equally many beside them: between the two nodes, that leave the one,
    that enter the other; within a node, how many follow each other."""

    axis: Traffic
    between: float
    leaving: float
    entering: float
    inside: float


def flows_of(
    mesh: Mesh, traffic: Sequence[Traffic], block_of: Ints
) -> tuple[Flows, tuple[Kind, ...]]:
    """Flows between the blocks that hold the ranks, `block_of` [ranks], and their kinds."""
    parts, num_rows = [_NONE], 0
    kinds: list[Kind] = []
    held = np.bincount(block_of)
    for number, axis in enumerate(traffic):
        groups = block_of[mesh.groups(axis.axis)]
        source, target, row = _edges(axis, groups)
        count, out, into = _concurrent(axis, groups)
        inside = np.ones(len(source), dtype=np.int64)
        if axis.shape == "all_to_all":
            inside = count[source, target] // held[source]
        key = np.stack([count[source, target], out[source], into[target], inside])
        distinct, kind = np.unique(key, axis=1, return_inverse=True)
        order = np.lexsort((target, source, row))
        _, row = np.unique(row[order], return_inverse=True)
        parts.append((source[order], target[order], kind.reshape(-1)[order] + len(kinds),
                      row + num_rows, np.full(int(row.max()) + 1, number)))  # fmt: skip
        num_rows += int(row.max()) + 1
        kinds += [
            Kind(axis=axis, between=k, leaving=out_, entering=in_, inside=within)
            for k, out_, in_, within in distinct.T.astype(float).tolist()
        ]
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    names = ("source", "target", "kind", "row", "phase")
    return Flows(**dict(zip(names, columns, strict=True))), tuple(kinds)


_NONE = (np.empty(0, dtype=np.int64),) * 5


def costs_of(kinds: Sequence[Kind], links: Links) -> Floats:
    """Seconds of each kind between any two nodes, [kinds, n, n]."""
    n = len(links.hosts)
    costs = np.empty((len(kinds), n, n))
    for k, kind in enumerate(kinds):
        costs[k] = _seconds(kind, links)
    return costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The best link that leaves each node, and that enters it: seconds per byte and of a message,
    [n]."""

    out_byte_s: Floats
    in_byte_s: Floats
    out_s: Floats
    in_s: Floats

    @classmethod
    def of(cls, links: Links) -> "Ends":
        """Of all pairs of unlike nodes."""
        slowness, latency = 1 / links.bytes_per_s, links.latency_s.copy()
        for table in (slowness, latency):
            np.fill_diagonal(table, np.inf)
        return cls(out_byte_s=slowness.min(axis=1), in_byte_s=slowness.min(axis=0),
                   out_s=latency.min(axis=1), in_s=latency.min(axis=0))  # fmt: skip


def ends_of(kinds: Sequence[Kind], links: Links, ends: Ends) -> tuple[Floats, Floats]:
    """Seconds at least of a flow of each kind that leaves a node, and enters it, [kinds, n]."""
    out_s, in_s = 1 / links.out_bytes_per_s, 1 / links.in_bytes_per_s
    left, entered = [], []
    for kind in kinds:
        axis, k = kind.axis, kind.between
        out = np.maximum(k * ends.out_byte_s, kind.leaving * out_s)
        into = np.maximum(k * ends.in_byte_s, kind.entering * in_s)
        out_latency, in_latency = ends.out_s, ends.in_s
        if axis.shape == "all_to_all":
            out, into = k * ends.out_byte_s, k * ends.in_byte_s
        elif axis.shape == "chain":  # the node that sends forward receives backward
            back_out = np.maximum(k * ends.out_byte_s, kind.entering * out_s)
            back_in = np.maximum(k * ends.in_byte_s, kind.leaving * in_s)
            out, into = out + back_in, into + back_out
            out_latency = in_latency = ends.out_s + ends.in_s
        left.append(out * axis.num_bytes + axis.messages * out_latency)
        entered.append(into * axis.num_bytes + axis.messages * in_latency)
    return np.array(left), np.array(entered)


def _concurrent(axis: Traffic, groups: Ints) -> tuple[Ints, Ints, Ints]:
    """Flows between two blocks, [blocks, blocks]; that leave one; that enter one."""
    num = int(groups.max()) + 1
    source, target = hops(axis, groups)
    count = np.bincount(source * num + target, minlength=num * num).reshape(num, num)
    apart = count.copy()
    np.fill_diagonal(apart, 0)
    return count, apart.sum(axis=1), apart.sum(axis=0)


def _edges(axis: Traffic, groups: Ints) -> tuple[Ints, Ints, Ints]:
    """(from, to, row) of distinct flows between blocks: rows of a ring are its hops, of a chain the
    chain, of an all-to-all what a block sends and what it receives."""
    if axis.shape == "chain":
        chains = np.unique(groups, axis=0)
        source, target = hops(axis, chains)
        per_chain = chains.shape[1] - (not axis.closed)
        return source, target, np.repeat(np.arange(len(chains)), per_chain)
    num = int(groups.max()) + 1
    source, target = hops(axis, groups)
    pairs = np.unique(source * num + target)
    source, target = pairs // num, pairs % num
    if axis.shape == "ring":
        return source, target, np.arange(len(pairs))
    return (np.concatenate([source, source]), np.concatenate([target, target]),
            np.concatenate([source, num + target]))  # fmt: skip


def _seconds(kind: Kind, links: Links) -> Floats:
    axis, k = kind.axis, kind.between
    latency, ways = links.latency_s, 1
    if axis.shape == "ring":
        once = _shared_s(links, k, kind.leaving, kind.entering)
    elif axis.shape == "chain":  # there and back: what was entered is left
        once = _shared_s(links, k, kind.leaving, kind.entering)
        once = once + _shared_s(links, k, kind.entering, kind.leaving).T
        latency, ways = latency + latency.T, 2
    else:  # what a node sends follows each other, and is summed
        once = k / links.bytes_per_s
    seconds = once * axis.num_bytes + axis.messages * latency
    within = kind.inside * axis.num_bytes / np.diag(links.bytes_per_s)
    within = within + axis.messages * np.diag(links.latency_s)
    np.fill_diagonal(seconds, ways * within)
    return np.asarray(seconds)


def _shared_s(links: Links, between: float, leaving: float, entering: float) -> Floats:
    """Per byte, between any two nodes, [n, n]."""
    out, into = leaving / links.out_bytes_per_s, entering / links.in_bytes_per_s
    seconds = between / links.bytes_per_s
    np.maximum(seconds, out[:, None], out=seconds)
    return np.maximum(seconds, into[None], out=seconds)
