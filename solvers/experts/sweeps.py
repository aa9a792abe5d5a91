"""Traffic "chained", any size: sweeps of linear assignment over the layers, then swaps.

With the layers before and after given, the hops (or seconds if all copies went one after the other)
of layer l are linear in the ranks of its experts: one assignment problem (`solvers.matching`), each
rank taking as many as it has slots. Sweeps forth and back until nothing changes, from several
starts. The true objective has maxima, over ranks and links, which no assignment knows: swaps of two
experts of a layer, all tried at once, the best taken while one helps.
"""

import numpy as np

from solvers.experts.level import distances, renamed
from solvers.experts.packing import packed
from solvers.experts.problem import Floats, Ints, Placed, Problem
from solvers.experts.score import pairs
from solvers.experts.traffic import chained_s, hops
from solvers.matching import spread_evenly

_STARTS = 3
_SWEEPS = 30
_MOST_SWAPS = 200
_SWAPPED_ALL, _SWAPPED = 1 << 15, 1 << 17
"""Swaps of a layer times links, up to which all starts, or the best one, are worth swaps."""
_SAME = 1e-12


class Chain:
    """Chained layers with one slot per expert; owners are [layers, experts] ranks."""

    def __init__(self, problem: Problem, objective: str) -> None:
        if problem.num_slots != problem.num_experts:
            raise ValueError("chained sweeps place every expert once: as many slots as experts")
        self.problem, self.objective = problem, objective
        self.pairs = pairs(problem)
        self.distance = distances(problem, hops=objective == "hops")

    def flow(self, layer: int, before: Ints, after: Ints) -> Floats:
        """[ranks, ranks]: copies from the owners of `layer` to those of the next."""
        eye = np.eye(self.problem.num_ranks)
        return np.asarray(eye[before].T @ self.pairs[layer] @ eye[after])

    def link_cost(self, flow: Floats) -> Floats:
        """[...]: of flows [..., ranks, ranks], in the objective's unit."""
        if self.objective == "hops":
            return hops(self.problem, flow)
        if self.objective == "load":
            return np.zeros(flow.shape[:-2])
        return chained_s(self.problem, flow)

    def load_cost(self, load: Floats) -> Floats:
        """[...]: of loads [..., ranks]."""
        unit = {"hops": 0.0, "load": 1.0}.get(self.objective, self.problem.compute_s)
        return np.asarray(unit * (load * self.problem.slow).max(axis=-1))

    def cost(self, owner: Ints) -> float:
        """Of all layers."""
        eye = np.eye(self.problem.num_ranks)
        total = 0.0
        for layer, row in enumerate(owner):
            total += float(self.load_cost(self.problem.counts[layer] @ eye[row]))
            if layer:
                total += float(self.link_cost(self.flow(layer - 1, owner[layer - 1], row)))
        return total


def sweeps(
    problem: Problem, objective: str = "time", seed: int = 0, effort: float | None = None
) -> Placed:
    """The best of several starts; `effort`: how many."""
    return placed_of(problem, best_owners(problem, objective, seed, effort))


def best_owners(problem: Problem, objective: str, seed: int, effort: float | None) -> Ints:
    """[layers, experts]: ranks, the best of several starts."""
    chain = Chain(problem, objective)
    rng = np.random.default_rng(seed)
    level = owners(packed(problem.counts, problem.num_ranks, problem.slow))
    even = np.arange(problem.num_experts) * problem.num_ranks // problem.num_experts
    starts = [level, np.tile(even, (len(level), 1))]
    for _ in range(max(1, round(_STARTS if effort is None else effort)) - 1):
        starts.append(rng.permuted(starts[1], axis=1))
    # Level ranks stay so: whole ranks are relabelled, and experts swapped at the end.
    swept = [relabelled(chain, starts[0]), *(swept_over(chain, start) for start in starts[1:])]
    work = problem.num_experts**2 // 2 * problem.num_ranks**2
    if work > _SWAPPED_ALL:
        swept = [min(swept, key=chain.cost)]
    if work <= _SWAPPED:
        swept = [swapped(chain, owner) for owner in swept]
    return min(swept, key=chain.cost)


def owners(bins: Ints) -> Ints:
    """[layers, experts]: ranks, of experts in ranks [layers, ranks, room]."""
    layers, ranks, room = bins.shape
    owner = np.empty((layers, ranks * room), np.int64)
    rank = np.repeat(np.arange(ranks), room)
    np.put_along_axis(owner, bins.reshape(layers, -1), np.tile(rank, (layers, 1)), axis=1)
    return owner


def placed_of(problem: Problem, owner: Ints) -> Placed:
    """One slot per expert."""
    slots = np.argsort(owner, axis=1, kind="stable")
    return Placed(slots=slots, shares=np.ones(slots.shape))


def swept_over(chain: Chain, owner: Ints) -> Ints:
    """After sweeps forth and back while one changes something."""
    owner = owner.copy()
    for number in range(_SWEEPS):
        before = owner.copy()
        for layer in range(len(owner))[:: 1 if number % 2 == 0 else -1]:
            owner[layer] = spread_evenly(_cost_by_rank(chain, owner, layer))
        if (owner == before).all():
            break
    return owner


def relabelled(chain: Chain, owner: Ints) -> Ints:
    """After exchanges of whole ranks of a layer."""
    flows = [chain.flow(at, owner[at], owner[at + 1]) for at in range(len(owner) - 1)]
    if not flows:
        return owner
    names = renamed(np.stack(flows), chain.distance, chain.problem.slow)
    return np.take_along_axis(names, owner, axis=1)


def _cost_by_rank(chain: Chain, owner: Ints, layer: int) -> Floats:
    """[experts, ranks]: of each expert of `layer` on each rank, its neighbours given."""
    cost = np.zeros((chain.problem.num_experts, chain.problem.num_ranks))
    if layer:
        cost += chain.pairs[layer - 1].T @ chain.distance[owner[layer - 1]]
    if layer + 1 < len(owner):
        cost += chain.pairs[layer] @ chain.distance.T[owner[layer + 1]]
    return cost


def swapped(chain: Chain, owner: Ints) -> Ints:
    """After swaps, layer by layer, while one lowers the objective."""
    owner = owner.copy()
    dirty = set(range(len(owner)))
    while dirty:
        layer = min(dirty)
        dirty.discard(layer)
        if _swap_layer(chain, owner, layer):
            dirty |= {near for near in (layer - 1, layer + 1) if 0 <= near < len(owner)}
    return owner


def _swap_layer(chain: Chain, owner: Ints, layer: int) -> bool:
    """Swaps in one layer until none helps; whether there was one."""
    eye, changed = np.eye(chain.problem.num_ranks), False
    count = chain.problem.counts[layer]
    one, two = np.triu_indices(chain.problem.num_experts, 1)
    for _ in range(_MOST_SWAPS):
        row = owner[layer]
        apart = row[one] != row[two]
        a, b = one[apart], two[apart]
        moves = eye[row[b]] - eye[row[a]]
        change = moves * (count[a] - count[b])[:, None]
        load = count @ eye[row]
        delta = chain.load_cost(load + change) - chain.load_cost(load)
        if layer:
            into = chain.pairs[layer - 1].T @ eye[owner[layer - 1]]
            flow = into.T @ eye[row]
            shift = (into[a] - into[b])[:, :, None] * moves[:, None, :]
            delta += chain.link_cost(flow + shift) - chain.link_cost(flow)
        if layer + 1 < len(owner):
            out = chain.pairs[layer] @ eye[owner[layer + 1]]
            flow = eye[row].T @ out
            shift = moves[:, :, None] * (out[a] - out[b])[:, None, :]
            delta += chain.link_cost(flow + shift) - chain.link_cost(flow)
        if not len(delta) or delta.min() >= -_SAME * max(1e-9, abs(float(chain.load_cost(load)))):
            return changed
        best = int(delta.argmin())
        row[a[best]], row[b[best]] = row[b[best]], row[a[best]]
        changed = True
    return changed
