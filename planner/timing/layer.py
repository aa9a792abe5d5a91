"""Seconds of one layer and one micro-batch on one rank, by what takes them.

A rank sees t = micro_batch * seq_len / cp tokens. Tensor parallelism shards heads, widths and
vocabulary, and with sequence parallelism the tokens of norms and residuals (Korthikanti et al.
2022). Experts: of a rank's t / tp tokens k copies each leave for the ranks of their experts, `load`
times as many for the fullest rank as for the mean one; an expert's group of etp ranks gathers its
tokens. Backward runs each matrix product twice, for the input and for the weight. A layer cannot be
faster than the host starts its kernels: `ops * host_op_s`, less what CUDA graphs replay. Where
routing drops nothing, the host waits for the counts of tokens, and the device then waits for the
host.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from planner.layouts import CP_METHODS
from planner.timing.kernels import attention_s, matrix_s, stream_s
from planner.timing.network import collective_s, exchange_s
from planner.timing.quantities import Constants, Machine, Num, Shape, Software, Split

RING, ALL_GATHER, ULYSSES, HYBRID = (
    CP_METHODS.index(m) for m in ("ring", "all_gather", "ulysses", "hybrid")
)
SELECTIVE, FULL = 1, 2
BIAS_BYTES = 28.0
"""Per element of the experts' output: bias times the token's weight in fp32, added, joined and cast
back by kernels of their own (Megatron-Core's `TEGroupedMLP._apply_bias`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, one micro-batch, one rank; seconds. The parts are of forward alone."""

    matrix_s: Num
    attention_s: Num
    stream_s: Num
    tensor_s: Num
    """Collectives of tensor parallelism that nothing hides."""
    context_s: Num
    """Exchange of keys and values that attention does not hide."""
    expert_s: Num
    """All-to-all of tokens and experts' outputs that nothing hides."""
    forward_s: Num
    """All of forward."""
    input_s: Num
    """Backward for the input, recomputation included."""
    weight_s: Num
    """Backward for the weights."""
    recompute_s: Num
    """What `input_s` holds of forward run again."""
    attention_back_s: Num
    """Of backward, the scores and values."""
    context_back_s: Num
    """Of backward, the exposed exchange of keys and values and their gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a layer's forward consists of before hosts and overlaps."""

    matrix: Num
    attention: Num
    attention_backward: Num
    stream: Num
    expert: Num
    ops: Num
    """Starts of kernels that the host makes while the device computes, or a CUDA graph replays."""
    late_ops: Num = 0.0
    """Starts that wait for the counts of routed tokens, while the device is idle; only a graph of
    the whole step knows no such wait."""
    again: Num = 0.0
    """Seconds of modules that run forward again by themselves."""
    modules: Num = 0.0
    """Number of these."""


def layer_times(
    shape: Shape, split: Split, hw: Machine, sw: Software, c: Constants
) -> tuple[Layer, Layer]:
    """A dense and a MoE layer."""
    tokens = split.micro_batch * shape.seq_len / split.cp
    tensor = _tensor_s(shape, split, hw, sw, c, tokens)
    mixer = _mixer(shape, split, hw, sw, c, tokens)
    context = _context_s(shape, split, hw, c, tokens, mixer.attention)
    dense = _with_ffn(shape, split, hw, sw, c, tokens, mixer)
    moe = _with_experts(shape, split, hw, sw, c, tokens, mixer)
    return (
        _layer(split, hw, sw, c, dense, tensor, context),
        _layer(split, hw, sw, c, moe, tensor, context),
    )


def _tensor_s(
    shape: Shape, split: Split, hw: Machine, sw: Software, c: Constants, tokens: Num
) -> Num:
    """Two all-reduces (or gather + scatter pairs) of a forward, as far as they are exposed."""
    num_bytes = hw.element_bytes * tokens * shape.hidden
    once = collective_s(hw, c, num_bytes, split.tp, 1.0, reduces=True)
    return 2 * once * np.where(sw.overlaps > 0, c.exposed_tensor, 1.0)


def _mixer(
    shape: Shape, split: Split, hw: Machine, sw: Software, c: Constants, tokens: Num
) -> Parts:
    """Attention with its projections, and the norms of the whole layer."""
    h, tp = shape.hidden, split.tp
    heads = shape.heads / tp
    q, kv = heads * shape.qk_dim, np.maximum(shape.kv_heads / tp, 1.0)
    wide = (1 + shape.q_gates) * q + kv * (shape.qk_dim + shape.v_dim)
    sp = np.where(sw.sequence_parallel > 0, tp, 1.0)
    plain = matrix_s(hw, c, tokens, wide, h)
    again: Num = 0.0
    latent = shape.kv_lora > 0
    if np.any(latent):
        q_in = np.where(shape.q_lora > 0, shape.q_lora, h)
        down = matrix_s(hw, c, tokens, shape.q_lora, h)
        down = down + matrix_s(hw, c, tokens, shape.kv_lora + shape.rope_dim, h)
        up = matrix_s(hw, c, tokens, q, q_in)
        up = up + matrix_s(
            hw, c, tokens, heads * (shape.qk_dim - shape.rope_dim + shape.v_dim), shape.kv_lora
        )
        plain = np.where(latent, down + up, plain)
        again = np.where(latent, sw.recompute_latent * up, 0.0)
    # Two norms, each of which reads and writes the residual stream.
    norms = stream_s(hw, c, 4 * hw.element_bytes * h / sp * tokens)
    products = plain + matrix_s(hw, c, tokens, h, heads * shape.v_dim)
    share = shape.linear_share
    forward, backward = attention_s(shape, hw, sw, c, tokens, heads, _pieces(split))
    if np.any(share):
        out = shape.linear_out / tp
        linear = matrix_s(hw, c, tokens, shape.linear_in / tp, h) + matrix_s(hw, c, tokens, h, out)
        products = (1 - share) * products + share * linear
        # The chunked delta rule computes about four products of the state's size per token.
        state = 8.0 * tokens * shape.linear_state / tp / (hw.peak * c.attention_efficiency)
        forward, backward = forward + share * state, backward + 2.5 * share * state
    low = np.where(hw.low > 0, c.cast_passes, 0.0)
    passes = hw.element_bytes * (c.norm_passes * h / sp + c.qkv_passes * wide) + low * (h + q)
    return Parts(
        matrix=products,
        attention=forward,
        attention_backward=backward,
        stream=stream_s(hw, c, passes * tokens),
        expert=0.0,
        ops=c.dense_ops,
        again=again + sw.recompute_norms * norms,
        modules=2 * sw.recompute_norms + sw.recompute_latent * latent,
    )


def _pieces(split: Split) -> Num:
    """Shares of the keys that a rank attends to one after another."""
    method = split.cp_method
    ring = np.where(method == HYBRID, split.cp / split.cp_heads, split.cp)
    return np.where((method == RING) | (method == HYBRID), ring, 1.0)


def _with_ffn(
    shape: Shape,
    split: Split,
    hw: Machine,
    sw: Software,
    c: Constants,
    tokens: Num,
    mixer: Parts,
) -> Parts:
    h, width = shape.hidden, shape.ffn / split.tp
    up = (1 + shape.gated) * width
    products = matrix_s(hw, c, tokens, up, h) + matrix_s(hw, c, tokens, h, width)
    low = np.where(hw.low > 0, c.cast_passes, 0.0)
    passes = hw.element_bytes * c.activation_passes * up + low * (h + up)
    stream = stream_s(hw, c, passes * tokens)
    return dataclasses.replace(
        mixer,
        matrix=mixer.matrix + products,
        stream=mixer.stream + stream,
        ops=mixer.ops * np.where(shape.gated > 0, 1.6, 1.0),
        again=mixer.again + sw.recompute_ffn * (products + stream),
        modules=mixer.modules + sw.recompute_ffn,
    )


def _with_experts(
    shape: Shape,
    split: Split,
    hw: Machine,
    sw: Software,
    c: Constants,
    tokens: Num,
    mixer: Parts,
) -> Parts:
    if not np.any(shape.num_moe):
        return mixer
    h, x = shape.hidden, shape.expert_ffn / split.etp
    up = (1 + shape.gated) * x
    # The others wait for the fullest rank at the exchange of every layer.
    sent = tokens / split.tp * shape.topk * split.load
    routed = sent * split.etp * split.own_load
    held = np.maximum(shape.experts * split.expert_copies / split.ep, 1.0)
    each = np.maximum(routed / held, 1e-9)
    # A group of small products starves the device below peak / memory rate tokens each.
    starved = c.group_depth * (hw.peak / hw.memory_rate / 156.0)
    experts = matrix_s(hw, c, each, up, h, starved=starved)
    experts = held * (experts + matrix_s(hw, c, each, h, x, starved=starved))
    y = shape.shared_ffn / split.tp
    shared = matrix_s(hw, c, tokens, (1 + shape.gated) * y, h) + matrix_s(hw, c, tokens, h, y)
    router = matrix_s(hw, c, tokens / split.tp, shape.experts, h, low=False)
    low = np.where(hw.low > 0, c.cast_passes, 0.0)
    passes = (hw.element_bytes * c.routed_passes * up + low * (h + up)) * routed
    passes = passes + hw.element_bytes * c.activation_passes * (1 + shape.gated) * y * tokens
    passes = passes + shape.expert_bias * BIAS_BYTES * h * routed
    activation = stream_s(hw, c, hw.element_bytes * (up + x) * routed)
    # Sorting tokens by expert and back belongs to the exchange: what hides it hides both.
    sorting = stream_s(hw, c, hw.element_bytes * c.routed_passes * h * routed)
    exchange = exchange_s(hw, c, hw.element_bytes * sent * h, split.ep * split.etp)
    fused = np.where(sw.fused_exchange > 0, c.fused_exchange, 1.0)
    hidden = np.where(sw.overlap_exchange > 0, c.exposed_exchange, 1.0)
    waits = np.where(sw.fused_exchange > 0, c.fused_expert_ops, 1.0)
    waits = np.where(sw.drops > 0, 0.0, waits)
    return dataclasses.replace(
        mixer,
        matrix=mixer.matrix + experts + shared + router,
        stream=mixer.stream + stream_s(hw, c, passes),
        expert=2 * (np.where(split.ep > 1, exchange * fused, 0.0) + sorting) * hidden,
        ops=c.moe_ops + c.latent_ops * (shape.kv_lora > 0),
        late_ops=waits * c.expert_ops * held,
        again=mixer.again + sw.recompute_expert_activation * activation,
        modules=mixer.modules + sw.recompute_expert_activation,
    )


def _context_s(
    shape: Shape, split: Split, hw: Machine, c: Constants, tokens: Num, attention: Num
) -> tuple[Num, Num]:
    """(forward, backward) seconds of context parallelism that attention does not hide.

    ring: n - 1 messages of keys and values forward, about twice that back, beside attention.
    all_gather: one gather forward; a gather and a scatter of gradients back. ulysses: all-to-alls
    of q, k, v and the output, each way. hybrid: both, over their part of the group.
    """
    if not np.any(split.cp > 1):
        return 0.0, 0.0
    heads, kv = shape.heads / split.tp, np.maximum(shape.kv_heads / split.tp, 1.0)
    kv_bytes = hw.element_bytes * tokens * kv * (shape.qk_dim + shape.v_dim)
    all_bytes = kv_bytes + hw.element_bytes * tokens * heads * (shape.qk_dim + shape.v_dim)
    method = split.cp_method
    inside = np.where(method == ULYSSES, split.cp, np.where(method == HYBRID, split.cp_heads, 1.0))
    around = split.cp / inside
    ring = collective_s(hw, c, kv_bytes * around, around, split.tp * inside)
    cover = c.covered_context * attention
    gathers = method == ALL_GATHER
    least = c.least_reduction * ring  # each step waits for the slowest of its ring
    forward = np.where(gathers, ring, np.maximum(ring - cover, least))
    backward = np.where(gathers, 2 * ring, np.maximum(2 * ring - 2 * cover, 2 * least))
    heads_s = exchange_s(hw, c, all_bytes, inside, split.tp)
    on = split.cp > 1
    return np.where(on, forward + heads_s, 0.0), np.where(on, backward + heads_s, 0.0)


def _layer(
    split: Split,
    hw: Machine,
    sw: Software,
    c: Constants,
    parts: Parts,
    tensor: Num,
    context: tuple[Num, Num],
) -> Layer:
    op = c.host_op_s * np.where(sw.compiled > 0, 0.6, 1.0)
    host = op * parts.ops * (1 - sw.graph)
    wait = op * np.where(sw.graph < 1, parts.late_ops, 0.0)
    own = (sw.recompute_full > 0) | (sw.recompute_matrix > 0)
    attention = (split.recompute == SELECTIVE) & ~np.asarray(own)
    checkpoints = op * c.checkpoint_ops * (parts.modules + attention) * (1 - sw.graph)
    waits = (split.pp > 1) & (split.tp > 1) & (hw.num_devices > hw.per_node) & (sw.stalls > 0)
    stall = np.where(waits, c.stall_base_s + c.stall_s * split.tp, 0.0)
    busy = parts.matrix + parts.attention + parts.stream
    talk = tensor + parts.expert
    forward = np.maximum(np.maximum(busy, host) + wait + talk + context[0], stall)
    weight = c.weight_grad * parts.matrix
    back = weight + parts.matrix * c.weight_grad + parts.attention_backward + 2 * parts.stream
    backward = np.maximum(
        np.maximum(back + parts.again, 2 * host + checkpoints) + 2 * wait + talk + context[1], stall
    )
    again = np.where(split.recompute == FULL, forward, 0.0)
    again = np.where(attention, parts.attention, again)
    again = again + sw.recompute_full * forward + sw.recompute_matrix * parts.matrix
    return Layer(
        matrix_s=parts.matrix,
        attention_s=parts.attention,
        stream_s=parts.stream,
        tensor_s=tensor,
        context_s=context[0],
        expert_s=parts.expert,
        forward_s=forward,
        input_s=backward - weight + again,
        weight_s=weight,
        recompute_s=again + parts.again,
        attention_back_s=parts.attention_backward,
        context_back_s=context[1],
    )
