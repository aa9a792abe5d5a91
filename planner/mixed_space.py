"""Pipelines over several kinds of node: which there are.

A *mesh* is all of a layout but its pipeline: tp, dp (replicas, ZeRO 0 or 1 over all of them), cp
(ring), ep with its overlap and etp 1 or tp, micro-batch, recomputation; schedule 1f1b. Its s = dp *
cp * tp devices are of one node group. A *filling* gives each group's number of pipeline ranks, 0 to
D // s of its D devices, at least two groups having some, and the order of the groups along the
pipeline: all permutations of up to three groups, of more the cluster's order and its reverse. The
other devices are idle. Interleaved and zero-bubble schedules, ZeRO 2 and 3, other context methods
and offload are left to pipelines on one kind.

Usual values: tp up to a domain of fast links, cp as everywhere else, ep and etp as there with etp
1 or tp. A pin may name any divisor of the heads, of the sequence, of the batch.
"""

from collections import Counter
from itertools import permutations, product

import numpy as np

from planner.axes import LEAST_TOKENS, Axes, divisors
from planner.layouts import NAMES, Ints, Layouts
from planner.mixed_costs import MixedCosts
from planner.plan import SearchOptions
from planner.space import RULES, reject


def orders_of(num_groups: int) -> list[tuple[int, ...]]:
    """Sequences of groups along the pipeline."""
    groups = range(num_groups)
    if num_groups <= 3:
        return [o for size in range(2, num_groups + 1) for o in permutations(groups, size)]
    subsets = product((False, True), repeat=num_groups)
    chosen = [tuple(g for g in groups if has[g]) for has in subsets if sum(has) > 1]
    return [o for c in chosen for o in (c, c[::-1])]


def meshes(
    costs: MixedCosts, options: SearchOptions, fillings: "Fillings", broken: Counter[str]
) -> Layouts:
    """All meshes that break no rule; the pipelines of the others are counted."""
    model, job = costs.model, costs.job
    widest = max(kind.group.devices_per_domain for kind in costs.kinds)
    most = max(kind.num_devices for kind in costs.kinds)
    axes = Axes(model, job, options, costs.coverage, widest)
    fixed = (("schedule", "1f1b"), ("vpp", 1), ("offload", "none"))
    if not all(axes.open(axis, [value]) for axis, value in fixed):
        return Layouts.concat([])
    again = [NAMES["recompute"].index(name) for name in axes.recomputes()]
    room = max(1, job.seq_len // LEAST_TOKENS)
    rows = []
    for tp in axes.open("tp", divisors(model.num_heads), lambda tp: tp <= widest):
        for cp in axes.open("cp", divisors(job.seq_len), lambda cp: cp <= room):
            if cp > 1 and not axes.open("cp_method", ["ring"]):
                continue
            for dp in axes.open("dp", divisors(job.global_batch)):
                if tp * cp * dp > most:
                    break
                sharing = [
                    (dp // shard, shard, zero)
                    for shard, zero in {(1, 0), (dp, int(dp > 1))}
                    if axes.open("dp_shard", [shard])
                    and axes.open("dp_replicate", [dp // shard])
                    and axes.open("zero", [zero])
                ]
                experts = [e for e in axes.experts(tp * cp * dp, tp) if e[1] in (1, tp)]
                sizes = axes.micro_batches(dp, cp)
                for each in product(sorted(sharing), experts, sizes, again):
                    rows.append((tp, cp, *each[0], *each[1], *each[2:]))
    if not rows:
        return Layouts.concat([])
    layouts = _layouts(np.array(rows, dtype=np.int32).T)
    weights = np.array([fillings.number(int(s)) for s in layouts.stage_ranks], dtype=np.int64)
    some = weights > 0
    layouts, weights = layouts.take(some), weights[some]
    return layouts.take(reject(layouts, RULES, model, job, broken, weights))


def _layouts(table: Ints) -> Layouts:
    tp, cp, replicate, shard, zero, ep, etp, overlap, micro_batch, recompute = table
    one = np.ones_like(tp)
    return Layouts(
        pp=2 * one, dp_replicate=replicate, tp=tp, micro_batch=micro_batch, recompute=recompute,
        schedule=NAMES["schedule"].index("1f1b") * one, vpp=one, dp_shard=shard, zero=zero, cp=cp,
        cp_method=NAMES["cp_method"].index("ring") * one, cp_heads=one, ep=ep, etp=etp,
        ep_overlap=overlap, offload=NAMES["offload"].index("none") * one,
    )  # fmt: skip


class Fillings:
    """Pipeline ranks of each group, for meshes of a size."""

    def __init__(self, costs: MixedCosts, options: SearchOptions) -> None:
        axes = Axes(costs.model, costs.job, options, costs.coverage, 1)
        split = options.pin.get("split")
        depths = axes.open("pp", range(2, costs.model.num_layers + 1))
        self._depths = [pp for pp in depths if split is None or pp == len(split)]
        self._devices = [kind.num_devices for kind in costs.kinds]
        self._allowed = set(options.devices)
        self.orders = orders_of(len(costs.kinds))
        self._known: dict[int, list[Ints]] = {}

    def of(self, size: int) -> list[Ints]:
        """Per order, [n, groups]."""
        if size not in self._known:
            self._known[size] = [self._of(size, order) for order in self.orders]
        return self._known[size]

    def number(self, size: int) -> int:
        """How many there are."""
        return sum(len(each) for each in self.of(size))

    def _of(self, size: int, order: tuple[int, ...]) -> Ints:
        deepest = max(self._depths, default=0)
        table = np.zeros((1, len(self._devices)), dtype=np.int64)
        for g in order:  # lexicographic; no deeper than any pipeline, for their product is large
            counts = np.arange(1, min(self._devices[g] // size, deepest) + 1)
            table = np.repeat(table, len(counts), axis=0)
            table[:, g] = np.tile(counts, len(table) // max(1, len(counts)))
            table = table[table.sum(axis=1) <= deepest]
        depth = table.sum(axis=1)
        chosen = np.isin(depth, self._depths)
        if self._allowed:
            chosen &= np.isin(depth * size, list(self._allowed))
        return table[chosen]
