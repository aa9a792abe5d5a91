"""Experts spread over ranks, from measured entries: what a MoE layer's fullest rank computes, and
what the exchange of tokens takes.

    layer      = the whole layer on one rank + (load - 1) * rows + (slots / experts - 1) * starts
    starts, rows  what its experts alone take for no tokens and for those of a micro-batch: a
                 straight line through their entries
    exchange   = 2 * all-to-all of the choices of a micro-batch, forward and again backward;
                 forward also the counts of tokens, a small message
    on hosts   : a rank that gets the share w of the choices gets w * bytes from each rank;
                 latency + max(bytes u -> v / rate, bytes out of u / out, bytes into v / in)
                 + fullest rank's bytes * own, with own what the processes copy themselves; where an
                 exchange over hosts of as many ranks was measured, that, times what the formula
                 has for the shares over what it has for level ones

load and shares are those of the recorded routing with experts placed by it, else level. Experts are
profiled whole: layouts with tensor parallelism keep them with their layer (ep 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.blocks import BlockCost, BlockTable
from planner.collectives import Group, Links
from planner.config import ParallelConfig
from planner.mesh import Mesh
from planner.placed import Hosts, Nodes
from profiler.codec import replace
from profiler.job import ACTIVATION_BYTES, JobSpec
from profiler.model import ModelSpec
from profiler.profile import ExpertLoad, Source
from solvers.partition import Stages

Floats = NDArray[np.float64]
COUNT_BYTES = 8
"""Of a count of tokens, one per expert and rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Seconds per micro-batch, [pp, MoE layers]."""

    forward_s: Floats
    backward_s: Floats


class SpreadExperts:
    """The experts of a model under degrees of `ep`."""

    def __init__(
        self,
        model: ModelSpec,
        job: JobSpec,
        table: BlockTable,
        curves: Links,
        loads: Sequence[ExpertLoad],
    ) -> None:
        self.model, self.job, self._table, self._curves = model, job, table, curves
        self._loads = {each.ep: each for each in loads if each.ep > 1 and each.etp == 1}

    def reaches(self, config: ParallelConfig) -> bool:
        """Whether entries speak of the layout's experts."""
        if config.ep == 1:
            return True
        alone = self._table.cost("experts", 1, config.micro_batch)
        return config.tp == config.etp == 1 and alone is not None

    def slots_per_rank(self, ep: int) -> int:
        """Experts that a rank holds, replicas included."""
        load = self._loads.get(ep)
        return load.slots_per_rank if load else self.model.num_experts // ep

    def num_replicated(self, ep: int) -> float:
        """Experts of a layer with several holders, mean over layers."""
        load = self._loads.get(ep)
        return load.replicated if load else 0.0

    def shares(self, ep: int) -> Floats:
        """Of the choices of each MoE layer, what goes to each rank: [layers, ep]."""
        load = self._loads.get(ep)
        level = np.full((self.model.num_moe_layers, ep), 1 / ep)
        if load is None:
            return level
        if load.shares:
            return np.array(load.shares)
        # One rank has the fullest's share, the others have the rest.
        level[:, 1:] = (1 - load.imbalance / ep) / max(ep - 1, 1)
        level[:, 0] = load.imbalance / ep
        return level

    def cost(self, config: ParallelConfig, whole: BlockCost, layer: int) -> BlockCost:
        """The `layer`-th MoE layer, of which `whole` is the cost with all experts on each rank."""
        alone = self._table.cost("experts", 1, config.micro_batch)
        if config.ep == 1 or alone is None:
            return whole
        more = config.ep * float(self.shares(config.ep)[layer].max()) - 1
        fewer = self.slots_per_rank(config.ep) / self.model.num_experts - 1

        def with_part(name: str, factor: float) -> float:
            total: float = getattr(whole, name)
            return max(0.0, total + factor * float(getattr(alone, name)))

        def seconds(name: str) -> float:
            starts = self._starts(name)
            rows = float(getattr(alone, name)) - starts
            return max(0.0, float(getattr(whole, name)) + more * rows + fewer * starts)

        return replace(
            whole,
            forward_s=seconds("forward_s"),
            backward_s=seconds("backward_s"),
            saved_bytes=with_part("saved_bytes", more),
            peak_bytes=with_part("peak_bytes", more),
            optimizer_s=with_part("optimizer_s", fewer),
            bucket_s=with_part("bucket_s", fewer),
        )

    def _starts(self, name: str) -> float:
        """Seconds of all experts of a layer without tokens: where the line through their entries
        (least squares of the relative error) begins."""
        points = self._table.points("experts", 1)
        if len(points) < 2:
            return 0.0
        sizes = np.array([m for m, _ in points], dtype=np.float64)
        times = np.array([getattr(cost, name) for _, cost in points])
        rows = np.stack([1 / times, sizes / times], axis=1)
        (begin, _), *_ = np.linalg.lstsq(rows, np.ones(len(times)), rcond=None)
        return float(np.clip(begin, 0.0, times.min()))

    def sent_bytes(self, config: ParallelConfig) -> float:
        """Of all choices of a rank's micro-batch, one way."""
        tokens = config.micro_batch * self.job.seq_len
        width = self.model.hidden_size * ACTIVATION_BYTES[self.job.precision]
        return float(tokens * self.model.num_experts_per_token * width)

    def in_a_host(self, config: ParallelConfig) -> Exchange:
        """Seconds of each MoE layer's exchange where all ranks are on one host."""
        group = Group(config.ep, config.ep)
        loads = config.ep * self.shares(config.ep).max(axis=1)
        each = self.sent_bytes(config) * loads
        once = np.array([self._curves.collective("all_to_all", b, group)[0] for b in each])
        counts = COUNT_BYTES * self.slots_per_rank(config.ep) * config.ep
        small = self._curves.collective("all_to_all", float(counts), group)[0]
        rows = np.tile(once, (config.pp, 1))
        return Exchange(forward_s=2 * rows + small, backward_s=2 * rows)

    @property
    def are_profiled(self) -> bool:
        """Whether entries speak of experts by themselves."""
        return bool(self._table.tp_degrees("experts"))

    @property
    def source(self) -> Source:
        """Of the exchange's seconds."""
        return "measured" if self.are_profiled else "analytic"

    def of_stages(
        self, config: ParallelConfig, stages: Stages, hosts: Hosts | None, nodes: Nodes | None
    ) -> list[tuple[float, float]]:
        """(forward, backward) seconds of the exchange per stage and micro-batch."""
        if config.ep == 1:
            return [(0.0, 0.0)] * config.pp
        found = self.in_a_host(config)
        if hosts is not None and nodes is not None:
            found = self.on_hosts(hosts, config, nodes)
        again = config.recompute == "full"
        moe = [k for k, kind in enumerate(self.model.blocks) if kind == "moe"]
        own = [[n for n, k in enumerate(moe) if a <= k < b] for a, b in stages]
        forward = [float(found.forward_s[s, layers].sum()) for s, layers in enumerate(own)]
        backward = [float(found.backward_s[s, layers].sum()) for s, layers in enumerate(own)]
        return [(f, b + again * f) for f, b in zip(forward, backward, strict=True)]

    def on_hosts(self, hosts: Hosts, config: ParallelConfig, nodes: Nodes) -> Exchange:
        """Seconds of each stage's exchange in each MoE layer, where its ranks sit, all groups of
        the stage at once."""
        groups = Mesh.of(config).groups("ep")
        stage = groups[:, 0] // config.stage_ranks
        on, shares = np.array(nodes)[groups], self.shares(config.ep)
        own_s = self._curves.byte_s("all_to_all", Group(2, 2))
        loads = config.ep * shares.max(axis=1)
        slow = hosts.of_processes(config, nodes)
        small = COUNT_BYTES * self.slots_per_rank(config.ep) * config.ep
        sent, level = self.sent_bytes(config), np.full((1, config.ep), 1 / config.ep)
        curve = self._curves.measured("all_to_all", config.ep, "cluster")
        once = np.empty((config.pp, self.model.num_moe_layers))
        counts = np.empty(config.pp)
        for s in range(config.pp):
            latency_s, byte_s = hosts.exchange(on[stage == s], shares)
            once[s] = latency_s + sent * (byte_s + own_s * slow[s] * loads)
            counts[s] = latency_s + small * own_s * slow[s]
            if curve is not None:
                even = hosts.exchange(on[stage == s], level)[1][0] + own_s * slow[s]
                once[s] *= curve.at(sent) / (latency_s + sent * even)
                counts[s] = curve.at(small)
        return Exchange(forward_s=2 * once + counts[:, None], backward_s=2 * once)
