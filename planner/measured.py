"""Costs of layouts from measured entries: blocks by (kind, tp, micro-batch), transfers by curve.

A layout is prepared once (stages, durations, memory and a lower bound) and simulated only where the
search needs it. Time of a stage and micro-batch is the sum of its blocks; under full recomputation
a layer's backward runs its forward first. What no entry reaches (context and expert parallelism,
sharded replicas, selective recomputation) is not priced.
"""

from collections import defaultdict
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from planner.axes import Coverage
from planner.block_memory import (
    BlockMemory,
    boundary_bytes,
    local_params,
    memory_caps,
    stage_memory,
)
from planner.blocks import BlockCost, BlockTable
from planner.bounds import lower_bound
from planner.collectives import Links, group_of
from planner.config import ParallelConfig, Placement
from planner.layouts import Layouts
from planner.plan import StageMemory
from planner.prepared import Prepared, Screened
from planner.rules import ConfigRule
from planner.schedules import Flights, in_flight
from planner.simulate import Program, Sharing, slow
from planner.space import SENTENCES
from profiler.codec import replace
from profiler.job import GRAD_BYTES, OPTIMIZER_BYTES, WEIGHT_BYTES, JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile, Source
from solvers.partition import Stages, partition

RECOMPUTES = ("none", "full")
SCHEDULES = ("gpipe", "1f1b")
_COVERAGE = Coverage(
    {
        "dp_shard": frozenset({1}),
        "cp": frozenset({1}),
        "ep": frozenset({1}),
        "recompute": frozenset(RECOMPUTES),
        "schedule": frozenset(SCHEDULES),
        "offload": frozenset({"none"}),
    }
)


def _other_experts(c: Any, m: ModelSpec, j: JobSpec) -> Any:
    """Experts are profiled split as their layer's attention is."""
    return (c.etp != (c.tp if m.num_moe_layers else 1)) | (c.ep != 1)


class MeasuredCosts:
    """Costs from the entries of a measured profile."""

    def __init__(self, model: ModelSpec, job: JobSpec, profile: Profile) -> None:
        self.model, self.job, self.profile = model, job, profile
        self.node = profile.cluster.uniform
        self.table, self.links = BlockTable(profile), Links(profile)
        self.capacity_bytes = self.node.device.memory_bytes * (1 - job.memory_reserve)
        self._slowdowns = _sharing_curves(profile)
        self._splits: dict[tuple[object, ...], Stages | None] = {}

    @property
    def coverage(self) -> Coverage:
        """What entries speak of."""
        return _COVERAGE

    @property
    def rules(self) -> tuple[ConfigRule, ...]:
        """The profile must reach the layout's tensor-parallel degree and micro-batch."""

        def asks(broken: Callable[[int, int], bool]) -> Callable[[Any, ModelSpec, JobSpec], Any]:
            def of(c: Any, m: ModelSpec, j: JobSpec) -> Any:
                del m, j
                pairs = np.broadcast_arrays(np.asarray(c.tp), np.asarray(c.micro_batch))
                tps, sizes = (sorted(set(x.reshape(-1).tolist())) for x in pairs)
                found = {pair for pair in product(tps, sizes) if broken(*pair)}
                flat = zip(*(x.reshape(-1).tolist() for x in pairs), strict=True)
                return np.array([pair in found for pair in flat]).reshape(pairs[0].shape)

            return of

        return (
            ConfigRule("oom-profiled", SENTENCES["oom-profiled"], asks(self._ran_out)),
            ConfigRule("not-profiled", SENTENCES["not-profiled"], asks(self._unknown)),
            ConfigRule("not-profiled", SENTENCES["not-profiled"], _other_experts),
        )

    def _ran_out(self, tp: int, micro_batch: int) -> bool:
        return any(self.table.ran_out(k, tp, micro_batch) for k in set(self.model.blocks))

    def _unknown(self, tp: int, micro_batch: int) -> bool:
        return not all(self.table.cost(k, tp, micro_batch) for k in set(self.model.blocks))

    def covers(self, config: ParallelConfig, placement: Placement) -> bool:
        """The profile reaches the layout, and its entries say all that there is to it."""
        plain = ParallelConfig(
            pp=config.pp,
            dp_replicate=config.dp_replicate,
            tp=config.tp,
            micro_batch=config.micro_batch,
            recompute=config.recompute,
            schedule=config.schedule,
            etp=config.tp if self.model.num_moe_layers else 1,
        )
        return (
            config == plain
            and config.recompute in RECOMPUTES
            and config.schedule in SCHEDULES
            and placement == Placement(stages=placement.stages)
            and all(end > first for first, end in placement.stages)
            and not self._unknown(config.tp, config.micro_batch)
        )

    def screen(self, layouts: Layouts, cut_s: float) -> Screened:
        """See `planner.prepared.Costs`: each layout is prepared, for there are few."""
        ready = [self.prepare(config) for config in layouts.configs()]
        fits = [p is not None and p.peak_bytes <= self.capacity_bytes for p in ready]
        kept = [i for i, (p, ok) in enumerate(zip(ready, fits, strict=True)) if p and ok]
        bounds = np.array([p.bound_s for i in kept if (p := ready[i])], dtype=np.float64)
        peaks = np.array([p.peak_bytes for i in kept if (p := ready[i])], dtype=np.float64)
        near = bounds <= cut_s
        return Screened(
            index=np.array(kept, dtype=np.intp)[near],
            step_s=bounds[near],
            bound_s=bounds[near],
            peak_bytes=peaks[near],
            num_unfit=len(ready) - len(kept),
            num_cut=int(np.count_nonzero(~near)),
            least_cut_s=float(bounds[~near].min()) if (~near).any() else float("inf"),
        )

    def chain(self, config: ParallelConfig) -> list[BlockCost]:
        """Cost of each block of the model, recomputation included; the profile must reach (see
        space).
        """
        kinds = {
            k: self.table.cost(k, config.tp, config.micro_batch) for k in set(self.model.blocks)
        }
        chain = []
        for kind in self.model.blocks:
            cost = kinds[kind]
            if cost is None:
                raise ValueError(f"no profile entry for {kind} at tp {config.tp}")
            chain.append(cost)
        return chain

    def prepare(self, config: ParallelConfig, stages: Stages | None = None) -> Prepared | None:
        """Stages (the best split, unless given), durations, memory, bound; None where no split fits
        memory.
        """
        chain = self.chain(config)
        if stages is None:
            stages = self._split(config, chain)
        if stages is None:
            return None
        program, measured_share = self._program(config, chain, stages)
        sharing = self._sharing(config)
        runs = [[(k, chain[k]) for k in range(first, end)] for first, end in stages]
        full = config.recompute == "full"
        again = [
            [c.forward_collective_s * (full and self._is_layer(k)) for k, c in run] for run in runs
        ]
        return Prepared(
            config=config,
            placement=Placement(stages=stages),
            program=program,
            sharing=sharing,
            forward_collective_s=tuple(sum(c.forward_collective_s for _, c in run) for run in runs),
            backward_collective_s=tuple(
                sum(c.backward_collective_s for _, c in run) + sum(extra)
                for run, extra in zip(runs, again, strict=True)
            ),
            memory=self._memory(config, chain, stages),
            bound_s=lower_bound(program, sharing),
            measured_share=measured_share,
        )

    def least_peak(self, config: ParallelConfig) -> int:
        """Peak bytes of the fullest rank when the layers are split for memory alone."""
        chain = self.chain(config)
        per_param = OPTIMIZER_BYTES[self.job.precision] + WEIGHT_BYTES[self.job.precision]
        per_param += GRAD_BYTES[self.job.precision]
        blocks = self._blocks(config, chain)
        held = [b.num_params * per_param + b.kept_bytes for b in blocks]
        stages = partition(np.array(held, dtype=float), config.pp).value
        if stages is None:
            raise ValueError(f"{config.pp} stages for {len(chain)} blocks")
        return max(m.total_bytes for m in self._memory(config, chain, stages))

    def _is_layer(self, block: int) -> bool:
        return 0 < block <= self.model.num_layers

    def _split(self, config: ParallelConfig, chain: list[BlockCost]) -> Stages | None:
        flights = self._in_flight(config)
        # The schedule matters to the split only through its micro-batches in flight.
        key = (replace(config, schedule="1f1b"), flights)
        if key not in self._splits:
            m = config.num_microbatches(self.job)
            times = [
                m * (c.forward_s + self._backward(config, k, c)) + c.optimizer_s
                for k, c in enumerate(chain)
            ]
            blocks = self._blocks(config, chain)
            room = [self.capacity_bytes - self._buffers(config, s) for s in range(config.pp)]
            caps = memory_caps(self.job, blocks, flights, room)
            self._splits[key] = partition(np.array(times), config.pp, caps).value
        return self._splits[key]

    def _in_flight(self, config: ParallelConfig) -> Flights:
        return in_flight(config.schedule, config.pp, config.num_microbatches(self.job))

    def _params(self, config: ParallelConfig, block: int) -> int:
        own_head = not self.model.tie_embeddings or config.pp > 1
        return local_params(self.model, self.model.blocks[block], config.tp, own_head=own_head)

    def _backward(self, config: ParallelConfig, block: int, cost: BlockCost) -> float:
        again = config.recompute == "full" and self._is_layer(block)
        return cost.backward_s + (cost.forward_s if again else 0.0)

    def _kept(self, config: ParallelConfig, block: int, cost: BlockCost) -> float:
        if config.recompute == "full" and self._is_layer(block):
            return boundary_bytes(self.model, self.job, config.tp, config.micro_batch)
        return cost.saved_bytes

    def _blocks(self, config: ParallelConfig, chain: list[BlockCost]) -> list[BlockMemory]:
        kept = [self._kept(config, k, c) for k, c in enumerate(chain)]
        return [
            BlockMemory(
                num_params=self._params(config, k),
                kept_bytes=kept[k],
                workspace_bytes=max(0.0, c.peak_bytes - kept[k]),
            )
            for k, c in enumerate(chain)
        ]

    def _buffers(self, config: ParallelConfig, stage: int) -> float:
        """Receive buffers: one per micro-batch from each neighbour."""
        neighbours = (stage > 0) + (stage < config.pp - 1)
        boundary = boundary_bytes(self.model, self.job, config.tp, config.micro_batch)
        return float(neighbours * config.num_microbatches(self.job) * boundary)

    def _memory(
        self, config: ParallelConfig, chain: list[BlockCost], stages: Stages
    ) -> tuple[StageMemory, ...]:
        blocks = self._blocks(config, chain)
        flights = self._in_flight(config)
        return tuple(
            stage_memory(self.job, blocks[first:end], flights[s], self._buffers(config, s))
            for s, (first, end) in enumerate(stages)
        )

    def _program(
        self, config: ParallelConfig, chain: list[BlockCost], stages: Stages
    ) -> tuple[Program, float]:
        """Durations, and the share of the busy time that was measured."""
        m = config.num_microbatches(self.job)
        sends = [self._send(config, s) for s in range(config.pp)]
        syncs = [self._sync(config, first, end) for first, end in stages]
        runs = [[(k, chain[k]) for k in range(first, end)] for first, end in stages]
        forward_extra = self._executor(config.pp)
        copied = float(config.dp_replicate > 1)
        program = Program(
            schedule=config.schedule,
            num_microbatches=m,
            forward_s=tuple(
                ahead + sum(c.forward_s for _, c in run)
                for ahead, run in zip(forward_extra, runs, strict=True)
            ),
            input_s=tuple(
                back + sum(self._backward(config, k, c) for k, c in run)
                for back, run in zip(reversed(forward_extra), runs, strict=True)
            ),
            weight_s=(0.0,) * config.pp,
            send_forward_s=tuple(seconds for seconds, _ in sends),
            send_backward_s=(0.0, *(seconds for seconds, _ in sends[:-1])),
            bucket_s=tuple(copied * sum(c.bucket_s for _, c in run) for run in runs),
            sync_s=tuple(seconds for seconds, _ in syncs),
            optimizer_s=tuple(sum(c.optimizer_s for _, c in run) for run in runs),
        )
        pieces = [*syncs, *((2 * m * seconds, source) for seconds, source in sends)]
        for k, c in enumerate(chain):
            busy = m * (c.forward_s + self._backward(config, k, c))
            busy += c.optimizer_s + copied * c.bucket_s
            pieces.append((busy, c.source))
        measured = sum(seconds for seconds, source in pieces if source == "measured")
        total = sum(seconds for seconds, _ in pieces)
        return program, measured / total if total else 0.0

    def _executor(self, pp: int) -> list[float]:
        """The executor's own time in a forward of each stage; a backward's is that of the stages in
        reverse order: the last receives nothing, the first sends nothing."""
        entry = self.profile.executor
        if entry is None:
            return [0.0] * pp
        send, receive = entry.send.median_s, entry.receive.median_s
        return [receive * (s > 0) + send * (s < pp - 1) for s in range(pp)]

    def _send(self, config: ParallelConfig, stage: int) -> tuple[float, Source]:
        """Seconds of a message to the next stage, by the slowest of its ranks' links."""
        if stage == config.pp - 1:
            return 0.0, "analytic"
        stride, per_node = config.dp_replicate * config.tp, self.node.devices_per_node
        ranks = range(stage * stride, (stage + 1) * stride)
        same_node = stride < per_node and all(
            rank // per_node == (rank + stride) // per_node for rank in ranks
        )
        num_bytes = boundary_bytes(self.model, self.job, config.tp, config.micro_batch)
        return self.links.p2p(num_bytes, same_node=same_node)

    def _sync(self, config: ParallelConfig, first: int, end: int) -> tuple[float, Source]:
        """Seconds of the gradient reduction of blocks [first, end) over the replicas."""
        replicas = group_of(config.dp_replicate, config.tp, self.node.devices_per_node)
        params = sum(self._params(config, k) for k in range(first, end))
        grads = params * GRAD_BYTES[self.job.precision]
        return self.links.collective("all_reduce", grads, replicas)

    def _sharing(self, config: ParallelConfig) -> Sharing | None:
        if 1 not in self._slowdowns:
            return None
        width, per_node = config.dp_replicate * config.tp, self.node.devices_per_node
        hosts = self.node.num_nodes
        on = [[0] * hosts for _ in range(config.pp)]
        for rank in range(config.num_devices):
            on[rank // width][rank // per_node] += 1
        blocks = self._slowdowns.get(config.tp) or _relative(self._slowdowns[1], config.tp)
        return Sharing(
            slowdown=blocks,
            sync_slowdown=_relative(self._slowdowns[1], config.dp_replicate),
            ranks_on_host=tuple(tuple(row) for row in on),
        )


def _sharing_curves(profile: Profile) -> dict[int, tuple[float, ...]]:
    """Tensor-parallel degree -> slow-down for 1, 2, ... active ranks, never decreasing: measured
    points joined by straight lines. Degrees with a single point say nothing and are left out."""
    points: dict[int, dict[int, float]] = defaultdict(dict)
    for entry in profile.sharing:
        points[entry.tp][entry.active] = entry.slowdown
    curves = {}
    for tp, measured in points.items():
        known = sorted({tp: 1.0, **measured}.items())
        if len(known) > 1 or tp == 1:
            active = np.arange(1, known[-1][0] + 1)
            values = np.interp(active, [k for k, _ in known], [v for _, v in known])
            curves[tp] = tuple(float(v) for v in np.maximum.accumulate(values))
    return curves


def _relative(curve: tuple[float, ...], ranks: int) -> tuple[float, ...]:
    """A curve relative to `ranks` active instead of one."""
    base = slow(curve, ranks)
    return tuple(max(1.0, value / base) for value in curve)
