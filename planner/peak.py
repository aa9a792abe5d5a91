"""Peak memory of many layouts at once: closed forms over numpy arrays, no loop over layouts.

`planner.block_memory` follows one layout block by block; this is for a search over millions. A
field of `Sizes` or `Degrees` is a number or an array [n]; results are [3, n]: the first, a middle
(rank 1) and the last pipeline rank. A micro-batch has t = b*s/cp tokens on a rank.

    static    = weights + gradients + optimizer + buffers     (ZeRO: Rajbhandari et al. 2020, 3)
    allocated = static + n*A + max(logits, workspace + max(0, loose gradients - A)) + gathered
    reserved  = static + (1 + slack) * (allocated - static);  smi = reserved + context

A is what a micro-batch keeps, n how many are in flight (`planner.schedules`: 1F1B p - rank). Per
layer and token in bytes (Korthikanti et al. 2022, arXiv:2205.05198, equations 1-6), over tp ranks:

    norms, residual   (8 + 2 dropout masks) * h                 / tp with sequence parallelism alone
    attention         2*(q + k + v + out) + 5*a*s, with flash attention 4*a for 5*a*s           / tp
    feed-forward      2*(up + product), up = f or 2*f gated; 2*f for silu(gate) if not fused    / tp
    experts           the same for k copies of every token; router in fp32
    MLA               latents before and after their norm, keys of all heads twice
    recomputation     full 2*h, one layer's sum is workspace; selective without 5*a*s

Loose gradients are those that autograd makes beside the buffer that sums them: whole at the end of
a backward, when its own activations are gone. ZeRO-3 gathers the layer that runs, the next, and
what is in no layer; a layer's gradient is whole before it is scattered. Workspace: gradients of the
feed-forward's up product and weight, and 4*h per token that tensor parallelism gathers or sums.
`slack` is what PyTorch's allocator holds beyond the tensors: static parts are made once and pack,
what comes and goes leaves holes. It frees holes before it fails, so a layout `fits` by `allocated`.
Not modelled: buffers of context parallelism, tp beyond the key/value heads, vocabulary padding.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from profiler.job import Precision

Array = npt.NDArray[Any]
Num = float | Array
GIB = 1024.0**3
NONE, SELECTIVE, FULL = 0, 1, 2  # codes of Degrees.recompute
FLASH_STATISTIC, CORE_ATTENTION = 4.0, 5.0
"""Per token and head, log-sum-exp in fp32; per pair of tokens, softmax 2, dropout 1 and 2."""
_EMBED, _HEAD = np.array([[1.0], [0.0], [0.0]]), np.array([[0.0], [0.0], [1.0]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Shape of a model, and the tokens of a sequence."""

    hidden: Num
    num_layers: Num
    num_heads: Num
    num_kv_heads: Num
    head_dim: Num  # with MLA the part that is not rotated
    ffn_hidden: Num
    vocab: Num
    seq_len: Num
    value_head_dim: Num = 0  # 0: head_dim
    q_lora_rank: Num = 0
    kv_lora_rank: Num = 0  # above 0: multi-head latent attention (arXiv:2405.04434)
    rope_head_dim: Num = 0
    gated: Num = 1
    tied: Num = 0
    num_experts: Num = 0
    topk: Num = 0
    expert_ffn: Num = 0
    shared_ffn: Num = 0
    first_dense: Num = 0
    moe_every: Num = 1
    mtp: Num = 0  # layers that predict further tokens, on the last rank, each with logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """A layout; `schedule` is a place in `planner.config.ScheduleName`. `offload` to the host:
    1 optimizer state, 2 activations but for those of the running micro-batch."""

    pp: Num = 1
    vpp: Num = 1
    dp_replicate: Num = 1
    dp_shard: Num = 1
    zero: Num = 0
    cp: Num = 1
    tp: Num = 1
    ep: Num = 1
    etp: Num = 1
    imbalance: Num = 1  # choices at the expert rank with most over the mean
    expert_copies: Num = 1  # slots for experts over experts
    micro_batch: Num = 1
    num_microbatches: Num = 1
    recompute: Num = NONE
    schedule: Num = 1
    sequence_parallel: Num = 1
    offload: Num = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What software keeps, in bytes per parameter or element. Defaults: Megatron-LM."""

    weight: float = 2.0
    grad: float = 4.0
    optimizer: float = 12.0  # master weights and Adam's moments
    loose_grad: float = 0.0
    bucket: float = 0.0  # copy in which replicas reduce gradients
    compute: float = 2.0  # activations and gathered weights
    flash: bool = True
    dropout: bool = False
    gathered_inputs: bool = False  # with SP, column-parallel layers keep the whole sequence
    silu_copy: bool = False  # silu(gate) is kept beside gate, up and product
    recompute_activation: bool = False  # selective leaves out the activation product as well
    recompute_half: bool = False  # and keeps but the input, attention's output, half the products
    logit: float = 6.0  # at once per logit: 2, and 4 for each fp32 copy of the loss
    expert_copies: float = 1.0  # of a routed token; 2 where weights multiply experts' output
    buffer_gib: float = 0.0
    slack: float = 0.3
    context_gib: float = 1.5  # CUDA, kernels and NCCL, outside the allocator


MEGATRON = Recipe()
_FSDP = Recipe(weight=4, optimizer=8, slack=0.1, logit=4, recompute_half=True)
_DEEPSPEED = Recipe(flash=False, dropout=True, logit=10, buffer_gib=1.9, context_gib=6)
RECIPES = {
    # Fused loss (bf16 logits, fp32 softmax); a precision-aware optimizer's bf16 moments.
    "megatron": MEGATRON,
    "megatron-bf16-moments": replace(MEGATRON, grad=2, optimizer=8),
    # ZeRO-1 has fp32 gradients of its shard beside the 12, and two buckets of 5e8 elements;
    # BF16Optimizer has bf16 gradients and their whole fp32 sum.
    "deepspeed-fp16": replace(_DEEPSPEED, grad=2, optimizer=16),
    "deepspeed-bf16": replace(_DEEPSPEED, grad=6),
    # FP32GradientAccumulator and DDP's buckets; loss: float(), and minus the maximum.
    "nanotron": Recipe(loose_grad=2, bucket=2, gathered_inputs=True, silu_copy=True, logit=10),
    # fp32 shards, expandable segments; eager loss: float(), log_softmax and its gradient.
    "torchtitan": replace(_FSDP, silu_copy=True, gathered_inputs=True, logit=14),
    # The reference runtime: plain operations, fp32 loss, selective also drops the product.
    "pytorch": replace(
        MEGATRON, silu_copy=True, gathered_inputs=True, recompute_activation=True, logit=14
    ),
    # FSDP's mixed precision DEFAULT and PURE; fused loss: bf16 logits and their gradient.
    "composer": _FSDP,
    "composer-pure": replace(_FSDP, weight=2, grad=2, optimizer=4),
}


def recipe_of(name: str, precision: Precision) -> Recipe:
    """A software's recipe in a precision. In fp32 there is one copy of everything, in 4 bytes; 8-
    and 4-bit products leave weights and activations in 16 bits (see `profiler.job`)."""
    recipe = RECIPES[name]
    if precision != "fp32":
        return recipe
    return replace(
        recipe, weight=4.0, grad=4.0, optimizer=8.0, loose_grad=0.0, compute=4.0,
        logit=max(recipe.logit, 12.0),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes by part at the peak, [3, n]; the worst rank's sum, [n]."""

    weights: Array
    grads: Array
    optimizer: Array
    buffers: Array
    activations: Array
    transient: Array
    recipe: Recipe

    def worst(self, slack: float = 0.0) -> Array:
        """Sum of the fullest rank, what comes and goes with `slack` of itself on top."""
        static = self.weights + self.grads + self.optimizer + self.buffers
        return np.asarray((static + (1 + slack) * (self.activations + self.transient)).max(axis=0))

    @property
    def allocated(self) -> Array:
        """`torch.cuda.max_memory_allocated`."""
        return self.worst()

    @property
    def reserved(self) -> Array:
        """`torch.cuda.max_memory_reserved` of a device that is large enough."""
        return self.worst(self.recipe.slack)

    @property
    def smi(self) -> Array:
        """Used memory that `nvidia-smi` shows."""
        return self.reserved + self.recipe.context_gib * GIB

    def fits(self, device_bytes: Num) -> Array:
        """Of the worst rank, whose allocator gives back what it can."""
        return np.asarray(self.allocated + self.recipe.context_gib * GIB <= device_bytes)


def even_layers(num_layers: Num, pp: Num) -> Array:
    """Layers of the three ranks, [3, n], where the first ranks have one more."""
    ranks = np.atleast_1d(pp)
    return np.asarray(num_layers // ranks + (_ranks(ranks) < np.mod(num_layers, ranks)), float)


def in_flight(schedule: Num, pp: Num, num_microbatches: Num, vpp: Num = 1) -> Array:
    """Most micro-batches in flight, in units of all stages of a rank together, [3, n], as
    `planner.schedules` counts; DualPipeV's last rank for all. Of a table: all at once."""
    ranks, code = np.atleast_1d(pp), np.asarray(schedule)
    to_end = ranks - _ranks(ranks)
    stages = np.where(code == 1, to_end, np.inf)
    if np.any(code > 1):
        ahead = (vpp - 1) * np.ceil(num_microbatches / np.maximum(1, num_microbatches // ranks))
        stages = np.where(code == 2, ahead + 2 * to_end - 1, stages)
        stages = np.where(code == 3, ahead + ranks, stages)
        stages = np.where((code == 4) | (code == 5), 2 * ranks + (code == 5), stages)
    return np.asarray(np.minimum(stages / vpp, num_microbatches))


def _ranks(pp: Array) -> Array:
    return np.stack([0 * pp, np.minimum(1, pp - 1), pp - 1])


class _Layer(NamedTuple):
    """Parameters of one layer on one rank, and what it keeps of a micro-batch."""

    dense: Num
    sparse: Num  # an MoE layer without its experts
    experts: Num
    kept_dense: Num
    kept_sparse: Num
    workspace: Num


def _layer(z: Sizes, g: Degrees, r: Recipe, tokens: Num, sp: Array) -> _Layer:
    h, b, tp, heads, gates = z.hidden, r.compute, g.tp, z.num_heads, 2.0 + z.gated
    mla = np.asarray(z.kv_lora_rank) > 0
    value = np.where(np.asarray(z.value_head_dim) > 0, z.value_head_dim, z.head_dim)
    q, out = heads * (z.head_dim + z.rope_head_dim), heads * value
    kv = np.where(mla, heads, z.num_kv_heads) * (z.head_dim + value)
    latent = (z.q_lora_rank + z.kv_lora_rank + z.rope_head_dim) * mla
    q_in = np.where(np.asarray(z.q_lora_rank) > 0, z.q_lora_rank, h)
    matrices = q * q_in + np.where(mla, z.kv_lora_rank, h) * kv + out * h
    attention = matrices / tp + h * (2.0 + latent)
    dense = attention + gates * h * z.ffn_hidden / tp

    selective = np.asarray(g.recompute) == SELECTIVE
    core = FLASH_STATISTIC if r.flash else CORE_ATTENTION * z.seq_len * ~selective
    norms = h * ((2 * b + 2 * r.dropout) / sp + 2 * b / (1 if r.gathered_inputs else sp))
    kept = (b * (q + kv + out + mla * q) + core * heads) / tp + norms + 2 * b * latent / sp
    ffn = b * (gates + r.silu_copy - selective * r.recompute_activation) / tp
    kept_dense = kept + ffn * z.ffn_hidden
    if r.recompute_half:
        products = (q + kv + (gates - 1) * z.ffn_hidden) / 2 + out
        kept_dense = np.where(selective, b * products / tp + 2 * b * h / sp, kept_dense)
    gathered = 4 * b * h * tokens
    workspace = (gates - 1) * (tokens + h) * b * z.ffn_hidden / tp
    if not np.any(z.num_experts):
        return _Layer(dense, 0.0, 0.0, tokens * kept_dense, 0.0, workspace + gathered)

    routed = tokens * z.topk * g.imbalance * g.etp / sp
    local = z.num_experts * g.expert_copies / np.multiply(g.ep, g.etp)
    expert = routed * (b * r.expert_copies * h + ffn * tp * z.expert_ffn / g.etp)
    shared = tokens * (kept + ffn * z.shared_ffn + 4.0 * z.num_experts / sp)
    moving = b * h * np.maximum(2 * routed, (gates - 1) * z.expert_ffn * local)
    has_dense = (np.asarray(z.first_dense) > 0) | (np.asarray(z.num_experts) == 0)
    sparse = attention + h * (z.num_experts + gates * z.shared_ffn / tp)
    experts = gates * h * z.expert_ffn * local
    workspace = np.maximum(has_dense * workspace, moving) + gathered
    return _Layer(dense, sparse, experts, tokens * kept_dense, shared + expert, workspace)


def stage_peaks(
    sizes: Sizes, degrees: Degrees, recipe: Recipe = MEGATRON, layers: Array | None = None
) -> Peaks:
    """Parts of the peak on the first, a middle and the last rank; `layers` [3, n] are theirs."""
    z, g, r, b = sizes, degrees, recipe, recipe.compute
    zero, pp, tokens = np.asarray(g.zero), np.asarray(g.pp), g.micro_batch * z.seq_len / g.cp
    sp = np.where(np.asarray(g.sequence_parallel) > 0, g.tp, 1.0)
    one, alone = _layer(z, g, r, tokens, sp), pp == 1
    turned = (np.asarray(g.schedule) == 4) | (np.asarray(g.schedule) == 5)
    embed = np.where(alone, 1.0, _EMBED)
    head = np.where(alone, 1.0, np.where(turned, _EMBED, _HEAD))  # a V ends where it begins
    layers = (even_layers(z.num_layers, pp) if layers is None else layers) + head * z.mtp
    table = z.hidden * z.vocab / g.tp
    outside = table * (embed + head - alone * np.asarray(z.tied))

    experts: Num = 0.0
    params, kept = layers * one.dense + outside, layers * one.kept_dense
    again, layer = np.asarray(one.kept_dense), np.asarray(one.dense)
    if np.any(z.num_experts):
        sparse = np.asarray(z.num_experts) > 0
        first = np.minimum(layers, embed * z.first_dense)
        moe = np.where(sparse, (layers - first) / z.moe_every, 0.0)
        dense = layers - moe
        experts = moe * one.experts
        params = dense * one.dense + moe * one.sparse + outside
        kept = dense * one.kept_dense + moe * one.kept_sparse
        again = np.maximum((dense > 0) * one.kept_dense, (moe > 0) * one.kept_sparse)
        layer = np.maximum((dense > 0) * layer, (moe > 0) * (one.sparse + one.experts))
    full, boundary = np.asarray(g.recompute) == FULL, tokens * b * z.hidden / sp
    kept = np.where(full, layers * boundary, kept)
    flights = in_flight(g.schedule, pp, g.num_microbatches, g.vpp)
    flights = np.where(np.asarray(g.offload) > 1, np.minimum(flights, 1.0), flights)

    # The head keeps the final norm's input and output, and gathers it; its gradient is loose.
    per_token = z.vocab / g.tp * r.logit * (1.0 + z.mtp) + 3 * b * z.hidden
    logits = head * (tokens * per_token + b * table)
    loose = (zero < 2) * (params + experts) * r.loose_grad
    working = one.workspace + full * again + np.maximum(0.0, loose - kept / g.vpp)
    transient = np.maximum(logits, working)
    if np.any(zero > 1):
        transient = transient + (zero > 1) * b * np.maximum(layer, outside)
        transient = transient + (zero > 2) * b * (2 * layer + outside)

    group = np.multiply(g.dp_shard, g.cp)
    expert_group = np.maximum(1.0, group * g.tp / np.multiply(g.ep, g.etp))

    def shard(stage: int, num_bytes: float) -> Array:
        sharded = params / np.where(zero >= stage, group, 1.0)
        sharded = sharded + experts / np.where(zero >= stage, expert_group, 1.0)
        return np.asarray(sharded * num_bytes)

    optimizer = shard(1, r.optimizer) * (np.asarray(g.offload) != 1)
    copied = (zero < 2) & (g.dp_replicate * group > 1)
    buffers = copied * (params + experts) * r.bucket + ~alone * 2.0 * boundary
    buffers = buffers + r.buffer_gib * GIB
    parts = shard(3, r.weight), shard(2, r.grad), optimizer, buffers
    return Peaks(*parts, flights * kept, transient, r)
