"""Memory of a layout from measured entries, by `planner.block_memory`."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from planner.block_memory import (
    BlockMemory,
    boundary_bytes,
    local_params,
    memory_caps,
    stage_memory,
)
from planner.blocks import BlockCost
from planner.config import ParallelConfig
from planner.plan import StageMemory
from planner.schedules import Flights, in_flight
from planner.spread_experts import SpreadExperts
from profiler.job import GRAD_BYTES, OPTIMIZER_BYTES, WEIGHT_BYTES, JobSpec
from profiler.model import ModelSpec
from solvers.partition import Cap, Stages, partition

GradPart = Literal["dense", "experts", "replicated"]


class MeasuredMemory:
    """Bytes of one model's layouts; `chain` has the cost of each block of the model."""

    def __init__(self, model: ModelSpec, job: JobSpec, experts: SpreadExperts) -> None:
        self.model, self.job, self._experts = model, job, experts

    def stages(
        self, config: ParallelConfig, chain: Sequence[BlockCost], stages: Stages
    ) -> tuple[StageMemory, ...]:
        """Parts of the peak of each stage."""
        blocks, flights = self._blocks(config, chain), self.flights(config)
        return tuple(
            stage_memory(self.job, blocks[first:end], flights[s], self._buffers(config, s))
            for s, (first, end) in enumerate(stages)
        )

    def caps(
        self, config: ParallelConfig, chain: Sequence[BlockCost], capacity_bytes: float
    ) -> tuple[Cap, Cap]:
        """What a split of the blocks must obey."""
        room = [capacity_bytes - self._buffers(config, s) for s in range(config.pp)]
        return memory_caps(self.job, self._blocks(config, chain), self.flights(config), room)

    def least_memory(self, config: ParallelConfig, chain: Sequence[BlockCost]) -> StageMemory:
        """Of the fullest rank when the layers are split for memory alone."""
        per_param = OPTIMIZER_BYTES[self.job.precision] + WEIGHT_BYTES[self.job.precision]
        per_param += GRAD_BYTES[self.job.precision]
        blocks = self._blocks(config, chain)
        held = [b.num_params * per_param + b.kept_bytes for b in blocks]
        stages = partition(np.array(held, dtype=float), config.pp).value
        if stages is None:
            raise ValueError(f"{config.pp} stages for {len(chain)} blocks")
        return max(self.stages(config, chain, stages), key=lambda m: m.total_bytes)

    def flights(self, config: ParallelConfig) -> Flights:
        """Micro-batches in flight per stage."""
        return in_flight(config.schedule, config.pp, config.num_microbatches(self.job))

    def grads(self, config: ParallelConfig, stages: Stages, part: GradPart) -> tuple[float, ...]:
        """Bytes of gradients per stage that are reduced together: `dense` over all replicas (all of
        them where ep is 1), `experts` over those of the same experts, `replicated` over ep."""
        each = float(GRAD_BYTES[self.job.precision])
        return tuple(
            each * sum(self._count(config, k, part) for k in range(first, end))
            for first, end in stages
        )

    def _count(self, config: ParallelConfig, block: int, part: GradPart) -> float:
        if part == "dense":
            return self._params(config, block) - self._expert_params(config, block)
        if part == "experts":
            return self._expert_params(config, block)
        return self._replicated_params(config, block)

    def _params(self, config: ParallelConfig, block: int) -> int:
        kind = self.model.blocks[block]
        own_head = not self.model.tie_embeddings or config.pp > 1
        held = local_params(self.model, kind, config.tp, own_head=own_head)
        if kind != "moe" or config.ep == 1:
            return held
        fewer = self.model.num_experts - self._experts.slots_per_rank(config.ep)
        return held - fewer * self.model.expert_params

    def _expert_params(self, config: ParallelConfig, block: int) -> int:
        """Of spread experts; those of ep 1 are reduced with all else."""
        if config.ep == 1 or self.model.blocks[block] != "moe":
            return 0
        return self._experts.slots_per_rank(config.ep) * self.model.expert_params

    def _replicated_params(self, config: ParallelConfig, block: int) -> float:
        if self.model.blocks[block] != "moe":
            return 0
        return self._experts.num_replicated(config.ep) * self.model.expert_params

    def _kept(self, config: ParallelConfig, block: int, cost: BlockCost) -> float:
        if config.recompute == "full" and is_layer(self.model, block):
            return boundary_bytes(self.model, self.job, config.tp, config.micro_batch)
        return cost.saved_bytes

    def _blocks(self, config: ParallelConfig, chain: Sequence[BlockCost]) -> list[BlockMemory]:
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


def is_layer(model: ModelSpec, block: int) -> bool:
    """Whether a block is a transformer layer, neither embedding nor head."""
    return 0 < block <= model.num_layers
