"""Made routing for tests of expert placement."""

from itertools import product
from typing import Any

import numpy as np

from planner.config import ExpertSlots
from planner.expert_placement import Floats, Ranks, Rates, parts_of
from planner.routed_places import Group, RoutedPlaces
from profiler.routing.trace import Counts
from solvers.experts.exact import assignments
from solvers.experts.problem import Ints, Problem
from solvers.experts.score import count
from solvers.experts.solve import Objective, layer_costs
from solvers.experts.sweeps import placed_of


def routed(
    *,
    tokens: int = 60,
    layers: int = 3,
    experts: int = 4,
    k: int = 2,
    seed: int = 0,
    ranks: int = 2,
    ranks_per_node: int = 1,
    slots_per_rank: int | None = None,
    **fields: Any,
) -> Problem:
    """Distinct choices per token, popularity skewed by layer, the first choice of a layer leaning
    on that of the layer before."""
    rng = np.random.default_rng(seed)
    ids = np.empty((tokens, layers, k), np.int64)
    for layer in range(layers):
        taste = np.log(rng.gamma(1.0, 1.0, experts) + 1e-3) + rng.gumbel(size=(tokens, experts))
        if layer:
            np.add.at(taste, (np.arange(tokens), (ids[:, layer - 1, 0] + 1) % experts), 1.5)
        ids[:, layer] = np.argsort(-taste, axis=1)[:, :k]
    given: dict[str, Any] = {"compute_s": 1.0, "intra_s": 0.3, "inter_s": 1.1} | fields
    return Problem(
        ids=ids,
        counts=given.pop("counts", count(ids, experts)),
        num_ranks=ranks,
        ranks_per_node=ranks_per_node,
        slots_per_rank=experts // ranks if slots_per_rank is None else slots_per_rank,
        **given,
    )


def loaded(counts: list[list[float]], **fields: Any) -> Problem:
    """Loads alone, no tokens."""
    load = np.array(counts, dtype=float)
    given: dict[str, Any] = {"ids": np.zeros((0, len(load), 2), np.int64), "compute_s": 1.0}
    return Problem(counts=load, **(given | fields))


def one_token_each(*choices: tuple[int, ...]) -> Ints:
    """[tokens, 1, k]: tokens of one layer."""
    return np.array(choices, np.int64)[:, None, :]


def least(problem: Problem, objective: Objective) -> float:
    """Of all balanced placements of all layers."""
    states = assignments(problem.num_experts, problem.num_ranks)
    costs = [
        layer_costs(problem, placed_of(problem, np.stack(chain)), objective).sum()
        for chain in product(states, repeat=problem.num_layers)
    ]
    return float(min(costs))


def fullest(counts: Counts, experts: tuple[ExpertSlots, ...]) -> Floats:
    """[layers]: the largest load of a rank."""
    num = counts.shape[1]
    loads = [row @ parts_of(slots, num) for row, slots in zip(counts, experts, strict=True)]
    return np.array([load.max() for load in loads])


def level_places(num_layers: int, num_ranks: int, choice_s: float = 1.0) -> RoutedPlaces:
    """By load alone, on ranks of one node: `choice_s` for each choice of the fullest."""
    ranks = Ranks(
        num_ranks=num_ranks, ranks_per_node=num_ranks, slots_per_rank=1,
        rates=Rates(compute_s=choice_s, intra_s=0.0, inter_s=0.0),
    )  # fmt: skip
    order = tuple(range(num_ranks))
    return RoutedPlaces([Group(ranks=ranks, layers=tuple(range(num_layers)), order=order)])
