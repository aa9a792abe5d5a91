"""Peak memory of one rank of a stage.

    static     = local parameters * (weight + gradient + optimizer bytes)      (profiler.job)
    kept       = in flight * sum of what each block keeps from forward to backward
    buffers    = micro-batches * boundary activation, for each neighbour
    peak       = static + buffers + max(kept + workspace of the neediest block, update)

In flight is the schedule's own count (at most m for GPipe, min(m, p - s) for 1F1B). Under full
recomputation a layer keeps its input and needs all of its activations again, once, while it runs
backward. PyTorch's pipeline stages keep one receive buffer for each micro-batch and neighbour
(`torch.distributed.pipelining.stage`, `_create_act_recv_info`). Update is one fp32 copy of every
parameter: the denominators of the multi-tensor optimizer (`_multi_tensor_adamw`), or the flat
buckets of the gradient reduction just before. Norms and routers are replicated over tp, all else
is sharded.
"""

from planner.plan import StageMemory
from profiler.job import ACTIVATION_BYTES, GRAD_BYTES, OPTIMIZER_BYTES, WEIGHT_BYTES, JobSpec
from profiler.model import BlockKind, ModelSpec

OPTIMIZER_TEMPORARY_BYTES = 4
"""Per parameter, while the optimizer runs."""


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
        replicated += model.hidden_size * model.num_experts
    return (model.block_params(kind) - replicated) // tp + replicated


def boundary_bytes(model: ModelSpec, job: JobSpec, tp: int, micro_batch: int) -> int:
    """Bytes of the activation between two layers, on one rank: [mbs, seq_len / tp, hidden]."""
    tokens = micro_batch * job.seq_len // tp
    return tokens * model.hidden_size * ACTIVATION_BYTES[job.precision]


def static_bytes_per_param(job: JobSpec) -> int:
    """Weight, gradient and optimizer state."""
    p = job.precision
    return WEIGHT_BYTES[p] + GRAD_BYTES[p] + OPTIMIZER_BYTES[p]


def stage_memory(
    job: JobSpec,
    num_params: int,
    in_flight: int,
    *,
    kept_bytes: float,
    buffer_bytes: float,
    workspace_bytes: float,
) -> StageMemory:
    """Peak of one rank: `kept_bytes` per micro-batch in flight, `workspace_bytes` of the neediest
    block, `buffer_bytes` of all receive buffers."""
    kept = round(in_flight * kept_bytes)
    at_update = num_params * OPTIMIZER_TEMPORARY_BYTES
    return StageMemory(
        weight_bytes=num_params * WEIGHT_BYTES[job.precision],
        grad_bytes=num_params * GRAD_BYTES[job.precision],
        optimizer_bytes=num_params * OPTIMIZER_BYTES[job.precision],
        activation_bytes=kept,
        buffer_bytes=round(buffer_bytes),
        workspace_bytes=max(round(workspace_bytes), at_update - kept),
    )
