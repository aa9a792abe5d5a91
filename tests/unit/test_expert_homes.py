"""Swaps of experts between nodes: what they count is what the score says, they only help, and on
small cases they come near the best homes of all."""

from dataclasses import replace

import numpy as np
import pytest

from solvers.experts.baselines import eplb
from solvers.experts.exact import assignments
from solvers.experts.home_swaps import _Homes, relieved
from solvers.experts.hybrid import hybrid
from solvers.experts.problem import DROPPED, Floats, Ints, Placed, Problem
from solvers.experts.score import count, score, visited
from tests.unit.routed import routed


def _busiest(problem: Problem, homes: Ints) -> Floats:
    """[layers]: seconds that nodes ask for: the fullest one's load, the busiest one's visits."""
    parts = [np.eye(problem.num_nodes)[row] for row in homes]
    load = np.stack([problem.counts[at] @ part for at, part in enumerate(parts)])
    away = (problem.num_nodes - 1) / problem.num_nodes / problem.ranks_per_node
    compute_s = problem.compute_s * load.max(axis=1) / problem.ranks_per_node
    return np.asarray(compute_s + visited(problem, parts).max(axis=1) * away * problem.inter_s)


def _homes(problem: Problem) -> Ints:
    plain = np.arange(problem.num_experts) * problem.num_nodes // problem.num_experts
    return np.tile(plain, (problem.num_layers, 1))


def _dropping(problem: Problem) -> Problem:
    """With some choices dropped, and some twice in a token."""
    ids = problem.ids.copy()
    ids[::9, :, 0], ids[::7, :, 1] = DROPPED, ids[::7, :, 2]
    return replace(problem, ids=ids, counts=count(ids, problem.num_experts))


@pytest.mark.parametrize("seed", range(8))
def test_swaps_come_near_the_best_homes(seed: int) -> None:
    """Of 8 experts on 4 nodes, all 2520, with more or less to compute."""
    problem = _dropping(
        routed(experts=8, ranks=4, k=3, layers=2, seed=seed, compute_s=0.2 * (seed % 3))
    )
    start = _homes(problem)
    found = relieved(problem, start)
    assert (np.sort(found, axis=1) == start).all()
    every = [np.tile(row, (2, 1)) for row in assignments(8, 4)]
    best = np.min([_busiest(problem, homes) for homes in every], axis=0)
    took = _busiest(problem, found)
    assert (took <= _busiest(problem, start) * (1 + 1e-9)).all()
    assert (best <= took * (1 + 1e-9)).all()
    assert took.sum() <= best.sum() * 1.06


def test_what_swaps_count_is_what_the_score_says() -> None:
    problem = _dropping(routed(experts=12, ranks=4, ranks_per_node=2, k=4, layers=1, tokens=200))
    homes = _Homes(problem, 0, _homes(problem)[0])
    for one, two in ((0, 11), (3, 7), (11, 5), (0, 6)):
        homes._swap(one, two)
        node = homes.node[:-1]
        said = visited(problem, [np.eye(2)[node]])[0]
        assert homes.visits[:2] == pytest.approx(said)
        again = _Homes(problem, 0, node)
        for name in ("visits", "alone", "beside", "both"):
            assert (getattr(homes, name) == getattr(again, name)).all(), name
        # A gain is what the visits after the swap say.
        mine, others, gain = homes._gains(np.ones(2), homes._load(), 0.0)
        a, b = mine[1], others[2]
        after = _Homes(problem, 0, node)
        after._swap(a, b)
        sharp = [(here.visits[:2] ** 32.0).mean() ** (1 / 32) for here in (homes, after)]
        more = after._load().max() - homes._load().max()
        assert gain[1, 2] == pytest.approx(sharp[0] - sharp[1] - problem.compute_s * more)


def test_a_hot_group_gives_experts_away() -> None:
    """Four groups of 16, of which tokens choose one expert in each of two; the first group is hot,
    its node the busiest, until some of its experts are elsewhere."""
    rng = np.random.default_rng(0)
    first = rng.choice(4, 2000, p=[0.4, 0.2, 0.2, 0.2])
    group = np.stack([first, (first + rng.integers(1, 4, 2000)) % 4], axis=1)
    taste = -np.log(np.arange(1, 17)) + rng.gumbel(size=(2000, 2, 16))
    ids = (group * 16 + taste.argmax(axis=2))[:, None]
    problem = Problem(
        ids=ids, counts=count(ids, 64), num_ranks=8, ranks_per_node=2, slots_per_rank=8,
        inter_s=1.0, num_groups=4,
    )  # fmt: skip
    grouped, found = (score(problem, make(problem)) for make in (_by_group, hybrid))
    assert found.time_s < 0.75 * grouped.time_s
    assert found.nodes_per_token < grouped.nodes_per_token


def _by_group(problem: Problem) -> Placed:
    return eplb(problem, hierarchical=True)


def test_nothing_is_swapped_where_there_is_nothing_to_gain() -> None:
    one_node = routed(experts=8, ranks=4, ranks_per_node=4)
    assert (relieved(one_node, _homes(one_node)) == 0).all()
    idle = replace(routed(experts=8, ranks=4), compute_s=0.0, intra_s=0.0, inter_s=0.0)
    assert (relieved(idle, _homes(idle)) == _homes(idle)).all()
    dropped = replace(idle, ids=np.full_like(idle.ids, DROPPED), inter_s=1.0)
    assert (relieved(dropped, _homes(dropped)) == _homes(dropped)).all()
