"""Lower bounds of a pipeline's step that hold for any split of the layers, of many layouts at once.

Of a stage s, c_s is what a micro-batch's way through it and back takes, S_s the same of all stages
before it. The stage cannot start before its first input has passed these, nor can they be over
before its last gradient has passed back, and between it works m times:

    step >= S_s + m c_s  for all s, so  step >= C / (1 - (1 - 1 / m)^P),  C = sum of c, P stages

(least where all hold with equality: T - S_(s+1) = (T - S_s) (1 - 1 / m)). With one stage per rank
the same holds of what a rank works, delayed by the forward of the ranks before it:

    step >= W phi / (1 - (1 - phi / m)^p),  phi the least share of forward in a layer's work W / L

With several stages per rank each of the first p has at least a layer, but for the embedding's:

    step >= m W / p + mean over ranks r of (r - 1) t + r hops,  t a layer forward and, as far as
    backward is not split, back: of a split one the weights' part fills the wait (Qi et al. 2023)

Gradients are reduced and weights updated on the fullest rank for E seconds, on others for less, as
their blocks are fewer. With one stage per rank and B blocks, F on the fullest rank, whatever F1 is:

    step >= m (F - 1) l >= m (F1 - 1) l where F >= F1, l the least layer, and else
    step >= m W / p + E (B / p) / F, the mean over ranks, >= m W / p + E (B / p) / F1

`planner.bounds` does the same for one split that is known.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.layouts import Bools
from planner.timing.layer import Layer
from planner.timing.quantities import Array, Num


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of all layers for a micro-batch, forward, backward for inputs and for weights; of a
    layer at least; the least share of forward in a layer."""

    forward_s: Num
    input_s: Num
    weight_s: Num
    least_forward_s: Num
    least_s: Num
    least_share: Num

    @property
    def total_s(self) -> Num:
        """Of all layers, forward and backward."""
        return self.forward_s + self.input_s + self.weight_s

    def with_head(self, head_s: Num) -> "Work":
        """With a head and loss, of which a third or more is forward; all of it counts as the part
        of backward that fills waits."""
        return dataclasses.replace(
            self,
            weight_s=self.weight_s + head_s,
            least_share=np.minimum(self.least_share, 1 / 3),
        )


def work_of(layers: Sequence[tuple[int, Layer]]) -> Work:
    """Of so many layers of each kind."""

    def summed(name: str) -> Num:
        return sum(n * np.asarray(getattr(layer, name)) for n, layer in layers)

    forward = [np.asarray(layer.forward_s) for _, layer in layers]
    whole = [f + t.input_s + t.weight_s for f, (_, t) in zip(forward, layers, strict=True)]
    shares = [f / w for f, w in zip(forward, whole, strict=True)]
    least = (functools.reduce(np.minimum, each) for each in (forward, whole, shares))
    sums = (summed(name) for name in ("forward_s", "input_s", "weight_s"))
    return Work(*(np.asarray(x) for x in (*sums, *least)))


def fill_bound_s(
    work: Work,
    pp: Num,
    vpp: Num,
    num_microbatches: Num,
    splits: Bools,
    held_s: Num = 0.0,
    hop_s: Num = 0.0,
) -> Array:
    """Seconds [n]. `splits`: whose backward is split; `held_s`: by which a message holds up each
    forward and each backward of a stage; `hop_s`: of a message itself."""
    m = np.maximum(num_microbatches, 1.0)
    total = work.total_s
    stages = pp * vpp
    chain = np.where(splits, total - work.weight_s, total) + 2 * held_s * stages
    through = chain / _reached(1 / m, stages)
    share = np.where(splits, np.minimum(work.least_share, 0.5), 1.0)
    alone = (total + 2 * held_s * pp) * share / _reached(share / m, pp)
    ways = np.where(splits, 1.0, 2.0)
    each = np.where(splits, work.least_forward_s, work.least_s)
    filled = (pp - 1.0) * np.maximum(pp - 2.0, 0.0) / (2 * pp) * each
    several = m * (total / pp + 2 * vpp * held_s) + filled + ways * hop_s * (pp - 1.0) / 2
    return np.asarray(np.maximum(through, np.where(vpp > 1, several, alone)))


def end_bound_s(
    work: Work, pp: Num, vpp: Num, num_microbatches: Num, num_blocks: int, end_s: Num
) -> Array:
    """Seconds [n] of pipelines whose fullest rank reduces and updates for `end_s`."""
    m, mean = np.maximum(num_microbatches, 1.0), num_blocks / pp
    total = m * work.total_s / pp
    best = np.asarray(end_s, dtype=np.float64)
    for times in (1.1, 1.3, 1.6, 2.0, 3.0, 5.0):
        most = times * mean + 1
        uneven = m * (most - 1) * work.least_s
        best = np.maximum(best, np.minimum(uneven, total + end_s * mean / most))
    return np.where(vpp > 1, end_s, best)


def _reached(share: Num, number: Num) -> Num:
    """1 - (1 - share)^number."""
    return -np.expm1(number * np.log1p(-np.minimum(share, 1 - 1e-15)))
