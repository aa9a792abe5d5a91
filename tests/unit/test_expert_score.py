"""What a placement costs, against figures worked out by hand and against every draw of replicas."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from solvers.experts.baselines import contiguous
from solvers.experts.problem import Placed, Problem, check, even_shares
from solvers.experts.score import count, score, times
from tests.unit.routed import loaded, one_token_each, routed

COSTS: dict[str, Any] = {"compute_s": 1.0, "intra_s": 0.1, "inter_s": 10.0}


def _three_tokens(**fields: Any) -> Problem:
    """Loads 3, 1, 1, 1 on four ranks; both nodes are visited by 3 and 2 tokens."""
    ids = one_token_each((0, 1), (0, 2), (0, 3))
    given = {"num_ranks": 4, "ranks_per_node": 2, "slots_per_rank": 1} | COSTS | fields
    return Problem(ids=ids, counts=count(ids, 4), **given)


@pytest.mark.parametrize(
    ("fields", "time_s"),
    [
        # 3 of compute; 3 tokens enter node 0, half of them from node 1, over 2 NICs.
        ({"copies": "node"}, 3 + 3 / 2 / 2 * 10),
        # Each rank receives its own: 3 copies, half from the other node.
        ({"copies": "rank"}, 3 + 3 / 2 * 10),
        ({"copies": "choice"}, 3 + 3 / 2 * 10),
        # Inside one node: all three copies of rank 0.
        ({"copies": "node", "ranks_per_node": 4}, 3 + 3 * 0.1),
        ({"copies": "rank", "ranks_per_node": 4}, 3 + 3 * 3 / 4 * 0.1),
        # Dispatch 0 -> 1 is 1 copy, 1 -> 0 is 1.5; combine the other way round; the mean of both.
        ({"pair_s": np.array([[0.0, 2.0], [3.0, 0.0]])}, 3 + (1.5 * 3 + max(1.5 * 2, 3)) / 2),
        ({"in_s": np.array([4.0, 1.0])}, 3 + (1.5 * 4 + 1 * 4) / 2),
        ({"out_s": np.array([4.0, 1.0])}, 3 + (1 * 4 + 1.5 * 4) / 2),
    ],
)
def test_dispatch_from_home(fields: dict[str, Any], time_s: float) -> None:
    problem = _three_tokens(**fields)
    found = score(problem, contiguous(problem))
    assert found.time_s == pytest.approx(time_s, rel=1e-12)
    assert found.max_over_mean == pytest.approx(2.0)
    assert found.ranks_per_token == pytest.approx(2.0)
    assert times(problem, contiguous(problem)).sum() == pytest.approx(time_s, rel=1e-12)
    if "ranks_per_node" not in fields:
        assert found.nodes_per_token == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    ("fields", "hops", "time_s"),
    [
        # Four pairs of half a copy from ranks 0, 1 to ranks 2, 3: one copy leaves each rank.
        ({"ranks_per_node": 2}, 4.0, 2 + 10),
        ({"ranks_per_node": 4}, 2.0, 2 + 0.05),
        ({"ranks_per_node": 2, "pair_s": np.array([[0.0, 2.0], [9.0, 0.0]])}, 4.0, 2 + 4),
        ({"ranks_per_node": 2, "out_s": np.array([5.0, 9.0])}, 4.0, 2 + 10),
        ({"ranks_per_node": 2, "in_s": np.array([9.0, 7.0])}, 4.0, 2 + 14),
    ],
)
def test_chained(fields: dict[str, Any], hops: float, time_s: float) -> None:
    ids = np.array([[[0, 1], [2, 3]]])
    given = {"num_ranks": 4, "slots_per_rank": 1, "traffic": "chained"} | COSTS | fields
    problem = Problem(ids=ids, counts=count(ids, 4), **given)
    found = score(problem, contiguous(problem))
    assert found.hops == pytest.approx(hops)
    assert found.time_s == pytest.approx(time_s, rel=1e-12)
    assert times(problem, contiguous(problem)).sum() == pytest.approx(time_s, rel=1e-12)


def test_replicas_are_the_mean_over_all_draws() -> None:
    problem = routed(tokens=9, layers=2, experts=4, ranks=3, slots_per_rank=2, traffic="chained")
    slots = np.array([[0, 1, 0, 2, 3, 1], [3, 0, 1, 2, 3, 3]])
    shares = np.array([[0.3, 0.6, 0.7, 1.0, 1.0, 0.4], [0.2, 1.0, 1.0, 1.0, 0.5, 0.3]])
    found = score(problem, Placed(slots=slots, shares=shares))
    ranks_seen, hops = np.zeros(2), 0.0
    for token in problem.ids:
        holders = [np.flatnonzero(slots[at] == e) for at in range(2) for e in token[at]]
        for drawn in product(*holders):
            chance = np.prod([shares[i // 2, slot] for i, slot in enumerate(drawn)])
            rank = [slot // 2 for slot in drawn]
            ranks_seen += chance * np.array([len(set(rank[:2])), len(set(rank[2:]))])
            apart = sum(a != b for a in rank[:2] for b in rank[2:])
            # Every rank is a node of its own.
            hops += chance * 2 * apart / 2
    assert found.ranks_per_token == pytest.approx((ranks_seen / 9).mean(), rel=1e-12)
    assert found.hops == pytest.approx(hops, rel=1e-12)


def test_dropped_choices_cost_nothing() -> None:
    ids = one_token_each((0, -1), (-1, -1), (3, 0))
    problem = replace(_three_tokens(), ids=ids, counts=count(ids, 4))
    found = score(problem, contiguous(problem))
    assert found.nodes_per_token == pytest.approx((1 + 0 + 2) / 3)
    assert found.ranks_per_token == pytest.approx((1 + 0 + 2) / 3)


def test_traffic_is_scaled_up_to_the_counts() -> None:
    problem = _three_tokens()
    twice = replace(problem, counts=problem.counts * 2)
    placed = contiguous(problem)
    assert score(twice, placed).time_s == pytest.approx(2 * score(problem, placed).time_s)
    assert score(twice, placed).nodes_per_token == score(problem, placed).nodes_per_token


def test_without_tokens_choices_are_independent() -> None:
    problem = loaded([[2.0, 2.0]], num_ranks=2, ranks_per_node=1, slots_per_rank=1, inter_s=1.0)
    found = score(problem, contiguous(problem))
    # Two tokens of two choices: each visits a node with 1 - 1/4.
    assert found.nodes_per_token == pytest.approx(1.5)
    assert found.time_s == pytest.approx(2 + 1.5 / 2)


def test_held_out_tokens_bring_their_own_loads() -> None:
    problem = routed(layers=2)
    other = routed(layers=2, seed=5)
    placed = contiguous(problem)
    assert score(problem, placed, other.ids).time_s == score(other, placed).time_s


@pytest.mark.parametrize(
    ("slots", "shares"),
    [
        ([[0, 1, 2, 2]], [[1.0, 1.0, 0.5, 0.5]]),
        ([[0, 1, 2, 3]], [[1.0, 1.0, 0.5, 1.0]]),
        ([[0, 1, 2, 3]], [[1.0, 1.0]]),
    ],
)
def test_a_placement_holds_every_expert_whole(
    slots: list[list[int]], shares: list[list[float]]
) -> None:
    problem = routed(layers=1)
    with pytest.raises(ValueError, match="shares"):
        check(problem, Placed(slots=np.array(slots), shares=np.array(shares)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranks": 3, "ranks_per_node": 2, "slots_per_rank": 2}, "whole nodes"),
        ({"slots_per_rank": 1}, "fewer slots than experts"),
        ({"num_groups": 3}, "groups"),
        ({"layers": 0}, "no layer"),
        ({"counts": np.full((3, 4), np.nan)}, "finite"),
        ({"counts": np.ones((2, 4))}, "do not fit"),
        ({"counts": np.ones((3, 3)), "slots_per_rank": 2}, "out of range"),
    ],
)
def test_problems_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routed(**fields)


def test_even_shares() -> None:
    assert even_shares(np.array([[0, 1, 0, 0]]), 2).tolist() == [[1 / 3, 1.0, 1 / 3, 1 / 3]]
