"""Bounds of expert placement: never above the best of all placements, and not far below where
tokens have an order that can be found."""

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from solvers.experts.bounds import time_bound
from solvers.experts.coactivation import coactivation
from solvers.experts.problem import DROPPED, Placed, Problem, held
from solvers.experts.score import by_node, count, visited
from solvers.experts.solve import layer_costs, solve
from solvers.experts.visits import Chosen, chosen_of, least_busiest
from tests.unit.routed import one_token_each, routed

Ids = NDArray[np.integer]


def _chosen(ids: Ids, experts: int) -> Chosen:
    problem = Problem(
        ids=ids, counts=count(ids, experts), num_ranks=1, ranks_per_node=1, slots_per_rank=experts
    )
    return chosen_of(problem, 0)


def _visits(ids: Ids, experts: int, places: int, room: int) -> tuple[float, float]:
    """(visits of the busiest place, mean over places), the least of all placements of whole
    experts, at most `room` in a place."""
    place = np.array(list(product(range(places), repeat=experts)))
    inside = place[:, None, :] == np.arange(places)[:, None]
    inside = inside[(inside.sum(axis=2) <= room).all(axis=1)]
    hit = np.zeros(inside.shape[:2])
    for token in ids[:, 0]:
        hit += inside[:, :, token[token != DROPPED]].any(axis=2)
    return float(hit.max(axis=1).min()), float(hit.mean(axis=1).min())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("experts", "places", "room", "k"),
    [(6, 2, 3, 3), (6, 3, 2, 2), (7, 2, 5, 4), (6, 3, 3, 5), (8, 2, 4, 2), (5, 5, 1, 3)],
)
def test_visits_are_never_above_the_best_placement(
    seed: int, experts: int, places: int, room: int, k: int
) -> None:
    ids = routed(experts=experts, layers=1, k=k, seed=seed, tokens=25, ranks=1).ids
    rng = np.random.default_rng(seed)
    ids = np.where(rng.random(ids.shape) < 0.1, DROPPED, ids)
    if seed % 3 == 0:  # An expert twice in a token.
        ids[::4, :, 0] = ids[::4, :, 1]
    chosen = _chosen(ids, experts)
    busiest, mean = _visits(ids, experts, places, room)
    for spectral in (False, True):
        found = least_busiest(chosen, places, room, spectral=spectral)
        assert 0 < found <= busiest * (1 + 1e-9)
        assert found >= np.ceil((chosen.distinct[1:] / places).sum() - 1e-9) * 0.999
    assert mean <= busiest


@pytest.mark.parametrize("seed", range(6))
def test_visits_are_never_above_replicas_with_any_shares(seed: int) -> None:
    """Four experts on two nodes of three slots: all sets of three, shares in steps of 0.2."""
    problem = routed(layers=1, tokens=40, k=2 + seed % 2, slots_per_rank=3, seed=seed)
    found = least_busiest(chosen_of(problem, 0), 2, 3, spectral=True)
    least = np.inf
    for one, two in product(combinations(range(4), 3), repeat=2):
        shared = sorted(set(one) & set(two))
        if len({*one, *two}) < 4:
            continue
        for parts in product(np.linspace(0, 1, 6), repeat=len(shared)):
            part = np.array([[float(e in one), float(e in two)] for e in range(4)])
            part[shared] = np.stack([parts, 1 - np.array(parts)], axis=1)
            least = min(least, visited(problem, [part]).max())
    assert found <= least
    # It is worth something: half of the tokens visit the busier node whatever is done.
    assert found > 0.5 * len(problem.ids)


def _clusters(*, size: int, num: int, mixed: float, seed: int = 0, tokens: int = 2000) -> Ids:
    """Tokens of four choices, all of one cluster but for a part that takes two of another one; in
    each cluster some experts are chosen far more often than others."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(size * num).reshape(num, size)
    taste = -1.2 * np.log(np.arange(1, size + 1)) + rng.gumbel(size=(tokens, 2, size))
    order = np.argsort(-taste, axis=2)
    first = rng.integers(num, size=tokens)
    second = (first + rng.integers(1, num, tokens)) % num
    ids = names[first[:, None], order[:, 0, :4]]
    two = rng.random(tokens) < mixed
    ids[two, 2:] = names[second[two, None], order[two, 1, :2]]
    return ids[:, None]


@pytest.mark.parametrize("spare", [0, 2])
def test_clusters_are_seen_in_the_eigenvalues(spare: int) -> None:
    """8 clusters of 32, four fifths of the tokens in two of them: 1.8 nodes per token. Those that
    are chosen with most are not of one's own cluster."""
    chosen = _chosen(_clusters(size=32, num=8, mixed=0.8), 256)
    by_rows, found = (
        least_busiest(chosen, 8, 32 + spare, spectral=spectral) * 8 / 2000
        for spectral in (False, True)
    )
    assert 1.15 * by_rows < found < 1.8 * 1.02
    assert found > 0.85 * 1.8


def test_the_place_of_the_hottest_expert_is_visited_by_all_of_its_tokens() -> None:
    """Expert 0 in nine tokens of ten, each with another one."""
    ids = one_token_each(*[(0, 1 + i % 7) for i in range(90)], *[(1, 2)] * 10)
    found = least_busiest(_chosen(ids, 8), 4, 2, spectral=True)
    assert found >= 90
    assert found <= _visits(ids, 8, 4, 2)[0]


@pytest.mark.parametrize("copies", ["node", "rank", "choice"])
def test_the_bound_of_time_is_below_the_optimum(copies: Any) -> None:
    for seed in range(12):
        fields: dict[str, Any] = {"k": 1 + seed % 4, "compute_s": 0.1, "tokens": 50}
        problem = routed(experts=8, ranks=4, ranks_per_node=2, copies=copies, seed=seed, **fields)
        best = solve(problem, method="exact").objective
        assert best is not None
        assert 0.5 * best < time_bound(problem) <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("copies", ["node", "rank", "choice"])
def test_the_bound_of_time_is_below_replicas(copies: Any, seed: int) -> None:
    """Of slots and shares by chance, and of what the solvers make."""
    rng = np.random.default_rng(seed)
    problem = routed(
        experts=6, ranks=4, ranks_per_node=2, slots_per_rank=3, copies=copies, seed=seed, k=3
    )
    limit = time_bound(problem)
    for _ in range(20):
        slots = np.stack([rng.permutation(np.r_[:6, rng.integers(0, 6, 6)]) for _ in range(3)])
        weight = rng.gamma(0.3, 1.0, slots.shape) + 1e-9
        sums = np.stack([np.bincount(row, w, 6)[row] for row, w in zip(slots, weight, strict=True)])
        costs = layer_costs(problem, Placed(slots=slots, shares=weight / sums), "time")
        assert limit <= costs.sum() * (1 + 1e-9)
    found = solve(problem).value
    assert found is not None
    assert limit <= layer_costs(problem, found, "time").sum() * (1 + 1e-9)


def test_pairs_are_counted_without_those_that_were_dropped() -> None:
    ids = one_token_each((0, 1, 2), (0, -1, 2), (-1, -1, 1))
    kept = ids.copy()
    both = coactivation(routed(experts=3, layers=1, ranks=1), 0)
    assert both.shape == (3, 3)
    chosen = _chosen(ids, 3)
    assert chosen.both.tolist() == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    assert chosen.by_expert.tolist() == [2, 2, 2]
    assert chosen.distinct.tolist() == [0, 1, 1, 1]
    assert (ids == kept).all()


def test_visits_of_a_placement_are_above_theirs() -> None:
    """On 64 experts with groups of tokens, over nodes as the solver leaves them."""
    ids = _clusters(size=8, num=8, mixed=0.8, seed=1)
    problem = Problem(
        ids=ids, counts=count(ids, 64), num_ranks=8, ranks_per_node=2, slots_per_rank=9,
        compute_s=1.0, intra_s=0.1, inter_s=4.0,
    )  # fmt: skip
    found = solve(problem).value
    assert found is not None
    nodes = visited(problem, [by_node(problem, held(problem, found, 0))])[0]
    least = least_busiest(chosen_of(problem, 0), 4, 18, spectral=True)
    assert 0.6 * nodes.max() < least <= nodes.max() * (1 + 1e-9)
