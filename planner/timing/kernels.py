"""Seconds of kernels on one device.

    matrix      2mnk / (peak * e) * (1 + k0/k) * (1 + tail * units * 2^15 / (mn)), never less than
                its bytes at 0.8 of the memory's rate. k0 is the fill of a tile's inner loop,
                loop, the last factor the half-empty last wave of 2^15-element tiles over all units.
    stream      bytes / (memory rate * e)
    attention   causal FLOPs / (peak * e) * (1 + s0/s) * (1 + d0/d) in one kernel (FlashAttention,
                Dao 2023); else two batched products and passes over the scores in memory

The matrix form was chosen on 600 measured shapes of A100 and B200 (1.4 % and 5 % median error on
shapes held out, with e alone fitted per device; k0 and tail carry between the devices).
"""

import numpy as np

from planner.timing.quantities import Constants, Machine, Num, Shape, Software

TILE = 32768.0
"""Elements of the output tile of one multiprocessor, 256 x 128."""


def matrix_s(
    hw: Machine, c: Constants, m: Num, n: Num, k: Num, *, low: bool = True, starved: Num = 0.0
) -> Num:
    """One [m, k] x [k, n] product; 0 where a dimension is 0. `low`: in 8 or 4 bits if the job is.

    Sizes in elements; `starved`: rows m at which its group of products is half as fast. It adds to
    the last wave, so that fewer rows never take longer.
    """
    rate = hw.peak * c.matrix_efficiency
    if low:
        rate = np.where(hw.low > 0, hw.peak_low * c.low_efficiency, rate)
    flops = 2.0 * m * n * k
    outputs = np.maximum(m * n, 1.0)
    few = c.wave_tail * hw.units * TILE / outputs + starved / np.maximum(m, 1e-9)
    fill = (1 + c.matrix_depth / np.maximum(k, 1.0)) * (1 + few)
    moved = hw.element_bytes * (m * k + n * k + m * n)
    return np.where(flops > 0, np.maximum(flops / rate * fill, moved / (0.8 * hw.memory_rate)), 0.0)


def stream_s(hw: Machine, c: Constants, num_bytes: Num) -> Num:
    """Passes of element-wise kernels over `num_bytes` bytes, reads and writes counted."""
    return num_bytes / (hw.memory_rate * c.memory_efficiency)


def attention_s(
    shape: Shape,
    hw: Machine,
    sw: Software,
    c: Constants,
    tokens: Num,
    heads: Num,
    pieces: Num = 1.0,
) -> tuple[Num, Num]:
    """(forward, backward) of scores and values of `tokens` tokens and `heads` heads of one rank.

    A ring over `pieces` ranks attends to one of their shares of the keys at a time, each in a
    kernel of its own.
    """
    flops = 2.0 * tokens * shape.context * heads * (shape.qk_dim + shape.v_dim)
    flash = (
        flops / (hw.peak * c.attention_efficiency)
        * (1 + c.attention_length * pieces / shape.seq_len) * (1 + c.attention_width / shape.qk_dim)
    )  # fmt: skip
    # Without one kernel the whole square is computed; tensor cores want multiples of 8 elements.
    odd = np.where(np.mod(shape.qk_dim, 8) == 0, 1.0, c.misaligned)
    products = 2 * flops / (hw.peak * c.matrix_efficiency) * (1 + c.matrix_depth / shape.qk_dim)
    scores = hw.element_bytes * c.score_passes * tokens * shape.seq_len * heads
    passes = stream_s(hw, c, scores)
    forward = np.where(sw.flash > 0, flash, products * odd + passes)
    backward = np.where(
        sw.flash > 0, 2.5 * c.attention_backward * flash, 2 * products * odd + 1.5 * passes
    )
    return forward, backward
