"""How many layers the ranks of a pipeline have room for, of many layouts at once.

Screening asks for memory of layers spread evenly. Where some rank then has too much, a split with
fewer layers on the ranks that keep more may still fit; `fullest` says how uneven it has to be.
"""

from collections.abc import Callable
from itertools import product

import numpy as np

from planner.layouts import Layouts
from planner.peak import Array, Peaks
from planner.plan import StageMemory

PeaksOf = Callable[[Layouts, Array], Peaks]
"""Peaks of layouts whose first, middle and last ranks hold so many layers, [3, n]."""


def totals(peaks: Peaks) -> Array:
    """Bytes of the first, a middle and the last rank, [3, n]."""
    static = peaks.weights + peaks.grads + peaks.optimizer + peaks.buffers
    return np.asarray(static + peaks.activations + peaks.transient)


def stage_memory(peaks: Peaks, row: int) -> StageMemory:
    """Of one rank of a single layout: the first, a middle or the last."""

    def part(array: Array) -> int:
        return int(np.broadcast_to(array, (3, 1))[row, 0])

    return StageMemory(
        weight_bytes=part(peaks.weights),
        grad_bytes=part(peaks.grads),
        optimizer_bytes=part(peaks.optimizer),
        activation_bytes=part(peaks.activations),
        buffer_bytes=part(peaks.buffers),
        workspace_bytes=part(peaks.transient),
    )


def fullest(
    layouts: Layouts, peaks_of: PeaksOf, num_layers: int, first_dense: int, room: float
) -> Array:
    """Layers of the fullest rank, at the least, where none has more than it has room for; inf where
    all together have too little.

    Never more than the truth: memory grows with the layers at least as from the first to the second
    or, where the first are dense, as between two of the others.
    """

    def total(layers: int) -> Array:
        shape = (3, len(layouts))
        return np.broadcast_to(totals(peaks_of(layouts, np.full(shape, float(layers)))), shape)

    none, one, two = (total(n) for n in (0, 1, 2))
    layer = two - one
    if first_dense:
        layer = np.minimum(layer, total(first_dense + 2) - total(first_dense + 1))
    most = np.floor((room - one) / np.maximum(layer, 1.0)) + 1
    most = np.where(one <= room, most, np.where(none <= room, 0.0, -np.inf))
    num_ranks = np.stack([np.ones(len(layouts)), layouts.pp - 2.0, np.ones(len(layouts))])
    return _filled(most, num_ranks, float(num_layers))


def _filled(most: Array, num_ranks: Array, num_layers: float) -> Array:
    """Least level up to which ranks are filled, of three kinds with room for `most` [3, n] each:
    the largest of what is left for the others over any of them that are full."""
    level = np.zeros(most.shape[1])
    for choice in product((True, False), repeat=3):
        full = np.array(choice)
        held = np.where(num_ranks[full] > 0, num_ranks[full] * most[full], 0.0).sum(axis=0)
        left, others = num_layers - held, num_ranks[~full].sum(axis=0)
        here = np.where(left > 0, np.inf, 0.0)
        here = np.where(others > 0, left / np.maximum(others, 1.0), here)
        level = np.maximum(level, here)
    return level
