"""Peak memory of one rank of a stage.

    static  = local parameters * (weight + optimizer bytes), and the pipeline's receive buffers
    peak    = static + the largest of
              forward   n1 * kept
              first     (n1 - 1) * kept + kept of blocks <= j + workspace_j
                        + gradients of blocks > j
              later     gradients + n2 * kept + workspace of the neediest block
              update    gradients + as much again

n1 micro-batches are in flight before a rank's first backward, when it holds no gradients yet, and
n2 of them after; both are the schedule's own counts (GPipe: m and m - 1; 1F1B: min(m, p - s)).
`first` is the first backward, at block j, going from the last block to the first. Under full
recomputation a layer keeps its input and needs all of its activations again, once, while it runs
backward. PyTorch's pipeline stages keep one receive buffer for each micro-batch and neighbour
(`torch.distributed.pipelining.stage`, `_create_act_recv_info`). Update holds one fp32 copy of every
parameter: the denominators of the multi-tensor optimizer (`_multi_tensor_adamw`), or the flat
buckets of the gradient reduction just before. Norms, routers and the gates of shared experts are
replicated over tp, all else is sharded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.plan import StageMemory
from profiler.job import ACTIVATION_BYTES, GRAD_BYTES, OPTIMIZER_BYTES, WEIGHT_BYTES, JobSpec
from profiler.model import BlockKind, ModelSpec
from solvers.partition import Cap

UPDATE_BYTES = 4
"""Per parameter, while gradients are reduced and while the optimizer runs."""


def local_params(model: ModelSpec, kind: BlockKind, tp: int, *, own_head: bool = True) -> int:
    """Parameters of a block that one rank of a tensor-parallel group of `tp` holds.

    `own_head`: the head holds its matrix itself (untied, or tied but on another stage than the
    embedding).
    """
    if kind == "embed":
        return model.vocab_size * model.hidden_size // tp
    if kind == "head":
        return model.hidden_size + (model.vocab_size * model.hidden_size // tp if own_head else 0)
    replicated = 2 * model.hidden_size + (2 * model.head_dim if model.qk_norm else 0)
    if kind == "moe":
        replicated += model.hidden_size * (model.num_experts + model.shared_gate)
    return (model.block_params(kind) - replicated) // tp + replicated


def boundary_bytes(model: ModelSpec, job: JobSpec, tp: int, micro_batch: int) -> int:
    """Bytes of the activation between two layers, on one rank: [mbs, seq_len / tp, hidden]."""
    tokens = micro_batch * job.seq_len // tp
    return tokens * model.hidden_size * ACTIVATION_BYTES[job.precision]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMemory:
    """One block of a stage on one rank."""

    num_params: int
    kept_bytes: float
    """From forward to backward, per micro-batch."""
    workspace_bytes: float
    """While it runs, beyond what it keeps."""


def stage_memory(
    job: JobSpec, blocks: Sequence[BlockMemory], flights: tuple[int, int], buffer_bytes: float
) -> StageMemory:
    """Parts of the peak of one rank; `flights` as `planner.schedules.in_flight` gives them."""
    before, after = flights
    grads = [b.num_params * GRAD_BYTES[job.precision] for b in blocks]
    kept = sum(b.kept_bytes for b in blocks)
    neediest = max(b.workspace_bytes for b in blocks)
    num_params = sum(b.num_params for b in blocks)
    # (gradients, activations, workspace) at each moment that may be the peak
    moments = [
        (0.0, before * kept, 0.0),
        (float(sum(grads)), after * kept, neediest),
        (float(sum(grads)), 0.0, float(num_params * UPDATE_BYTES)),
    ]
    held, gradients = before * kept, 0.0
    for block, grad in zip(reversed(blocks), reversed(grads), strict=True):
        moments.append((gradients, held, block.workspace_bytes))
        held -= block.kept_bytes
        gradients += grad
    at_peak = max(moments, key=sum)
    return StageMemory(
        weight_bytes=num_params * WEIGHT_BYTES[job.precision],
        grad_bytes=round(at_peak[0]),
        optimizer_bytes=num_params * OPTIMIZER_BYTES[job.precision],
        activation_bytes=round(at_peak[1]),
        buffer_bytes=round(buffer_bytes),
        workspace_bytes=round(at_peak[2]),
    )


def memory_caps(
    job: JobSpec,
    blocks: Sequence[BlockMemory],
    flights: Sequence[tuple[int, int]],
    room_bytes: Sequence[float],
) -> tuple[Cap, Cap]:
    """What a split of `blocks` over stages must obey, before and after the first backward.

    `flights` and `room_bytes` (device less reserve and buffers) are per stage. Workspace is the
    neediest block's of the whole model, so a split that obeys fits, up to the mixture of both at
    the first backward.
    """
    params = np.array([b.num_params for b in blocks], dtype=float)
    kept = np.array([b.kept_bytes for b in blocks])
    lasting = WEIGHT_BYTES[job.precision] + OPTIMIZER_BYTES[job.precision]
    room = np.array(room_bytes) - max(b.workspace_bytes for b in blocks)
    return (
        Cap(fixed=params * lasting, held=kept, in_flight=[n for n, _ in flights], room=room),
        Cap(
            fixed=params * (lasting + GRAD_BYTES[job.precision]),
            held=kept,
            in_flight=[n for _, n in flights],
            room=room,
        ),
    )
