"""From the time of single layers to the program of a pipeline's step.

A virtual stage's forward and backward are the sums over its blocks; embedding look-up costs
nothing, `mtp` is a layer of the last kind and one more head. Reduction, update and gathering come
from the closed form (`planner.timing.step`), shared among a rank's stages by their parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from planner.config import ScheduleName
from planner.program import Program
from planner.schedules import stage_owner
from planner.timing.layer import Layer
from planner.timing.quantities import Num
from profiler.model import BlockKind
from solvers.balance import balance
from solvers.partition import Stages

ScheduleInputs = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTimes:
    """Seconds of each kind of block for one micro-batch: (forward, input, weight)."""

    dense: ScheduleInputs
    moe: ScheduleInputs
    head: ScheduleInputs

    def of(self, kind: BlockKind) -> ScheduleInputs:
        """Of one block."""
        if kind == "embed":
            return (0.0, 0.0, 0.0)
        return {"dense": self.dense, "moe": self.moe, "head": self.head, "mtp": self.moe}[kind]

    @classmethod
    def of_layers(cls, dense: Layer, moe: Layer, head: Sequence[Num]) -> "BlockTimes":
        """Of one layout; `head` as `planner.timing.step.head_s` gives it."""
        forward, inputs, weights = map(number, head)
        return cls(dense=_seconds(dense), moe=_seconds(moe), head=(forward, inputs, weights))


def number(value: Num) -> float:
    """A quantity of one layout, given as a number or as an array of it alone."""
    return float(np.asarray(value).reshape(-1)[0])


def _seconds(layer: Layer) -> ScheduleInputs:
    return number(layer.forward_s), number(layer.input_s), number(layer.weight_s)


def exposed_s(layer: Layer) -> tuple[float, float]:
    """Exposed communication of a layer's (forward, backward), recomputation's left out."""
    tensor = number(layer.tensor_s)
    return (
        tensor + number(layer.expert_s) + number(layer.context_s),
        tensor + number(layer.expert_back_s) + number(layer.context_back_s),
    )


def equal_stages(blocks: Sequence[BlockKind], num_stages: int) -> Stages | None:
    """Equally many layers per stage, embedding and head on top; or, where that does not divide,
    with embedding and head counted as a layer each; None where neither divides."""
    layers = len(blocks) - 2
    if layers % num_stages == 0 and layers >= num_stages:
        each = layers // num_stages
        ends = [0, *(1 + each * (s + 1) for s in range(num_stages))]
        ends[-1] += 1
        return tuple(pairwise(ends))
    if len(blocks) % num_stages == 0:
        each = len(blocks) // num_stages
        return tuple((s * each, (s + 1) * each) for s in range(num_stages))
    return None


def balanced_stages(blocks: Sequence[BlockKind], times: BlockTimes, num_stages: int) -> Stages:
    """The least maximum over stages."""
    found = capped_stages(blocks, times, [len(blocks)] * num_stages)
    if found is None:
        raise ValueError(f"{len(blocks)} blocks do not fill {num_stages} stages")
    return found


def capped_stages(
    blocks: Sequence[BlockKind], times: BlockTimes, most: Sequence[int]
) -> Stages | None:
    """The least maximum over stages of at most so many blocks each; None where they are too few."""
    return balance([sum(times.of(kind)) for kind in blocks], len(most), most)


def even_stages(num_layers: int, num_blocks: int, num_stages: int) -> Stages:
    """Layers dealt out evenly, the first stages taking one more; what follows the layers goes to
    the last."""
    each, more = divmod(num_layers, num_stages)
    ends = [0]
    for stage in range(num_stages):
        ends.append(max(ends[-1], 1) + each + (stage < more))
    return tuple(pairwise([*ends[:-1], num_blocks]))


def threshold_stages(costs: Sequence[float], num_stages: int) -> Stages:
    """Blocks in order; a stage is full once the blocks so far exceed its share of all costs, which
    is how nanotron splits by parameters (`PipelineParallel` block costs)."""
    total, so_far, ends = float(sum(costs)), 0.0, [0]
    for index, cost in enumerate(costs[:-1]):
        so_far += cost
        left = len(costs) - 1 - index
        due = so_far > total * len(ends) / num_stages or left <= num_stages - len(ends)
        if due and len(ends) < num_stages:
            ends.append(index + 1)
    return tuple(pairwise([*ends, len(costs)]))


def program_of(
    *,
    blocks: Sequence[BlockKind],
    stages: Stages,
    times: BlockTimes,
    schedule: ScheduleName,
    pp: int,
    vpp: int,
    num_microbatches: int,
    send_s: float,
    exposed_send: float,
    late: float,
    sync_s: float,
    update_s: float,
    base_s: float,
) -> Program:
    """The step of a layout. `sync_s` and `update_s` are those of the fullest rank; `late` slows
    whatever waits for other nodes; the share `exposed_send` of every message holds up its rank."""
    owners = stage_owner(schedule, pp, vpp)
    hops = [0.0 if a == b else send_s * late for a, b in pairwise(owners)]
    held_up = exposed_send * send_s / vpp**0.5 if pp > 1 else 0.0
    extra = (held_up, held_up, 0.0)
    sums = [
        tuple(
            late * (extra[i] + float(sum(times.of(kind)[i] for kind in blocks[first:end])))
            for i in range(3)
        )
        for first, end in stages
    ]
    sizes = [max(end - first, 0) for first, end in stages]
    held = [sum(n for n, o in zip(sizes, owners, strict=True) if o == r) for r in range(pp)]
    fullest = max(*held, 1)
    return Program(
        schedule=schedule,
        num_microbatches=num_microbatches,
        vpp=vpp,
        forward_s=tuple(s[0] for s in sums),
        input_s=tuple(s[1] for s in sums),
        weight_s=tuple(s[2] for s in sums),
        send_forward_s=(*hops, 0.0),
        send_backward_s=(0.0, *hops),
        head_s=(base_s,) * pp,
        bucket_s=(0.0,) * pp,
        sync_s=tuple(sync_s * n / fullest for n in sizes),
        optimizer_s=tuple(update_s * n / fullest for n in held),
    )
