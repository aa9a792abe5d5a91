"""Ranks to nodes: which logical coordinate sits on which host, for measured, unlike links.

The ranks of a node are a *block*: a box of the mesh, in the default order the last axes whole. For
every box that a node can hold, the flows between blocks (`planner.traffic`) and the links
(`profiler.links`) make a problem for `solvers.mapping`; `planner.mapping_flows` says what flows
take. Phases of axes follow each other, and each ends with its slowest ring, chain or node. Up to
`FEW` ranks all assignments are compared.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from planner.mapping_exact import all_assignments
from planner.mapping_flows import Ends, Kind, costs_of, ends_of, flows_of
from planner.mesh import Mesh
from planner.traffic import Traffic
from profiler.errors import UserError
from profiler.links import Links
from solvers.mapping import chain_orders, map_blocks
from solvers.mapping_bound import lower_bounds, node_bounds
from solvers.mapping_problem import Floats, Flows, Ints, Problem

FEW = 8
"""Most ranks for which all assignments are compared."""
EFFORT = 400_000
"""Orders that are looked at, of many nodes twice as many: a second of 16 nodes, twenty of 2,048."""
_BOXES = 4
"""Boxes that are searched, the default among them."""
_LARGE = 512
"""Nodes beyond which bounds are by what each node alone can do: close ones take longer than the
search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A node of each rank, and what a step's communication then takes."""

    nodes: tuple[int, ...]
    """[rank] -> position among the hosts."""
    box: dict[str, int]
    """Ranks of each axis in one node; empty where nodes hold no box."""
    seconds: float
    by_axis: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """The default order, the one found, and a proven limit."""

    default: Mapping
    best: Mapping
    bound_s: float
    """No assignment of such boxes (`exact`: of any ranks) to nodes takes less."""
    exact: bool
    evaluated: int

    @property
    def gap(self) -> float:
        """Share of the time that another order could save at most."""
        seconds = self.best.seconds
        return max(0.0, 1 - self.bound_s / seconds) if seconds else 0.0


def map_ranks(
    mesh: Mesh,
    traffic: Sequence[Traffic],
    links: Links,
    per_node: int,
    *,
    effort: int | None = None,
    seed: int = 0,
    boxes: bool = True,
) -> Mapped:
    """The best order found for `mesh` on hosts with `per_node` devices each; `boxes`: other boxes
    than the default may sit in a node; `effort`: orders that are looked at, about. Pure: equal
    inputs, equal result."""
    check_size(mesh, links, per_node)
    if effort is None:
        effort = EFFORT if len(links.hosts) <= _LARGE else 2 * EFFORT
    exact = all_assignments(mesh, traffic, links, per_node) if mesh.num_ranks <= FEW else None
    if exact is not None:
        return _exact(mesh, traffic, links, per_node, *exact)
    median, ends = _median(links), Ends.of(links)
    cases = [
        _Case.of(mesh, traffic, links, per_node, box, median, ends)
        for box in _boxes(mesh, per_node, boxes)
    ]
    identity = np.arange(len(links.hosts))
    default = cases[0].mapping(identity)
    likely = sorted(range(1, len(cases)), key=lambda k: (cases[k].typical_s, k))
    kept = [0, *likely[: _BOXES - 1]]
    # Half of the effort on all that are kept, half on the best of them.
    found = []
    for k in kept:
        place, seconds = cases[k].search(effort // (2 * len(kept)), seed)
        found.append((seconds, k, place))
    seconds, best, place = min(found, key=lambda each: each[:2])
    place, seconds = cases[best].search(effort // 2, seed + 1, place)
    return Mapped(
        default=default,
        best=cases[best].mapping(place),
        bound_s=_bound_s(cases, seconds),
        exact=False,
        evaluated=sum(case.evaluated for case in cases),
    )


def _bound_s(cases: Sequence["_Case"], found_s: float) -> float:
    """Least of the boxes' bounds: close ones are asked where they decide."""
    bounds = [(case.least_s, k) for k, case in enumerate(cases)]
    heapq.heapify(bounds)
    close: set[int] = set(range(len(cases))) if len(cases[0].links.hosts) > _LARGE else set()
    while bounds[0][1] not in close and bounds[0][0] < found_s:
        _, k = bounds[0]
        close.add(k)
        heapq.heapreplace(bounds, (cases[k].bound_s(), k))
    return min(bounds[0][0], found_s)


def check_size(mesh: Mesh, links: Links, per_node: int) -> None:
    """Raise `UserError` where the hosts have too few devices, or a mesh of experts does not fit."""
    room = len(links.hosts) * per_node
    if mesh.num_ranks > room:
        raise UserError(
            f"the axes need {mesh.num_ranks:,} devices; {len(links.hosts)} hosts with {per_node} "
            f"each have {room:,}",
            hint="measure more hosts, or give smaller degrees",
        )
    inner = mesh.num_ranks // mesh.axes.get("pp", 1)
    if inner % (mesh.ep * mesh.etp):
        raise UserError(
            f"ep {mesh.ep} x etp {mesh.etp} does not divide the {inner} ranks of a stage"
        )


def _boxes(mesh: Mesh, per_node: int, others: bool) -> Iterator[dict[str, int] | None]:
    """Ranks of each axis in one node, the default first; None: consecutive ranks, which are no
    box."""
    sizes = mesh.axes
    default: dict[str, int] | None = {}
    left = per_node
    for name in reversed(sizes):
        inside = np.gcd(left, sizes[name])
        default = {name: int(inside), **(default or {})}
        left //= int(inside)
        if inside < sizes[name]:
            break
    whole = left == 1
    default = {name: (default or {}).get(name, 1) for name in sizes} if whole else None
    yield default
    if not whole or not others:
        return
    ways = [[d for d in range(1, per_node + 1) if per_node % d == 0 and s % d == 0]
            for s in sizes.values()]  # fmt: skip
    for way in product(*ways):
        box = dict(zip(sizes, way, strict=True))
        if prod(way) == per_node and box != default:
            yield box


@dataclass(slots=True, kw_only=True)
class _Case:
    """One way of cutting the mesh into blocks. What is [n, n] is made when it is needed, and not
    kept."""

    mesh: Mesh
    traffic: Sequence[Traffic]
    links: Links
    box: dict[str, int] | None
    block_of: Ints
    flows: Flows
    kinds: Sequence[Kind]
    typical_s: float
    """With the median link everywhere."""
    least_s: float
    """With the best link of each node."""
    evaluated: int = 0

    @classmethod
    def of(
        cls, mesh: Mesh, traffic: Sequence[Traffic], links: Links, per_node: int,
        box: dict[str, int] | None, median: Links, ends: Ends,
    ) -> "_Case":  # fmt: skip
        block_of = _blocks(mesh, box) if box else np.arange(mesh.num_ranks) // per_node
        flows, kinds = flows_of(mesh, traffic, block_of)
        typical = _alike_s(flows, costs_of(kinds, median))
        least = float(node_bounds(flows, *ends_of(kinds, links, ends)).sum()) if kinds else 0.0
        return cls(mesh=mesh, traffic=traffic, links=links, box=box, block_of=block_of,
                   flows=flows, kinds=kinds, typical_s=typical, least_s=least)  # fmt: skip

    @property
    def num_blocks(self) -> int:
        return int(self.block_of.max()) + 1

    def problem(self) -> Problem:
        return Problem(self.flows, costs_of(self.kinds, self.links))

    def search(self, effort: int, seed: int, start: Ints | None = None) -> tuple[Ints, float]:
        """From `start`, or from several: (node of each block, seconds)."""
        problem = self.problem()
        identity = np.arange(problem.num_nodes)
        starts = [identity, *self._starts()] if start is None else [start]
        result = map_blocks(problem, starts, effort, seed)
        self.evaluated += problem.evaluated
        return result

    def bound_s(self) -> float:
        """Of all its orders at least, closely."""
        return max(self.least_s, float(lower_bounds(self.problem()).sum()))

    def _starts(self) -> Iterator[Ints]:
        """Orders that follow good links, laid along each axis in turn."""
        slowness = 1 / self.links.bytes_per_s
        outer = {n: s // (self.box or {}).get(n, s) for n, s in self.mesh.axes.items()}
        along = [name for name, size in outer.items() if size > 1] if self.box else []
        blocks = np.arange(self.num_blocks).reshape([*outer.values()] if self.box else -1)
        for order in chain_orders(slowness, 4):
            yield order
            for name in along:
                # Blocks that differ in this axis alone get neighbours of the order.
                of = np.moveaxis(blocks, list(outer).index(name), -1).reshape(-1)
                place = order.copy()
                place[of] = order[: len(of)]
                yield place

    def mapping(self, place: Ints) -> Mapping:
        phases = self.problem().phases(place[None])[0]
        return Mapping(
            nodes=tuple(int(n) for n in place[self.block_of]),
            box=dict(self.box or {}),
            seconds=float(phases.sum()),
            by_axis={t.axis: float(s) for t, s in zip(self.traffic, phases, strict=True)},
        )


def _median(links: Links) -> Links:
    """Two nodes, joined by a link as the median."""
    apart = ~np.eye(len(links.hosts), dtype=np.bool_)
    if not apart.any():
        apart = ~apart

    def table(values: Floats) -> Floats:
        between, within = float(np.median(values[apart])), float(np.median(np.diag(values)))
        return np.array([[within, between], [between, within]])

    return Links(
        hosts=("a", "b"),
        bytes_per_s=table(links.bytes_per_s),
        latency_s=table(links.latency_s),
        out_rate=np.full(2, float(np.median(links.out_bytes_per_s))),
        in_rate=np.full(2, float(np.median(links.in_bytes_per_s))),
    )


def _alike_s(flows: Flows, cost: Floats) -> float:
    """Seconds where all links between nodes are alike, [kinds, 2, 2]."""
    if not len(flows.source):
        return 0.0
    seconds = cost[flows.kind, 0, (flows.source != flows.target).astype(int)]
    rows = np.bincount(flows.row, weights=seconds)
    return float(sum(rows[flows.phase == p].max() for p in range(flows.num_phases)))


def _blocks(mesh: Mesh, box: dict[str, int]) -> Ints:
    """Block of each rank, numbered row-major over the axes."""
    sizes = list(mesh.axes.values())
    at = np.unravel_index(np.arange(mesh.num_ranks), sizes)
    inside = [box[name] for name in mesh.axes]
    outer = [s // b for s, b in zip(sizes, inside, strict=True)]
    return np.ravel_multi_index([a // b for a, b in zip(at, inside, strict=True)], outer)


def _exact(
    mesh: Mesh,
    traffic: Sequence[Traffic],
    links: Links,
    per_node: int,
    tables: Ints,
    phases: Floats,
) -> Mapped:
    """The best of all assignments; the default where none is better."""
    default = np.arange(mesh.num_ranks) // per_node
    first = int(np.flatnonzero((tables == default).all(axis=1))[0])
    seconds = phases.sum(axis=1)
    best = int(np.argmin(seconds))
    if seconds[best] >= seconds[first] * (1 - 1e-12):
        best = first

    def mapping(index: int) -> Mapping:
        by_axis = {t.axis: float(s) for t, s in zip(traffic, phases[index], strict=True)}
        nodes = tuple(int(n) for n in tables[index])
        return Mapping(nodes=nodes, box={}, seconds=float(seconds[index]), by_axis=by_axis)

    return Mapped(
        default=mapping(first), best=mapping(best), bound_s=float(seconds[best]), exact=True,
        evaluated=len(tables),
    )  # fmt: skip
