"""Pipelines over several kinds of node as arrays: which are worth pricing.

With t_r the work of rank r for one micro-batch and m micro-batches, 1f1b needs for every rank
sum of the t before it + m * t_r. If a layer takes 1 / w_r on rank r, then by linear duality

    step >= layers / sum of y,   y_r = max(0, w_r - sum of the later y) / m

which for runs of equal ranks has a closed form (`_reach`). This bound prunes; the closed form
(m - 1) * T + p * T with T = layers / sum of w ranks the rest. `refine` makes T a level that whole
layers reach, and adds the reduction of gradients.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.config import ParallelConfig
from planner.layouts import Ints, Layouts
from planner.mixed_costs import MixedCosts
from planner.mixed_rates import Rates, price_of_counts, price_weights, rates_of
from planner.mixed_space import Fillings, meshes
from planner.plan import SearchOptions
from planner.space import MEMORY_RULE
from planner.timing.inputs import split_of
from planner.timing.quantities import Array
from profiler.codec import replace

POOL = 20_000
"""Pipelines whose closed form is refined."""
_CELLS = 2**20
"""Meshes x fillings that are bounded at once, about."""


@dataclass(slots=True, eq=False)
class Pool:
    """Pipelines: meshes with their fillings."""

    mesh: Ints
    """Position among the meshes."""
    order: Ints
    """Position in `Fillings.orders`."""
    counts: Ints
    """[n, groups]: pipeline ranks of each group of the cluster."""
    bound: Array
    """Score that none of its schedules is below."""
    rough: Array
    """Score by closed form."""

    def __len__(self) -> int:
        return len(self.bound)

    def take(self, chosen: Ints) -> "Pool":
        """Some of them."""
        return Pool(*(getattr(self, name)[chosen] for name in _COLUMNS))

    @classmethod
    def concat(cls, parts: "list[Pool]") -> "Pool":
        """One after another."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in _COLUMNS))


_COLUMNS = ("mesh", "order", "counts", "bound", "rough")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Screened:
    """What screening leaves."""

    layouts: Layouts
    """The meshes; their pp means nothing."""
    orders: list[tuple[int, ...]]
    pool: Pool
    """The best first."""
    num_valid: int
    """Pipelines that break no rule, before memory."""
    least_left: float
    """Least bound of those cut or dropped."""

    def pipeline(self, position: int) -> tuple[ParallelConfig, tuple[int, ...]]:
        """One of the pool: its layout, and the group of each pipeline rank."""
        held = self.pool.counts[position]
        groups = self.orders[int(self.pool.order[position])]
        kinds = tuple(g for g in groups for _ in range(int(held[g])))
        config = self.layouts.config(int(self.pool.mesh[position]))
        return replace(config, pp=len(kinds)), kinds


def screen(
    costs: MixedCosts, options: SearchOptions, at_most: float, broken: Counter[str]
) -> Screened | None:
    """The best pipelines by closed form; None where no mesh is possible. Scores above `at_most` are
    cut; what does not fit memory is counted in `broken`."""
    fillings = Fillings(costs, options)
    layouts = meshes(costs, options, fillings, broken)
    if not len(layouts):
        return None
    rates = rates_of(costs, layouts)
    by_devices = options.objective == "devices"
    empty = np.zeros(0, dtype=np.int64)
    none = np.zeros((0, len(costs.kinds)), dtype=np.int64)
    pool, total, left = Pool(empty, empty, none, np.empty(0), np.empty(0)), 0, float("inf")
    for part in _parts(costs, options, fillings, layouts, rates, at_most):
        total += part.num_cut + len(part.pairs)
        left = min(left, part.least_cut)
        fits = _fits(costs, part.groups, rates, part.pairs)
        broken[MEMORY_RULE] += int(np.count_nonzero(~fits))
        some = part.pairs.take(np.flatnonzero(fits))
        late = costs.late(layouts.stage_ranks[some.mesh], list(some.counts.T))
        price = price_of_counts(
            price_weights(costs, options), some.counts, layouts.stage_ranks[some.mesh]
        )
        rough = _closed_form(costs, part.groups, rates, some) * late * price
        more = Pool(some.mesh, np.full(len(some), part.order), some.counts, some.bound, rough)
        pool = Pool.concat([pool, more])
        if len(pool) > 2 * POOL:
            pool, left = _best(pool, layouts, by_devices, left)
    pool, left = _best(pool, layouts, by_devices, left)
    pool = refine(costs, options, layouts, fillings.orders, rates, pool)
    return Screened(
        layouts=layouts, orders=fillings.orders, pool=pool, num_valid=total, least_left=left
    )


def _best(pool: Pool, layouts: Layouts, by_devices: bool, left: float) -> tuple[Pool, float]:
    """The `POOL` best, the best first; of objective `devices` those on the fewest."""
    devices = pool.counts.sum(axis=1) * layouts.stage_ranks[pool.mesh]
    near = np.lexsort((pool.rough, devices if by_devices else 0 * devices))
    if len(near) > POOL:
        left = min(left, float(pool.bound[near[POOL:]].min()))
    return pool.take(near[:POOL]), left


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Meshes with fillings of one order."""

    mesh: Ints
    counts: Ints
    """[n, groups]"""
    bound: Array
    micro_batches: Array

    def __len__(self) -> int:
        return len(self.mesh)

    def take(self, chosen: Ints) -> "_Pairs":
        """Some of them."""
        return _Pairs(
            self.mesh[chosen], self.counts[chosen], self.bound[chosen], self.micro_batches[chosen]
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """Pipelines of one order whose bound is not too high, and what was cut."""

    order: int
    groups: tuple[int, ...]
    pairs: _Pairs
    num_cut: int
    least_cut: float


def _parts(
    costs: MixedCosts,
    options: SearchOptions,
    fillings: Fillings,
    layouts: Layouts,
    rates: list[Rates],
    at_most: float,
) -> Iterator[_Part]:
    """All pipelines, in pieces of about `_CELLS`. Meshes whose most favourable filling is too slow
    are cut with all their fillings."""
    sizes = layouts.stage_ranks
    m_all = layouts.num_microbatches(costs.job).astype(np.float64)
    weights = price_weights(costs, options)
    for size in np.unique(sizes):
        of_size = np.flatnonzero(sizes == size)
        for number, counts in enumerate(fillings.of(int(size))):
            if not len(counts):
                continue
            groups = fillings.orders[number]
            factor = np.asarray(costs.late(float(size), list(counts.T)))
            factor = factor * price_of_counts(weights, counts, size)
            most, m = counts.max(axis=0, keepdims=True), m_all[of_size][:, None]
            least = _bounds(costs, groups, most, rates, of_size, m)[:, 0] * factor.min()
            chosen = of_size[least <= at_most]
            num_cut = (len(of_size) - len(chosen)) * len(counts)
            least_cut = float(np.min(least, where=least > at_most, initial=np.inf))
            step = max(1, _CELLS // len(counts))
            for first in range(0, max(1, len(chosen)), step):
                where = chosen[first : first + step]
                m = m_all[where][:, None]
                bound = _bounds(costs, groups, counts, rates, where, m) * factor
                mesh, filling = np.nonzero(bound <= at_most)
                num_cut += bound.size - len(mesh)
                least_cut = min(
                    least_cut, float(np.min(bound, where=bound > at_most, initial=np.inf))
                )
                pairs = _Pairs(
                    where[mesh], counts[filling], bound[mesh, filling], m_all[where[mesh]]
                )
                yield _Part(
                    order=number, groups=groups, pairs=pairs, num_cut=num_cut, least_cut=least_cut
                )
                num_cut, least_cut = 0, float("inf")


def _bounds(
    costs: MixedCosts,
    groups: tuple[int, ...],
    counts: Ints,
    rates: list[Rates],
    where: Ints,
    m: Array,
) -> Array:
    """[mesh, filling]: seconds that no step is below, before what late nodes add."""
    of = {g: rates[g].layer[where][:, None] for g in groups}
    reach = _reach([(1 / of[g], counts[:, g][None, :]) for g in groups], m)
    return np.asarray(_work(costs, groups, rates, where)[:, None] / reach)


def _work(costs: MixedCosts, groups: tuple[int, ...], rates: list[Rates], where: Ints) -> Array:
    """Layers, the head counted as layers of the last group; each kind of block where it is
    quickest by the measure of a mean layer."""
    kinds = costs.model.blocks
    num_moe = kinds.count("moe") + kinds.count("mtp")
    dense = np.min([rates[g].dense[where] / rates[g].layer[where] for g in groups], axis=0)
    moe = np.min([rates[g].moe[where] / rates[g].layer[where] for g in groups], axis=0)
    last = rates[groups[-1]]
    head = last.head[where] / last.layer[where]
    return np.asarray(kinds.count("dense") * dense + num_moe * moe + head)


def _closed_form(
    costs: MixedCosts, groups: tuple[int, ...], rates: list[Rates], pairs: _Pairs
) -> Array:
    """Seconds of a step, before what late nodes add."""
    where, m = pairs.mesh, pairs.micro_batches
    speed = sum(pairs.counts[:, g] / rates[g].layer[where] for g in groups)
    level = _work(costs, groups, rates, where) / speed
    depth = pairs.counts.sum(axis=1)
    send = np.max([rates[g].send[where] for g in groups], axis=0)
    exposed = max(float(costs.kinds[g].constants.exposed_send) for g in groups)
    return np.asarray((m - 1 + depth) * level + 2 * send * (depth - 1 + m * exposed))


def _reach(runs: list[tuple[Array, Array]], m: Array) -> Array:
    """Sum of y over runs of (w, ranks), the last run first: each rank of a run moves the sum by
    1 / m of its distance to w, if that is above it."""
    total: Array = np.zeros(1)
    for w, ranks in reversed(runs):
        gap = np.maximum(w - total, 0.0)
        total = np.maximum(total, w - gap * (1 - 1 / m) ** ranks)
    return total


def _fits(costs: MixedCosts, groups: tuple[int, ...], rates: list[Rates], pairs: _Pairs) -> Array:
    """Whether the ranks of all groups together may have room for the layers: never false where they
    have.

    A rank with f micro-batches in flight has room for (room - fixed) / (layer + f * flight) layers,
    convex in f, so that the sum over consecutive f is at most the integral from half below to half
    above.
    """
    m, room, after = pairs.micro_batches, np.zeros(len(pairs)), np.zeros(len(pairs))
    for g in reversed(groups):
        rate, count = rates[g], pairs.counts[:, g]
        free = costs.kinds[g].capacity_bytes - rate.fixed_bytes[pairs.mesh]
        layer = rate.layer_bytes[pairs.mesh]
        flight = np.maximum(rate.flight_bytes[pairs.mesh], 1.0)
        low, high = np.minimum(after, m), np.minimum(after + count, m)
        full = count - (high - low)  # ranks with all micro-batches in flight
        within = np.log((layer + (high + 0.5) * flight) / (layer + (low + 0.5) * flight)) / flight
        room += np.maximum(free, 0.0) * (within + full / (layer + m * flight))
        after = after + count
    # Dense layers before those with experts may need less than these.
    needed = costs.model.num_layers - costs.model.first_dense_layers
    return np.asarray(room >= needed * (1 - 1e-9))


def refine(
    costs: MixedCosts,
    options: SearchOptions,
    layouts: Layouts,
    orders: list[tuple[int, ...]],
    rates: list[Rates],
    pool: Pool,
) -> Pool:
    """The pool with a better closed form, the best first: whole layers, reductions and updates."""
    if not len(pool):
        return pool
    few, groups = layouts.take(pool.mesh), range(len(costs.kinds))
    split, m = split_of(few, costs.job), few.num_microbatches(costs.job).astype(np.float64)
    layer = np.stack([rates[g].layer[pool.mesh] for g in groups], axis=1)
    ends = np.array([order[-1] for order in orders])[pool.order]
    head = np.stack([rates[g].head[pool.mesh] for g in groups], axis=1)
    head = np.take_along_axis(head, ends[:, None], axis=1)[:, 0]
    at_end = np.take_along_axis(layer, ends[:, None], axis=1)[:, 0]
    num = float(costs.model.num_layers)
    level = _level(num, layer, pool.counts, head, at_end)
    held = np.minimum(np.floor(level[:, None] / layer + 1e-9), num) * (pool.counts > 0)
    through = _least_work(num, held * pool.counts, layer) + head
    used = pool.counts > 0
    send = np.max([rates[g].send[pool.mesh] * used[:, g] for g in groups], axis=0)
    exposed = max(float(kind.constants.exposed_send) for kind in costs.kinds)
    after = np.zeros(len(pool))
    for g in groups:
        step = costs.rank_times(costs.kinds[g], split, np.maximum(held[:, g], 1.0))
        rest = step.exposed_reduction_s + step.update_s + step.base_s
        after = np.maximum(after, rest * used[:, g])
    late = costs.late(few.stage_ranks, list(pool.counts.T))
    depth = pool.counts.sum(axis=1)
    busy = (m - 1) * level + through + 2 * send * (depth - 1 + m * exposed)
    price = price_of_counts(price_weights(costs, options), pool.counts, few.stage_ranks)
    pool = dataclasses.replace(pool, rough=(late * busy + after) * price)
    return _best(pool, layouts, options.objective == "devices", 0.0)[0]


def _level(num_layers: float, layer: Array, counts: Ints, head: Array, at_end: Array) -> Array:
    """Least work of the fullest rank where each takes whole layers, and one the head besides."""
    low = np.zeros(len(counts))
    high = num_layers * layer.max(axis=1) + head
    for _ in range(40):
        middle = (low + high) / 2
        taken = (np.floor(middle[:, None] / layer + 1e-9) * counts).sum(axis=1)
        taken -= np.floor(middle / at_end + 1e-9) - np.floor((middle - head) / at_end + 1e-9)
        enough = (taken >= num_layers) & (middle >= head)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.asarray(high)


def _least_work(num_layers: float, most: Array, layer: Array) -> Array:
    """Seconds of all layers, as many as can be on the fastest kind, then on the next."""
    order = np.argsort(layer, axis=1)
    most, layer = (np.take_along_axis(x, order, axis=1) for x in (most, layer))
    before = np.cumsum(most, axis=1) - most
    done: Array = (np.clip(num_layers - before, 0.0, most) * layer).sum(axis=1)
    return done
