"""Shadowing: the hottest experts on every rank, so that no rank's choices of them travel
(FasterMoE, He et al., PPoPP 2022, section 4.2).

    n        experts on all ranks, each with 1 / ranks of its choices: as many as leave the fullest
             rank least, of those that the slots allow
    others   longest first into the slots that are left; what is over are copies without choices
"""

import numpy as np

from solvers.experts.packing import longest_first
from solvers.experts.problem import Floats, Ints, Placed, Problem


def shadow(problem: Problem) -> Placed:
    """Every layer by itself."""
    found = [_layer(problem, counts) for counts in problem.counts]
    return Placed(
        slots=np.stack([slots for slots, _ in found]),
        shares=np.stack([shares for _, shares in found]),
    )


def _layer(problem: Problem, counts: Floats) -> tuple[Ints, Floats]:
    """(slots, shares) of as many shadows as leave the fullest rank least, of equals the fewest."""
    order = np.argsort(-counts, kind="stable")
    best: tuple[Ints, Floats] | None = None
    least = np.inf
    for num in range(min(problem.slots_per_rank, len(counts)) + 1):
        if (problem.slots_per_rank - num) * problem.num_ranks < len(counts) - num:
            break
        slots, shares = _with_shadows(problem, counts, order, num)
        load = (counts[slots] * shares).reshape(problem.num_ranks, -1).sum(axis=1).max()
        if load < least:
            best, least = (slots, shares), load
    if best is None:
        raise ValueError("there are fewer slots than experts")
    return best


def _with_shadows(problem: Problem, counts: Floats, order: Ints, num: int) -> tuple[Ints, Floats]:
    """The first `num` of `order` on all ranks."""
    ranks, hot, rest = problem.num_ranks, order[:num], order[num:]
    over = (problem.slots_per_rank - num) * ranks - len(rest)
    items = np.concatenate([rest, np.full(over, order[0])])
    part = np.concatenate([np.ones(len(rest)), np.zeros(over)])
    bins = longest_first((counts[items] * part)[None], ranks)[0]
    slots = np.concatenate([np.tile(hot, (ranks, 1)), items[bins]], axis=1)
    shares = np.concatenate([np.full((ranks, num), 1 / ranks), part[bins]], axis=1)
    return slots.reshape(-1), shares.reshape(-1)
