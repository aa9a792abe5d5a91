"""Routing made up from a law, for tests."""

import numpy as np

from profiler.routing.trace import RoutingTrace


def trace(tokens=400, layers=3, experts=8, k=2, seed=0, skew=2.0):
    """Tokens whose experts are drawn by a Zipf-like law, another order in each layer."""
    random = np.random.default_rng(seed)
    weight = 1 / np.arange(1, experts + 1) ** skew
    ids = np.empty((tokens, layers, k), np.int16)
    for layer in range(layers):
        order = random.permutation(experts)
        for t in range(tokens):
            ids[t, layer] = order[random.choice(experts, k, replace=False, p=weight / weight.sum())]
    return RoutingTrace(ids=ids, num_experts=experts, model="made")
