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


def skewed_trace(
    tokens: int = 400, layers: int = 3, experts: int = 8, k: int = 2, seed: int = 0,
    skew: float = 2.0,
) -> RoutingTrace:  # fmt: skip
    """Experts drawn without return by Zipf's law, in another order in each layer: the k largest of
    log weight + Gumbel noise."""
    random = np.random.default_rng(seed)
    weights = [random.permutation(-skew * np.log(np.arange(1, experts + 1))) for _ in range(layers)]
    scores = np.stack(weights) + random.gumbel(size=(tokens, layers, experts))
    ids = np.argsort(-scores, axis=2)[:, :, :k].astype(np.int16)
    return RoutingTrace(ids=ids, num_experts=experts, model="made")
