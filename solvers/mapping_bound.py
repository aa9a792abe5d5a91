"""What no order of blocks on nodes can beat, phase by phase (see `solvers.mapping`).

Phases are bounded each for itself, so their sum bounds the sum. With c the least cost of the
phase's kinds:

    rings    The slowest hop is at least the least t at which the links with c <= t can hold the
             rings: a ring lies within one strongly connected component, so components of n nodes
             hold floor(n / length) of them; and as many nodes as blocks have a link to another
             each (a matching, Hopcroft & Karp 1973). Rings of two need both directions.
    chains   The slowest is at least the mean, and all together at least the cheapest way to give
             every block but the last ones a next one (linear assignment, Jonker & Volgenant 1987).
    sums     (all-to-all) Of a node at least its cheapest peers, as many as any block has; some
             node in use has at least what the cheapest so many nodes have.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components, maximum_bipartite_matching  # type: ignore[import-untyped]

from solvers.mapping_problem import Floats, Flows, Ints, Problem


def node_bounds(flows: Flows, out: Floats, into: Floats) -> Floats:
    """Of each phase at least, by what each node alone can send and receive: seconds of a flow of
    each kind that leaves a node, or enters it, by its best link, [kinds, nodes]. For many nodes,
    where closer bounds take long."""
    bounds = np.zeros(flows.num_phases)
    phase, apart = flows.phase[flows.row], flows.source != flows.target
    for p in range(flows.num_phases):
        inside = apart & (phase == p)
        if not inside.any():
            continue
        kinds, row = np.unique(flows.kind[inside]), flows.row[inside]
        for blocks, table in ((flows.source[inside], out), (flows.target[inside], into)):
            each = np.sort(table[kinds].min(axis=0))
            distinct, number = np.unique(blocks, return_counts=True)
            shape = _shape(flows.source[inside], flows.target[inside], row)
            if shape == "chains" and len(distinct) == len(blocks):
                bound = each[: len(blocks)].sum() / len(np.unique(row))
            elif shape == "chains":
                bound = each[0] * np.unique(row, return_counts=True)[1].min()
            elif shape == "sums":
                # Each flow is in two rows, of the one block and of the other.
                bound = each[len(distinct) - 1] * (number.min() // 2)
            else:
                bound = each[len(distinct) - 1]
            bounds[p] = max(bounds[p], float(bound))
    return bounds


def lower_bounds(problem: Problem) -> Floats:
    """Seconds of each phase at least, [phases]."""
    flows = problem.flows
    phase = flows.phase[flows.row] if len(flows.row) else flows.row
    return np.array([_phase(problem, phase == p) for p in range(flows.num_phases)])


def _phase(problem: Problem, inside: NDArray[np.bool_]) -> float:
    flows = problem.flows
    source, target, row = flows.source[inside], flows.target[inside], flows.row[inside]
    cost = problem.cost[np.unique(flows.kind[inside])].min(axis=0)
    apart = source != target
    floor = float(np.diag(cost).min()) if not apart.all() else 0.0
    if not apart.any():
        return floor
    source, target, row = source[apart], target[apart], row[apart]
    bound = {"rings": _rings, "chains": _chains, "sums": _sums}[_shape(source, target, row)]
    return max(floor, bound(cost, source, target, row))


def _shape(source: Ints, target: Ints, row: Ints) -> str:
    """Rows of one flow are hops of rings; of chains, no block is left or entered twice."""
    if np.unique(row).size == row.size:
        return "rings"
    ends = (np.unique(np.stack([row, end]), axis=1).shape[1] for end in (source, target))
    return "chains" if all(number == row.size for number in ends) else "sums"


def _rings(cost: Floats, source: Ints, target: Ints, row: Ints) -> float:
    """What the graph of blocks has must be left of the links: see `_Shape`."""
    del row
    shape = _Shape.of(source, target)
    both = np.maximum(cost, cost.T) if shape.mutual else cost.copy()
    np.fill_diagonal(both, np.inf)
    values = np.unique(both[np.isfinite(both)])
    low, high = 0, len(values) - 1
    while low < high:  # the least value that holds them
        middle = (low + high) // 2
        if shape.fits(csr_matrix(both <= values[middle])):
            high = middle
        else:
            low = middle + 1
    return float(values[low]) if len(values) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What a graph of blocks keeps when blocks become nodes, whichever these are: the size of its
    parts, whether these are strongly connected, and how many have a next one of their own."""

    mutual: bool
    """Each flow has one the other way."""
    strong: bool
    num_parts: int
    smallest: int
    matched: int

    @classmethod
    def of(cls, source: Ints, target: Ints) -> "_Shape":
        blocks, number = np.unique(np.concatenate([source, target]), return_inverse=True)
        size, (a, b) = len(blocks), np.split(number, 2)
        graph = csr_matrix((np.ones(len(a), dtype=np.bool_), (a, b)), shape=(size, size))
        num_parts, part = connected_components(graph, directed=False)
        num_strong, _ = connected_components(graph, connection="strong")
        return cls(
            mutual=(graph != graph.T).nnz == 0,
            strong=num_strong == num_parts,
            num_parts=num_parts,
            smallest=int(np.bincount(part).min()),
            matched=_matched(graph),
        )

    def fits(self, links: csr_matrix) -> bool:
        """Whether these links may hold it; False is proof that they do not."""
        _, part = connected_components(links, connection="strong" if self.strong else "weak")
        held = int((np.bincount(part) // self.smallest).sum())
        return held >= self.num_parts and _matched(links) >= self.matched


def _matched(graph: csr_matrix) -> int:
    return int(np.count_nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0))


def _chains(cost: Floats, source: Ints, target: Ints, row: Ints) -> float:
    """Chains that share no block, by assignment; of others the cheapest links alone."""
    num_rows = len(np.unique(row))
    apart = cost.copy()
    np.fill_diagonal(apart, np.inf)
    distinct = np.unique(source).size == len(source) and np.unique(target).size == len(target)
    if not distinct:
        return float(np.bincount(np.unique(row, return_inverse=True)[1]).min() * apart.min())
    # As many nodes as are no source of a flow take a dummy column, and dummies the first blocks.
    idle = len(cost) - len(source)
    size = len(cost) + idle
    table = np.full((size, size), 0.0)
    table[: len(cost), : len(cost)] = np.where(np.isfinite(apart), apart, 1e12)
    table[len(cost) :, len(cost) :] = 1e12
    rows, columns = linear_sum_assignment(table)
    return float(table[rows, columns].sum()) / num_rows


def _sums(cost: Floats, source: Ints, target: Ints, row: Ints) -> float:
    del row
    blocks = np.unique(source)
    peers = int(min(np.unique(target[source == b]).size for b in blocks))
    apart = cost.copy()
    np.fill_diagonal(apart, np.inf)
    best = 0.0
    for table in (apart, apart.T):
        least = np.sort(table, axis=1)[:, :peers].sum(axis=1)
        best = max(best, float(np.sort(least)[len(blocks) - 1]))
    return best
