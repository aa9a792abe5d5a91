"""Load first: every layer's experts to ranks by longest processing time and swaps, spare slots to
replicas of the hottest, shares by linear program. Then traffic, which whole ranks may exchange
their names for without a change of load.

Two ways to use spare slots, of which each layer takes the one with the least load:
  even    replicas as EPLB counts them, packed as if split evenly;
  poured  the hottest experts are left out, the others packed with a slot per rank to spare, and the
          hottest poured into what is left under a common level, rank by rank (McNaughton 1959).
Both have their shares split by linear program at the end. Where ranks are unlike, it is their times
that are levelled, and only ranks that are alike exchange their names.
"""

import numpy as np

from solvers.experts.bounds import load_bound
from solvers.experts.packing import longest_first, packed, per_slot, replicated
from solvers.experts.problem import Floats, Ints, Placed, Problem, held
from solvers.experts.score import flows_of
from solvers.experts.shares import split_shares
from solvers.matching import spread_evenly

_SWEEPS = 30
_LEVELS = 12
"""Levels tried between the bound and what is known."""
_MOST_POURED = 128
"""Slots up to which pouring is fast enough."""
_NEAR = 1.001
"""Load over its bound from which pouring is not worth its time."""


def level(problem: Problem) -> Placed:
    """Least load of the fullest rank; for traffic "chained" ranks are named so that few copies
    change theirs."""
    spare = problem.num_slots - problem.num_experts
    item = replicated(problem.counts, problem.num_slots)
    bins = packed(per_slot(problem.counts, item), problem.num_ranks, problem.slow)
    slots = np.take_along_axis(item, bins.reshape(len(item), -1), axis=1)
    if not spare:
        return _named(problem, Placed(slots=slots, shares=np.ones(slots.shape)))
    shares = split_shares(slots, problem.counts, problem.num_ranks, problem.slow)
    load, bound = _fullest(problem, slots, shares), load_bound(problem)
    far = load > bound * _NEAR if problem.num_slots <= _MOST_POURED else np.zeros(0)
    for layer in np.flatnonzero(far):
        other = _poured(problem, int(layer), float(bound[layer]), float(load[layer]))
        if other is not None:
            slots[layer] = other
            shares[layer] = split_shares(
                other[None], problem.counts[layer][None], problem.num_ranks, problem.slow
            )[0]
    return _named(problem, Placed(slots=slots, shares=shares))


def _fullest(problem: Problem, slots: Ints, shares: Floats) -> Floats:
    """[layers]: load of the fullest rank, by its slowdown."""
    loads = np.take_along_axis(problem.counts, slots, axis=1) * shares
    of_rank = loads.reshape(len(slots), problem.num_ranks, -1).sum(axis=2)
    return np.asarray((of_rank * problem.slow).max(axis=1))


def _poured(problem: Problem, layer: int, low: float, high: float) -> Ints | None:
    """[slots] with a lower fullest rank than `high`, or None."""
    load, ranks, room = problem.counts[layer], problem.num_ranks, problem.slots_per_rank
    hot_first, best = np.argsort(-load, kind="stable"), None
    for num in range(1, min(len(load), ranks) + 1):
        hot, cold = hot_first[:num], hot_first[num:]
        if len(cold) > ranks * (room - 1):
            continue
        padded = np.zeros(ranks * (room - 1))
        padded[: len(cold)] = load[cold]
        bins = longest_first(padded[None], ranks, problem.slow)[0]
        held_by = [[int(cold[i]) for i in mine if i < len(cold)] for mine in bins]
        below = low
        for _ in range(_LEVELS):
            tried = _pour(load, hot, held_by, room, below / problem.slow)
            if tried is not None:
                best, high = tried, below
                break
            below = below + (high - below) / 4
            if below >= high * (1 - 1e-9):
                break
        if high <= low * (1 + 1e-9):
            break
    return best


def _pour(
    load: Floats, hot: Ints, held_by: list[list[int]], room: int, below: Floats
) -> Ints | None:
    """[slots] with no rank over `below` [ranks]; None where the hottest do not fit in under it."""
    ranks = [list(mine) for mine in held_by]
    left = [
        most - float(load[mine].sum()) for most, mine in zip(below.tolist(), ranks, strict=True)
    ]
    if (np.array(left) < -1e-9 * below).any():
        return None
    least = 1e-9 * float(below.max())
    for expert in hot:
        rest = float(load[expert])
        while rest > least:
            open_ = [r for r, mine in enumerate(ranks) if len(mine) < room and left[r] > 0]
            if not open_:
                return None
            # A rank's last slot should take all that is left on it.
            whole = [r for r in open_ if len(ranks[r]) == room - 1 and left[r] <= rest]
            several = [r for r in open_ if len(ranks[r]) < room - 1]
            rank = max(whole, key=lambda r: left[r]) if whole else 0
            if not whole:
                fits = [r for r in open_ if left[r] >= rest]
                rank = (several or sorted(fits, key=lambda r: left[r]) or open_)[0]
            took = min(rest, left[rank])
            ranks[rank].append(int(expert))
            left[rank] -= took
            rest -= took
        if not any(expert in mine for mine in ranks):
            free = [mine for mine in ranks if len(mine) < room]
            if not free:
                return None
            free[0].append(int(expert))
    for mine in ranks:
        # Slots left over hold what can relieve others: the hottest that the rank has not.
        mine.extend(int(e) for e in hot if e not in mine)
        del mine[room:]
        mine.extend(mine[:1] * (room - len(mine)))
    return np.array(ranks).ravel()


def _named(problem: Problem, placed: Placed) -> Placed:
    """The same with other names of ranks, layer by layer, where traffic is chained."""
    if problem.traffic == "home" or problem.num_ranks == 1:
        return placed
    parts = [held(problem, placed, layer) for layer in range(problem.num_layers)]
    names = renamed(flows_of(problem, parts), distances(problem), problem.slow)
    shape = (problem.num_layers, problem.num_ranks, problem.slots_per_rank)
    order = np.argsort(names, axis=1)[..., None]
    return Placed(
        slots=np.take_along_axis(placed.slots.reshape(shape), order, axis=1).reshape(
            placed.slots.shape
        ),
        shares=np.take_along_axis(placed.shares.reshape(shape), order, axis=1).reshape(
            placed.shares.shape
        ),
    )


def distances(problem: Problem, *, hops: bool = False) -> Floats:
    """[ranks, ranks]: seconds of a copy between them, or hops."""
    node = np.arange(problem.num_ranks) // problem.ranks_per_node
    near, far = np.ones(problem.num_ranks), np.asarray(2.0)
    if not hops:
        far = np.maximum.outer(problem.between_s, problem.between_s)[np.ix_(node, node)]
        near = problem.inside_s[node]
    distance = np.where(node[:, None] == node, near, far)
    if problem.measured and not hops and problem.pair_s is not None:
        between = np.kron(problem.pair_s, np.ones((problem.ranks_per_node,) * 2))
        distance = np.where(node[:, None] == node, near, between)
    np.fill_diagonal(distance, 0)
    return np.asarray(distance)


def renamed(flows: Floats, distance: Floats, slow: Floats) -> Ints:
    """[layers, ranks]: the rank that each takes over, so that `flows` [layers - 1, ranks, ranks] go
    the least distance: one linear assignment per layer, forth and back until nothing changes.
    Ranks take over from those that are as `slow` [ranks] as they are."""
    unlike = slow[:, None] != slow
    names = np.tile(np.arange(len(distance)), (len(flows) + 1, 1))
    for number in range(_SWEEPS):
        before = names.copy()
        for layer in range(len(names))[:: 1 if number % 2 == 0 else -1]:
            cost = np.zeros(distance.shape)
            if layer:
                cost += flows[layer - 1].T @ distance[names[layer - 1]]
            if layer + 1 < len(names):
                cost += flows[layer] @ distance.T[names[layer + 1]]
            names[layer] = spread_evenly(np.where(unlike, np.inf, cost))
        if (names == before).all():
            break
    return names
