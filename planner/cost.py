"""From a layout to its estimate: split the layers, time the pieces, check memory, simulate.

A layout is prepared once (`prepare`: stages, durations, memory and a lower bound; cheap) and
simulated only where the search needs it (`estimate`). Time of a stage and micro-batch is the sum of
its blocks; under full recomputation a layer's backward runs its forward first. The lower bound is
that of `planner.bounds`.
"""

from dataclasses import dataclass

import numpy as np

from planner.blocks import BlockCost, BlockTable
from planner.bounds import lower_bound
from planner.collectives import Links, group_of
from planner.config import ParallelConfig, Placement
from planner.memory import boundary_bytes, local_params, stage_memory, static_bytes_per_param
from planner.plan import StageMemory
from planner.schedules import in_flight, table_of
from planner.simulate import Program, Sharing
from profiler.codec import replace
from profiler.job import GRAD_BYTES, JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile, Source
from solvers.partition import Stages, partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A layout ready to simulate. Tuples are per stage."""

    config: ParallelConfig
    placement: Placement
    program: Program
    sharing: Sharing | None
    forward_collective_s: tuple[float, ...]
    backward_collective_s: tuple[float, ...]
    memory: tuple[StageMemory, ...]
    bound_s: float
    measured_share: float

    @property
    def peak_bytes(self) -> int:
        """Of the fullest stage."""
        return max(m.total_bytes for m in self.memory)


class CostModel:
    """Costs of layouts of one model and job on one profiled cluster."""

    def __init__(self, model: ModelSpec, job: JobSpec, profile: Profile) -> None:
        self.model, self.job, self.profile = model, job, profile
        self.node = profile.cluster.uniform
        self.table, self.links = BlockTable(profile), Links(profile)
        self.capacity_bytes = self.node.device.memory_bytes * (1 - job.memory_reserve)
        self._slowdown = _sharing_curve(profile)
        self._splits: dict[tuple[object, ...], Stages | None] = {}

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
        kept = [self._kept(config, k, c) for k, c in enumerate(chain)]
        per_param = static_bytes_per_param(self.job)
        held = [self._params(config, k) * per_param + kept[k] for k in range(len(chain))]
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
            kept = np.array([self._kept(config, k, c) for k, c in enumerate(chain)])
            work = max(self._workspace(config, k, c) for k, c in enumerate(chain))
            room = self.capacity_bytes - work
            params = np.array([self._params(config, k) for k in range(len(chain))], dtype=float)
            m = config.num_microbatches(self.job)
            times = [
                m * (c.forward_s + self._backward(config, k, c)) + c.optimizer_s
                for k, c in enumerate(chain)
            ]
            self._splits[key] = partition(
                np.array(times),
                config.pp,
                fixed=params * static_bytes_per_param(self.job),
                held=kept,
                in_flight=np.array(flights, dtype=float),
                caps=np.array([room - self._buffers(config, s) for s in range(config.pp)]),
            ).value
        return self._splits[key]

    def _in_flight(self, config: ParallelConfig) -> tuple[int, ...]:
        rows = table_of(config.schedule, config.pp, config.num_microbatches(self.job))
        return tuple(in_flight(row) for row in rows)

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

    def _workspace(self, config: ParallelConfig, block: int, cost: BlockCost) -> float:
        return max(0.0, cost.peak_bytes - self._kept(config, block, cost))

    def _buffers(self, config: ParallelConfig, stage: int) -> float:
        """Receive buffers: one per micro-batch from each neighbour."""
        neighbours = (stage > 0) + (stage < config.pp - 1)
        boundary = boundary_bytes(self.model, self.job, config.tp, config.micro_batch)
        return float(neighbours * config.num_microbatches(self.job) * boundary)

    def _memory(
        self, config: ParallelConfig, chain: list[BlockCost], stages: Stages
    ) -> tuple[StageMemory, ...]:
        out = []
        in_flight = self._in_flight(config)
        for s, ((first, end), flights) in enumerate(zip(stages, in_flight, strict=True)):
            run = range(first, end)
            out.append(
                stage_memory(
                    self.job,
                    sum(self._params(config, k) for k in run),
                    flights,
                    kept_bytes=sum(self._kept(config, k, chain[k]) for k in run),
                    buffer_bytes=self._buffers(config, s),
                    workspace_bytes=max(self._workspace(config, k, chain[k]) for k in run),
                )
            )
        return tuple(out)

    def _program(
        self, config: ParallelConfig, chain: list[BlockCost], stages: Stages
    ) -> tuple[Program, float]:
        """Durations, and the share of the busy time that was measured."""
        m = config.num_microbatches(self.job)
        sends = [self._send(config, s) for s in range(config.pp)]
        syncs = [self._sync(config, first, end) for first, end in stages]
        runs = [[(k, chain[k]) for k in range(first, end)] for first, end in stages]
        program = Program(
            table=table_of(config.schedule, config.pp, m),
            forward_s=tuple(sum(c.forward_s for _, c in run) for run in runs),
            backward_s=tuple(sum(self._backward(config, k, c) for k, c in run) for run in runs),
            send_forward_s=tuple(seconds for seconds, _ in sends),
            send_backward_s=(0.0, *(seconds for seconds, _ in sends[:-1])),
            sync_s=tuple(seconds for seconds, _ in syncs),
            optimizer_s=tuple(sum(c.optimizer_s for _, c in run) for run in runs),
        )
        pieces = [*syncs, *((2 * m * seconds, source) for seconds, source in sends)]
        for k, c in enumerate(chain):
            busy = m * (c.forward_s + self._backward(config, k, c)) + c.optimizer_s
            pieces.append((busy, c.source))
        measured = sum(seconds for seconds, source in pieces if source == "measured")
        total = sum(seconds for seconds, _ in pieces)
        return program, measured / total if total else 0.0

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
        if self._slowdown is None:
            return None
        width, per_node = config.dp_replicate * config.tp, self.node.devices_per_node
        hosts = self.node.num_nodes
        on = [[0] * hosts for _ in range(config.pp)]
        for rank in range(config.num_devices):
            on[rank // width][rank // per_node] += 1
        return Sharing(
            slowdown=self._slowdown,
            ranks_on_host=tuple(tuple(row) for row in on),
            group_ranks=min(config.tp, per_node),
            sync_ranks=min(config.dp_replicate, per_node),
        )


def _sharing_curve(profile: Profile) -> tuple[float, ...] | None:
    """Slow-down for 1, 2, ... active ranks: measured points joined by straight lines, never
    decreasing.
    """
    if not profile.sharing:
        return None
    points = sorted((e.active, e.slowdown) for e in profile.sharing)
    active = np.arange(1, points[-1][0] + 1)
    values = np.interp(active, [p[0] for p in points], [p[1] for p in points])
    values[0] = 1.0
    return tuple(float(v) for v in np.maximum.accumulate(values))
