"""Routing drawn by a rule that is known, for tests."""

import numpy as np
from numpy.typing import NDArray

from profiler.routing.trace import RoutingTrace

Ids = NDArray[np.int16]


def drawn_ids(tokens: int, layers: int, experts: int, k: int, seed: int = 0) -> Ids:
    """Ids [tokens, layers, k], each set of k experts as likely as any other."""
    scores = np.random.default_rng(seed).random((tokens, layers, experts))
    return np.argsort(scores, axis=2)[:, :, :k].astype(np.int16)


def drawn_trace(tokens: int, layers: int, experts: int, k: int, seed: int = 0) -> RoutingTrace:
    """A trace of such ids."""
    return RoutingTrace(ids=drawn_ids(tokens, layers, experts, k, seed), num_experts=experts)
