"""Costs of layouts from measured entries: blocks by (kind, tp, micro-batch), transfers by curve.

A layout is prepared once (stages, durations, memory and a lower bound) and simulated only where the
search needs it. Time of a stage and micro-batch is the sum of its blocks; under full recomputation
a layer's backward runs its forward first. What no entry reaches (context and expert parallelism,
sharded replicas, selective recomputation) is not priced.
"""

from collections.abc import Callable
from itertools import count, product
from typing import Any

import numpy as np

from planner.axes import Coverage
from planner.block_memory import (
    boundary_bytes,
)
from planner.blocks import BlockCost, BlockTable
from planner.bounds import lower_bound
from planner.collectives import Group, Links, group_of
from planner.config import ParallelConfig, Placement
from planner.layouts import Layouts
from planner.measured_memory import GradPart, MeasuredMemory, is_layer
from planner.placed import WORTH, Hosts, Network, Nodes, named
from planner.plan import StageMemory
from planner.prepared import Floats, Prepared, Screened
from planner.rules import ConfigRule
from planner.sharing_curves import sharing_curves, sharing_of
from planner.simulate import Program, simulate
from planner.space import SENTENCES
from planner.spread_experts import SpreadExperts
from profiler.codec import replace
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile, Source
from solvers.partition import Stages, partition

RECOMPUTES = ("none", "full")
SCHEDULES = ("gpipe", "1f1b")
_COVERAGE = Coverage(
    {
        "dp_shard": frozenset({1}),
        "cp": frozenset({1}),
        "recompute": frozenset(RECOMPUTES),
        "schedule": frozenset(SCHEDULES),
        "offload": frozenset({"none"}),
        "ep_overlap": frozenset({1}),
    }
)


class MeasuredCosts:
    """Costs from the entries of a measured profile."""

    def __init__(self, model: ModelSpec, job: JobSpec, profile: Profile) -> None:
        self.model, self.job, self.profile = model, job, profile
        self.node = profile.cluster.uniform
        self.table, self.links = BlockTable(profile), Links(profile)
        self.hosts: Hosts | None = None
        if profile.links is not None:
            per_node = self.node.devices_per_node
            self.hosts = Hosts(model, job, profile.links, per_node, self.links)
        self.capacity_bytes = self.node.device.memory_bytes * (1 - job.memory_reserve)
        self.experts = SpreadExperts(model, job, self.table, self.links, profile.expert_loads)
        self._room = MeasuredMemory(model, job, self.experts)
        self._slowdowns = sharing_curves(profile)
        self._splits: dict[tuple[object, ...], Stages | None] = {}
        self._mapped: dict[tuple[ParallelConfig, Stages | None], Prepared | None] = {}

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
            ConfigRule("not-profiled", SENTENCES["not-profiled"], self._other_experts),
        )

    def _other_experts(self, c: Any, m: ModelSpec, j: JobSpec) -> Any:
        """Experts are profiled split as their layer's attention is, and whole by themselves."""
        del j
        spread = (c.ep != 1) & ((c.tp != 1) | (not self.experts.are_profiled))
        return (c.etp != (c.tp if m.num_moe_layers else 1)) | spread

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
            ep=config.ep,
        )
        # Where experts sit is in the loads of the profile.
        placed = placement.experts if self.profile.expert_loads else ()
        known = Placement(stages=placement.stages, experts=placed)
        if self.hosts:
            known = replace(placement, recompute=(), experts=placed, table=())
        return (
            config == plain
            and config.recompute in RECOMPUTES
            and config.schedule in SCHEDULES
            and placement == known
            and all(end > first for first, end in placement.stages)
            and not self._unknown(config.tp, config.micro_batch)
            and self.experts.reaches(config)
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
        chain: list[BlockCost] = []
        layers = count()
        for kind in self.model.blocks:
            cost = kinds[kind]
            if cost is None:
                raise ValueError(f"no profile entry for {kind} at tp {config.tp}")
            chain.append(self.experts.cost(config, cost, next(layers)) if kind == "moe" else cost)
        return chain

    def prepare(self, config: ParallelConfig, stages: Stages | None = None) -> Prepared | None:
        """Stages (the best split, unless given), ranks, durations, memory, bound; None where no
        split fits memory.
        """
        if self.hosts is None:
            return self._prepare(config, stages, None)
        if (config, stages) not in self._mapped:
            self._mapped[config, stages] = self._map(self.hosts, config, stages)
        return self._mapped[config, stages]

    def _map(self, hosts: Hosts, config: ParallelConfig, stages: Stages | None) -> Prepared | None:
        """With the ranks where the step is least, of the likely assignments."""
        best, least = None, float("inf")
        work_s = sum(self._times(config, self.chain(config)))
        for nodes in hosts.likely(config, work_s):
            ready = self._prepare(config, stages, nodes)
            if ready is not None and (best is None or ready.bound_s < least):
                seconds = simulate(ready.program, ready.sharing).step_s
                if seconds < least * (1 - WORTH):
                    best, least = ready, seconds
        return best

    def placed(self, config: ParallelConfig, placement: Placement) -> Prepared | None:
        """As `prepare`, with stages, ranks and devices as given."""
        if self.hosts is None:
            return self._prepare(config, placement.stages, None)
        nodes = self.hosts.nodes_of(config, placement)
        return self._prepare(config, placement.stages, nodes)

    def in_order(self, config: ParallelConfig) -> Prepared | None:
        """As `prepare`, with the ranks in the order of the hosts."""
        nodes = self.hosts.default(config) if self.hosts else None
        return self._prepare(config, None, nodes)

    def _talk_back(self, config: ParallelConfig, run: list[tuple[int, BlockCost]]) -> float:
        """Seconds of a micro-batch's backward in collectives, with those of what is run again."""
        again = config.recompute == "full"
        extra = [c.forward_collective_s * (again and is_layer(self.model, k)) for k, c in run]
        return sum(c.backward_collective_s for _, c in run) + sum(extra)

    def _times(self, config: ParallelConfig, chain: list[BlockCost]) -> list[float]:
        """Seconds of each block in a step, on the profiled host."""
        m = config.num_microbatches(self.job)
        return [
            m * (c.forward_s + self._backward(config, k, c)) + c.optimizer_s
            for k, c in enumerate(chain)
        ]

    def _prepare(
        self,
        config: ParallelConfig,
        stages: Stages | None,
        nodes: Nodes | None,
    ) -> Prepared | None:
        chain = self.chain(config)
        scale = self.hosts.of_stage(config, nodes) if self.hosts and nodes else ()
        if stages is None:
            stages = self._split(config, chain, scale)
        if stages is None:
            return None
        exchange = self.experts.of_stages(config, stages, self.hosts, nodes)
        program, measured_share = self._program(config, chain, stages, nodes, exchange)
        sharing = sharing_of(self._slowdowns, config, self.node, nodes)
        runs = [[(k, chain[k]) for k in range(first, end)] for first, end in stages]
        ranks, devices = named(nodes, self.node.devices_per_node) if nodes else ((), ())
        return Prepared(
            config=config,
            placement=Placement(stages=stages, ranks=ranks, devices=devices),
            program=program,
            sharing=sharing,
            forward_collective_s=tuple(
                sum(c.forward_collective_s for _, c in run) + away
                for run, (away, _) in zip(runs, exchange, strict=True)
            ),
            backward_collective_s=tuple(
                self._talk_back(config, run) + away
                for run, (_, away) in zip(runs, exchange, strict=True)
            ),
            memory=self._room.stages(config, chain, stages),
            bound_s=lower_bound(program, sharing),
            measured_share=measured_share,
        )

    def _split(
        self, config: ParallelConfig, chain: list[BlockCost], scale: tuple[float, ...]
    ) -> Stages | None:
        flights = self._room.flights(config)
        # The schedule matters to the split only through its micro-batches in flight.
        key = (replace(config, schedule="1f1b"), flights, scale)
        if key not in self._splits:
            times = self._times(config, chain)
            caps = self._room.caps(config, chain, self.capacity_bytes)
            self._splits[key] = partition(np.array(times), config.pp, caps, scale).value
        return self._splits[key]

    def least_memory(self, config: ParallelConfig) -> StageMemory:
        """Of the fullest rank when the layers are split for memory alone."""
        return self._room.least_memory(config, self.chain(config))

    def least_peaks(self, layouts: Layouts) -> Floats:
        """See `planner.prepared.Costs`."""
        peaks = [self.least_memory(config).total_bytes for config in layouts.configs()]
        return np.array(peaks, dtype=np.float64)

    def _backward(self, config: ParallelConfig, block: int, cost: BlockCost) -> float:
        again = config.recompute == "full" and is_layer(self.model, block)
        return cost.backward_s + (cost.forward_s if again else 0.0)

    def _program(
        self,
        config: ParallelConfig,
        chain: list[BlockCost],
        stages: Stages,
        nodes: Nodes | None,
        exchange: list[tuple[float, float]],
    ) -> tuple[Program, float]:
        """Durations, and the share of the busy time that was measured."""
        m = config.num_microbatches(self.job)
        net = self._network(config, stages, nodes)
        runs = [[(k, chain[k]) for k in range(first, end)] for first, end in stages]
        ahead, behind = self._executor(net.executor)
        forward = [sum(c.forward_s for _, c in run) for run in runs]
        backward = [sum(self._backward(config, k, c) for k, c in run) for run in runs]
        talk = [sum(c.forward_collective_s for _, c in run) for run in runs]
        back = [self._talk_back(config, run) for run in runs]
        forward, backward = net.slowed(forward, talk), net.slowed(backward, back)
        copied = float(config.dp_replicate > 1)

        def of_rank(value: Callable[[BlockCost], float]) -> tuple[float, ...]:
            pairs = zip(net.slowdown, runs, strict=True)
            return tuple(slow * sum(value(c) for _, c in run) for slow, run in pairs)

        program = Program(
            schedule=config.schedule,
            num_microbatches=m,
            forward_s=tuple(
                a + f + x for a, f, (x, _) in zip(ahead, forward, exchange, strict=True)
            ),
            input_s=tuple(
                a + b + x for a, b, (_, x) in zip(behind, backward, exchange, strict=True)
            ),
            weight_s=(0.0,) * config.pp,
            send_forward_s=net.send_forward_s,
            send_backward_s=net.send_backward_s,
            bucket_s=of_rank(lambda c: copied * c.bucket_s),
            sync_s=tuple(seconds for seconds, _ in net.sync),
            optimizer_s=of_rank(lambda c: c.optimizer_s),
        )
        sends = zip(net.send_forward_s, net.send_source, strict=True)
        pieces = [*net.sync, *((2 * m * seconds, source) for seconds, source in sends)]
        pieces += [(m * sum(each), self.experts.source) for each in exchange]
        for k, c in enumerate(chain):
            busy = m * (c.forward_s + self._backward(config, k, c))
            busy += c.optimizer_s + copied * c.bucket_s
            pieces.append((busy, c.source))
        measured = sum(seconds for seconds, source in pieces if source == "measured")
        total = sum(seconds for seconds, _ in pieces)
        return program, measured / total if total else 0.0

    def _network(self, config: ParallelConfig, stages: Stages, nodes: Nodes | None) -> Network:
        """What the layout's ranks wait for each other's data, where they sit."""
        boundary = boundary_bytes(self.model, self.job, config.tp, config.micro_batch)
        sync = self._reductions(config, stages, nodes)
        if self.hosts is not None and nodes is not None:
            return self.hosts.network(config, nodes, boundary, sync)
        sends = [self._send(config, s, boundary) for s in range(config.pp)]
        return Network(
            slowdown=(1.0,) * config.pp,
            tensor=(1.0,) * config.pp,
            executor=(1.0,) * config.pp,
            send_forward_s=tuple(seconds for seconds, _ in sends),
            send_backward_s=(0.0, *(seconds for seconds, _ in sends[:-1])),
            send_source=tuple(source for _, source in sends),
            sync=sync,
        )

    def _reductions(
        self, config: ParallelConfig, stages: Stages, nodes: Nodes | None
    ) -> tuple[tuple[float, Source], ...]:
        """Seconds per stage of all all-reduces of gradients, one after the other."""
        per_node, edp = self.node.devices_per_node, config.edp
        groups: dict[GradPart, tuple[str, Group]] = {
            "dense": ("dp", group_of(config.dp_replicate, config.tp, per_node)),
            "experts": ("edp", group_of(edp, config.ep * config.etp, per_node)),
            "replicated": ("ep", group_of(config.ep, config.etp, per_node)),
        }
        total, sources = [0.0] * config.pp, list[Source](["analytic"]) * config.pp
        for part, (axis, group) in groups.items():
            held = self._room.grads(config, stages, part)
            if not any(held):
                continue
            if self.hosts is not None and nodes is not None:
                found = self.hosts.all_reduce(config, nodes, axis, held)
            else:
                found = tuple(self.links.collective("all_reduce", each, group) for each in held)
            for s, (seconds, source) in enumerate(found):
                total[s] += seconds
                sources[s] = source if part == "dense" else sources[s]
        return tuple(zip(total, sources, strict=True))

    def _executor(self, slow: tuple[float, ...]) -> tuple[list[float], list[float]]:
        """The executor's own time in a forward of each stage, and in a backward: that of the stages
        in reverse order, for the last receives nothing, the first sends nothing."""
        entry, pp = self.profile.executor, len(slow)
        send, receive = (entry.send.median_s, entry.receive.median_s) if entry else (0.0, 0.0)
        own = [receive * (s > 0) + send * (s < pp - 1) for s in range(pp)]
        forward = [each * factor for each, factor in zip(own, slow, strict=True)]
        return forward, [each * factor for each, factor in zip(own[::-1], slow, strict=True)]

    def _send(self, config: ParallelConfig, stage: int, num_bytes: float) -> tuple[float, Source]:
        """Seconds of a message to the next stage, by the slowest of its ranks' links."""
        if stage == config.pp - 1:
            return 0.0, "analytic"
        stride, per_node = config.dp_replicate * config.tp, self.node.devices_per_node
        ranks = range(stage * stride, (stage + 1) * stride)
        same_node = stride < per_node and all(
            rank // per_node == (rank + stride) // per_node for rank in ranks
        )
        return self.links.p2p(num_bytes, same_node=same_node)
