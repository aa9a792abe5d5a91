"""Seconds of one optimizer step in closed form, and the pieces that a simulation needs.

A pipeline of p ranks with v stages each works m micro-batches:

    step = m * the slowest rank's work + bubble + messages + exposed reduction + update + base
    bubble, of one chunk's mean f, i (input) and w (weight) seconds:
        gpipe, 1f1b, interleaved   (p - 1) * (f + i + w)      (Narayanan et al. 2021, 2.2)
        zero_bubble                (p - 1) * max(f, i, f + i - w)      (Qi et al. 2023)
        zbv                        (p - 1) * max(f, i, 2 (i - w))      (Qi et al. 2024)
        dualpipev                  (p - 1) * max(f, f + i - w, 2 i - w - f / (p - 1))
                                                                       (DeepSeek-AI 2025)
    never less than one micro-batch through all stages and back, and the others after it:
        (p * v + m - 1) * (f + i + w) of a chunk, which is what few micro-batches leave of vpp

The reduction of gradients hides behind one backward as far as `covered_reduction` says; with ZeRO-2
they are scattered after every micro-batch, and with ZeRO-3 each layer is also gathered before its
forward and its backward, beside the computation of the one before it. `planner.simulate` answers
for the layouts that remain; this ranks the rest.
"""

from dataclasses import dataclass

import numpy as np

from planner.layouts import SCHEDULES
from planner.timing.kernels import matrix_s, stream_s
from planner.timing.layer import Layer, layer_times
from planner.timing.network import collective_s, message_s
from planner.timing.quantities import Constants, Machine, Num, Shape, Software, Split

ZERO_BUBBLE = SCHEDULES.index("zero_bubble")
V_SHAPED = (SCHEDULES.index("zbv"), SCHEDULES.index("dualpipev"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step and its terms, seconds; arrays [n]."""

    step_s: Num
    dense: Layer
    moe: Layer
    head_s: Num
    """(forward + backward) of head and loss, per micro-batch."""
    send_s: Num
    """One message to the next pipeline rank."""
    most_s: Num
    """Work of the slowest rank for one micro-batch."""
    bubble_s: Num
    exposed_send_s: Num
    reduction_s: Num
    """All of the gradients' reduction and the weights' gathering."""
    exposed_reduction_s: Num
    update_s: Num
    base_s: Num
    bound_s: Num
    """No schedule of these stages can be faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Parameters of one rank of the largest stage."""

    dense: Num
    experts: Num
    layer: Num
    """Of its largest layer, experts included; for what ZeRO-3 gathers."""


def rank_params(shape: Shape, split: Split) -> Params:
    """Parameters that a rank holds before ZeRO shards them; norms and biases left out."""
    h = shape.hidden
    q = shape.heads * shape.qk_dim
    plain = h * ((1 + shape.q_gates) * q + shape.kv_heads * (shape.qk_dim + shape.v_dim))
    q_in = np.where(shape.q_lora > 0, shape.q_lora, h)
    latent = (
        h * (shape.q_lora + shape.kv_lora + shape.rope_dim) + q_in * q
        + shape.kv_lora * shape.heads * (shape.qk_dim - shape.rope_dim + shape.v_dim)
    )  # fmt: skip
    mixer = np.where(shape.kv_lora > 0, latent, plain) + shape.heads * shape.v_dim * h
    linear = h * (shape.linear_in + shape.linear_out)
    mixer = (1 - shape.linear_share) * mixer + shape.linear_share * linear
    matrices = (2 + shape.gated) * h
    dense_share = 1 - shape.num_moe / shape.num_layers
    moe_share = 1 - dense_share
    shared = matrices * shape.shared_ffn + h * shape.experts
    layer = mixer + dense_share * matrices * shape.ffn + moe_share * shared
    expert = moe_share * matrices * shape.expert_ffn * shape.experts
    expert = expert * split.expert_copies / (split.ep * split.etp)
    ends = np.where((split.pp > 1) | (shape.tied > 0), 1.0, 2.0)
    table = shape.vocab * h * ends
    layers = shape.num_layers / split.pp
    return Params(
        dense=(layer * layers + table) / split.tp,
        experts=expert * layers,
        layer=layer / split.tp + expert,
    )


def head_s(shape: Shape, split: Split, hw: Machine, c: Constants) -> tuple[Num, Num, Num]:
    """(forward, backward for the input, for the weights) of the head and its loss."""
    tokens = split.micro_batch * shape.seq_len / split.cp
    width = shape.vocab / split.tp
    product = matrix_s(hw, c, tokens, width, shape.hidden, low=False)
    passes = stream_s(hw, c, 4.0 * c.vocabulary_passes * tokens * width)
    times = 1 + shape.mtp
    return times * (product + passes / 2), times * (product + passes / 2), times * product


def step_times(shape: Shape, split: Split, hw: Machine, sw: Software, c: Constants) -> Step:
    """All layouts at once."""
    dense, moe = layer_times(shape, split, hw, sw, c)
    return compose(shape, split, hw, sw, c, dense, moe)


def compose(
    shape: Shape, split: Split, hw: Machine, sw: Software, c: Constants, dense: Layer, moe: Layer
) -> Step:
    """The step of layouts whose layers take `dense` and `moe`."""
    forward, inputs, weights = _mean_layer(shape, dense, moe)
    layer = forward + inputs + weights
    head = sum(head_s(shape, split, hw, c))
    m, p, v = split.num_microbatches, split.pp, split.vpp
    most = _slowest_rank(shape, split, sw, layer, head)
    chunk = shape.num_layers / (p * v)
    bubble = (p - 1) * chunk * _bubble(split, forward, inputs, weights)
    through = chunk * ((p * v + m - 1) * layer - (p * v - 1) * _late_weights(split, weights))
    bubble = np.where(p > 1, np.maximum(bubble, through - m * most), 0.0)
    send = _send_s(shape, split, hw, sw, c)
    exposed_send = np.where(sw.overlaps > 0, c.exposed_send, 1.0)
    messages = np.where(p > 1, 2 * send * (p - 1 + m * exposed_send * np.sqrt(v)), 0.0)
    params = rank_params(shape, split)
    per_rank = shape.num_layers / p
    total, exposed = _reduction_s(
        shape, split, hw, sw, c, params, forward * per_rank, (inputs + weights) * per_rank
    )
    update = _update_s(split, hw, c, params)
    late = lateness(hw, c)
    step = (m * most + bubble + messages) * late + exposed + update + c.step_s
    least = (shape.num_layers * layer + head) / p
    return Step(
        step_s=step,
        dense=dense,
        moe=moe,
        head_s=head,
        send_s=send,
        most_s=most,
        bubble_s=bubble,
        exposed_send_s=messages,
        reduction_s=total,
        exposed_reduction_s=exposed,
        update_s=update,
        base_s=c.step_s,
        bound_s=m * least,
    )


def lateness(hw: Machine, c: Constants) -> Num:
    """Factor of waiting for the slowest of several nodes."""
    return 1 + c.straggler * np.log2(np.maximum(hw.num_devices / hw.per_node, 1.0))


def _mean_layer(shape: Shape, dense: Layer, moe: Layer) -> tuple[Num, Num, Num]:
    share = shape.num_moe / shape.num_layers
    pairs = (
        (dense.forward_s, moe.forward_s),
        (dense.input_s, moe.input_s),
        (dense.weight_s, moe.weight_s),
    )
    forward, inputs, weights = ((1 - share) * a + share * b for a, b in pairs)
    return forward, inputs, weights


def _bubble(split: Split, f: Num, i: Num, w: Num) -> Num:
    """Seconds per rank beyond the first; those of ZB-V and DualPipeV were read off simulations of
    equal stages with m >= 2p, which they meet within a percent."""
    zbv, dual = (split.schedule == code for code in V_SHAPED)
    widest = np.maximum(f, i)
    split_backward = np.maximum(widest, f + i - w)
    of_zbv = np.maximum(widest, 2 * (i - w))
    of_dual = np.maximum(np.maximum(f, f + i - w), 2 * i - w - f / np.maximum(split.pp - 1, 1.0))
    found = np.where(split.schedule == ZERO_BUBBLE, split_backward, f + i + w)
    return np.where(zbv, of_zbv, np.where(dual, of_dual, found))


def _late_weights(split: Split, w: Num) -> Num:
    """Weight gradients that a schedule does not let the chain of a micro-batch wait for: its own,
    and in a zero bubble those with which a rank fills the wait."""
    v_shaped = (split.schedule == V_SHAPED[0]) | (split.schedule == V_SHAPED[1])
    return np.where(split.schedule == ZERO_BUBBLE, 2 * w, np.where(v_shaped, w, 0.0))


def _slowest_rank(shape: Shape, split: Split, sw: Software, layer: Num, head: Num) -> Num:
    """Seconds per micro-batch of the rank with most work.

    Equally many layers per stage where they divide, or with embedding and head as a layer each
    where that divides (Megatron-Core's `account_for_embedding_in_pipeline_split`); else, or where
    the software balances, the least maximum over whole layers, the head on the last rank.
    """
    total, p = shape.num_layers, split.pp
    stages = p * split.vpp
    even = np.mod(total, stages) < 0.5
    with_ends = ~even & (np.mod(total + 2, stages) < 0.5)
    balanced = ((sw.balanced > 0) & (split.vpp < 1.5)) | (~even & ~with_ends)
    mean = (total * layer + head) / p
    last = np.clip(np.round((mean - head) / layer), 0.0, total / p)
    others = np.ceil((total - last) / np.maximum(p - 1, 1.0) - 1e-6)
    each = np.where(with_ends, (total + 2) / p, np.ceil(total / stages) * split.vpp)
    last = np.where(balanced, last, each - with_ends)
    others = np.where(balanced, others, each)
    slowest = np.maximum(others * layer, last * layer + head)
    return np.where(p > 1, slowest, total * layer + head)


def _send_s(shape: Shape, split: Split, hw: Machine, sw: Software, c: Constants) -> Num:
    tokens = split.micro_batch * shape.seq_len / split.cp
    kept = tokens / np.where(sw.sequence_parallel > 0, split.tp, 1.0)
    apart = split.tp * split.data_ranks
    # The slowest hop: stages within a node still pass on to the next node.
    leaves = split.pp * apart > hw.domain
    apart = np.where(leaves, np.maximum(apart, hw.domain), apart)
    once = message_s(hw, c, hw.element_bytes * kept * shape.hidden, apart)
    return np.where(split.pp > 1, once, 0.0)


def _reduction_s(
    shape: Shape,
    split: Split,
    hw: Machine,
    sw: Software,
    c: Constants,
    params: Params,
    f: Num,
    b: Num,
) -> tuple[Num, Num]:
    """(all, exposed) seconds of gradients' reduction and weights' gathering in a step.

    `f`, `b`: seconds of a rank's forward and backward of one micro-batch.
    """
    data, shards, tp = split.data_ranks, split.shard_ranks, split.tp
    covered = np.where(sw.overlaps > 0, c.covered_reduction, 0.0)
    copies = np.maximum(data / shards, 1.0)
    zero = split.zero > 0
    scatter = collective_s(hw, c, sw.reduce_bytes * params.dense, shards, tp)
    across = collective_s(
        hw, c, sw.reduce_bytes * params.dense / shards, copies, tp * shards, reduces=True
    )
    gather = collective_s(hw, c, hw.element_bytes * params.dense, shards, tp)
    inner = split.ep * split.etp
    experts = split.expert_data_ranks
    reduced = collective_s(hw, c, sw.reduce_bytes * params.experts, experts, inner)
    back = np.where(zero, hw.element_bytes, sw.reduce_bytes) * params.experts
    replicas = _replicas_s(split, hw, sw, c, params)
    once = scatter + across + gather + reduced + collective_s(hw, c, back, experts, inner)
    once = once + replicas
    left = np.maximum(once - covered * b, c.least_reduction * once)
    weights = hw.element_bytes * params.dense
    own = hw.element_bytes * params.experts
    fetch = collective_s(hw, c, weights, shards, tp)
    fetch = fetch + collective_s(hw, c, own, np.minimum(shards, experts), inner)
    each = np.maximum(fetch - c.covered_gather * f, 0.0)
    each = each + np.maximum(2 * fetch - c.covered_gather * b, 0.0)
    layers = np.maximum(shape.num_layers / split.pp, 1.0)
    m = split.num_microbatches
    # A stage's first layer forward, and its last one backward, find nothing to hide in.
    starts = m * split.vpp * 2 * fetch / layers
    sharded = m * each + starts + (across + replicas) * (1 - 0.5 * np.minimum(covered, 1))
    # ZeRO-2 keeps a shard of the gradients alone: it scatters them after every micro-batch.
    often = scatter + reduced
    rest = once - often
    scattered = m * np.maximum(often - c.covered_gather * b, c.least_reduction * often / layers)
    scattered = scattered + np.maximum(rest - covered * b, c.least_reduction * rest)
    # InternEvo's ZeRO sends each owner's weights in a broadcast of their own.
    left = left + np.where((sw.broadcasts > 0) & zero, c.broadcast_s * shards, 0.0)
    full, second = split.zero >= 3, split.zero == 2
    exposed = np.where(full, sharded, np.where(second, scattered, left))
    total = np.where(full, 3 * m * fetch + across, np.where(second, m * often + rest, once))
    return np.where(data > 1, total, 0.0), np.where(data > 1, exposed, 0.0)


def _replicas_s(split: Split, hw: Machine, sw: Software, c: Constants, params: Params) -> Num:
    """All-reduce over `ep` of a buffer of all experts with several holders, as the reference
    runtime sums their gradients."""
    shared = split.shared_experts
    if not np.any(np.asarray(shared) > 0):
        return 0.0
    held = params.experts * split.ep * shared / split.expert_copies
    group = np.where(shared > 0, split.ep, 1.0)
    return collective_s(hw, c, sw.reduce_bytes * held, group, split.etp, reduces=True)


def _update_s(split: Split, hw: Machine, c: Constants, params: Params) -> Num:
    """The optimizer: passes over its state, and its kernels' start; offloaded, over the host's
    link: gradients out and weights in (ZeRO-Offload)."""
    shards = split.shard_ranks
    experts = np.where(split.zero > 0, split.expert_data_ranks, 1.0)
    held = params.dense / shards + params.experts / np.minimum(experts, shards)
    update = stream_s(hw, c, c.optimizer_passes * held)
    moved = 6.0 * held / hw.host_rate
    return np.where(split.offload == 1, update + moved, update) + c.optimizer_s
