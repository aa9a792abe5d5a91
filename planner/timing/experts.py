"""Seconds that experts add to a layer: their products, and the exchange of their tokens.

With `ep_overlap` d > 1 the tokens go in d chunks (Tutel, Hwang et al. 2022, arXiv:2206.03382): each
exchange of a chunk starts anew, each product has 1/d of the rows, and the host starts the kernels
of every further chunk beside the computing. On the network all X seconds of sending stand before
the X of returning; experts compute for C seconds from the first chunk's arrival on, and the last
chunk returns alone:

    max(2 X, C + 2 X / d) = C + 2 X - min(C, 2 X (1 - 1/d))

of which hiding takes off only the share 1 - `exposed_exchange` (measured on exchanges beside other
micro-batches: both want the memory and the multiprocessors); nothing where the software does not
run them side by side. X is of `ep` alone: an expert's group of etp ranks gathers a chunk when it is
computed. Of backward, only the gradients of the input count as C: schedules that split
backward leave those of the weights for later.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from planner.timing.kernels import matrix_s, stream_s
from planner.timing.network import exchange_s
from planner.timing.quantities import Constants, Machine, Num, Shape, Software, Split

BIAS_BYTES = 28.0
"""Per element of the experts' output: bias times the token's weight in fp32, added, joined and cast
back by kernels of their own (Megatron-Core's `TEGroupedMLP._apply_bias`)."""


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
    expert_backward: Num = 0.0


def with_experts(
    shape: Shape,
    split: Split,
    hw: Machine,
    sw: Software,
    c: Constants,
    tokens: Num,
    mixer: Parts,
) -> Parts:
    """`mixer`, which sees `tokens` on a rank, and the routed and shared experts behind it."""
    if not np.any(shape.num_moe):
        return mixer
    h, x = shape.hidden, shape.expert_ffn / split.etp
    up = (1 + shape.gated) * x
    # The others wait for the fullest rank at the exchange of every layer.
    sent = tokens / split.tp * shape.topk * split.load
    routed = sent * split.etp * split.own_load
    held = np.maximum(shape.experts * split.expert_copies / split.ep, 1.0)
    experts = _products_s(hw, c, routed, held, split.ep_overlap, h, x, up)
    y = shape.shared_ffn / split.tp
    shared = matrix_s(hw, c, tokens, (1 + shape.gated) * y, h) + matrix_s(hw, c, tokens, h, y)
    router = matrix_s(hw, c, tokens / split.tp, shape.experts, h, low=False)
    low = np.where(hw.low > 0, c.cast_passes, 0.0)
    own = (hw.element_bytes * c.routed_passes * up + low * (h + up)) * routed
    passes = own + hw.element_bytes * c.activation_passes * (1 + shape.gated) * y * tokens
    passes = passes + shape.expert_bias * BIAS_BYTES * h * routed
    activation = stream_s(hw, c, hw.element_bytes * (up + x) * routed)
    waits = np.where(sw.fused_exchange > 0, c.fused_expert_ops, 1.0)
    waits = np.where(sw.drops > 0, 0.0, waits)
    own = stream_s(hw, c, own)
    compute = experts + own, c.weight_grad * experts + 2 * own
    forward, backward = _exchanges_s(split, hw, sw, c, h, sent, compute)
    return dataclasses.replace(
        mixer,
        matrix=mixer.matrix + experts + shared + router,
        stream=mixer.stream + stream_s(hw, c, passes),
        expert=forward,
        expert_backward=backward,
        # Later chunks' kernels are started while earlier ones compute.
        ops=c.moe_ops
        + c.latent_ops * (shape.kv_lora > 0)
        + (split.ep_overlap - 1) * c.expert_ops * held,
        late_ops=waits * c.expert_ops * held,
        again=mixer.again + sw.recompute_expert_activation * activation,
        modules=mixer.modules + sw.recompute_expert_activation,
    )


def _products_s(
    hw: Machine, c: Constants, routed: Num, held: Num, chunks: Num, hidden: Num, width: Num, up: Num
) -> Num:
    """Of `routed` rows spread evenly over `held` experts and chunks."""
    each = np.maximum(routed / held / chunks, 1e-9)
    # A group of small products starves the device below peak / memory rate tokens each.
    starved = c.group_depth * (hw.peak / hw.memory_rate / 156.0)
    once = matrix_s(hw, c, each, up, hidden, starved=starved)
    return chunks * held * (once + matrix_s(hw, c, each, hidden, width, starved=starved))


def _exchanges_s(
    split: Split, hw: Machine, sw: Software, c: Constants, hidden: Num, sent: Num,
    compute: tuple[Num, Num],
) -> tuple[Num, Num]:  # fmt: skip
    """(forward, backward) exposed seconds of sending `sent` tokens of a rank to their experts and
    back, beside which experts `compute` so long forward and backward."""
    chunks, num_bytes = split.ep_overlap, hw.element_bytes * sent * hidden
    # Sorting tokens by expert and back belongs to the exchange: what hides it hides both.
    routed = sent * split.etp * split.own_load
    sorting = stream_s(hw, c, hw.element_bytes * c.routed_passes * hidden * routed)
    fused = np.where(sw.fused_exchange > 0, c.fused_exchange, 1.0)
    exposed = np.where(sw.overlap_exchange > 0, c.exposed_exchange, 1.0)
    on = split.ep > 1
    once = exchange_s(hw, c, num_bytes / chunks, split.ep * split.etp)
    exchange = chunks * np.where(on, once * fused, 0.0)
    talk = 2 * (exchange + sorting) * exposed
    over_ep = exchange_s(hw, c, num_bytes / chunks, split.ep, split.etp) * fused
    able = (sw.chunked_exchange > 0) & (sw.overlap_exchange == 0) & on
    most = 2 * (chunks - 1) * np.minimum(over_ep, once * fused)
    forward, backward = (
        np.where(able, (1 - c.exposed_exchange) * np.minimum(each, most), 0.0) for each in compute
    )
    return talk - forward, talk - backward
