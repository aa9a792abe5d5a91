"""Loads to ranks: published examples, packing near its bound, shares at their exact least."""

from itertools import combinations

import numpy as np
import pytest

from solvers.experts.baselines import contiguous, eplb, round_robin
from solvers.experts.bounds import load_bound
from solvers.experts.exact import assignments
from solvers.experts.level import level
from solvers.experts.packing import longest_first, packed
from solvers.experts.problem import check
from solvers.experts.score import score
from solvers.experts.shadow import shadow
from solvers.experts.shares import split_parts, split_shares
from solvers.experts.solve import solve
from tests.unit.routed import loaded

# README of EPLB (deepseek-ai, MIT): 12 experts in 4 groups, 16 replicas, 2 nodes of 4 GPUs.
EPLB_LOADS = [
    [90.0, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20.0, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
EPLB_SLOTS = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
# Pull request 3042 of vllm-ascend (FlashLB): 8 ranks of 2 slots.
FLASHLB = [[600.0, 560, 120, 120, 20, 10, 10, 10]]


def test_eplb_gives_its_published_example() -> None:
    problem = loaded(EPLB_LOADS, num_ranks=8, ranks_per_node=4, slots_per_rank=2, num_groups=4)
    assert eplb(problem, hierarchical=True).slots.tolist() == EPLB_SLOTS


def test_eplb_on_flashlbs_example_and_the_free_split_below_it() -> None:
    problem = loaded(FLASHLB, num_ranks=8, ranks_per_node=8, slots_per_rank=2)
    assert score(problem, eplb(problem, hierarchical=False)).time_s == pytest.approx(232)
    found = solve(problem, objective="load")
    assert found.objective == pytest.approx(1450 / 8)
    assert found.status == "OPTIMAL"


@pytest.mark.parametrize(
    ("room", "fullest", "everywhere"),
    [(2, 600.0, set()), (3, (600 + 560) / 8 + 120, {0, 1})],
)
def test_shadows_are_as_many_as_lower_the_fullest_rank(room, fullest, everywhere) -> None:
    """With two slots, one shadow leaves the second expert beside an eighth of the first: 635."""
    problem = loaded(FLASHLB, num_ranks=8, ranks_per_node=8, slots_per_rank=room)
    found = shadow(problem)
    check(problem, found)
    assert score(problem, found).time_s == pytest.approx(fullest)
    taken = found.slots.reshape(8, room)[:, : len(everywhere)]
    assert all(set(own.tolist()) == everywhere for own in taken)
    assert solve(problem, objective="load", method="shadow").objective == pytest.approx(fullest)


def test_eplb_by_group_needs_groups_that_divide() -> None:
    problem = loaded(EPLB_LOADS, num_ranks=8, ranks_per_node=4, slots_per_rank=2, num_groups=3)
    with pytest.raises(ValueError, match="do not divide"):
        eplb(problem, hierarchical=True)


@pytest.mark.parametrize(("experts", "ranks", "room"), [(6, 3, 2), (7, 3, 3), (5, 4, 2), (8, 4, 2)])
def test_plain_placements_hold_every_expert(experts: int, ranks: int, room: int) -> None:
    rng = np.random.default_rng(experts)
    problem = loaded(
        rng.gamma(1, 1, (3, experts)).tolist(),
        num_ranks=ranks,
        ranks_per_node=1,
        slots_per_rank=room,
    )
    plain = [contiguous(problem), round_robin(problem), eplb(problem, hierarchical=False)]
    for placed in [*plain, level(problem)]:
        check(problem, placed)


def test_many_layers_are_packed_to_a_thousandth_of_the_bound() -> None:
    loads = np.random.default_rng(0).gamma(1.0, 100.0, (94, 128))
    problem = loaded(loads.tolist(), num_ranks=8, ranks_per_node=8, slots_per_rank=16)
    found = solve(problem, objective="load")
    assert found.objective is not None
    assert found.bound is not None
    assert found.objective <= found.bound * 1.001


@pytest.mark.parametrize("seed", range(6))
def test_swaps_lie_between_the_optimum_and_longest_first(seed: int) -> None:
    loads = np.random.default_rng(seed).gamma(0.7, 10.0, (4, 8))
    problem = loaded(loads.tolist(), num_ranks=4, ranks_per_node=4, slots_per_rank=2)
    of_rank = np.eye(4)[assignments(8, 4)]
    optimum = np.einsum("le,ser->lsr", loads, of_rank).max(axis=2).min(axis=1)

    def fullest(bins: np.ndarray) -> np.ndarray:
        flat = np.take_along_axis(loads, bins.reshape(4, -1), axis=1)
        return np.asarray(flat.reshape(4, 4, 2).sum(axis=2).max(axis=1))

    first, swapped = fullest(longest_first(loads, 4)), fullest(packed(loads, 4))
    assert (load_bound(problem) <= optimum * (1 + 1e-12)).all()
    assert (optimum <= swapped * (1 + 1e-12)).all()
    assert (swapped <= first * (1 + 1e-12)).all()
    assert solve(problem, objective="load").objective == pytest.approx(optimum.sum())


@pytest.mark.parametrize("seed", range(8))
def test_shares_reach_what_no_split_goes_below(seed: int) -> None:
    """The least fullest rank is the largest mean, over sets of ranks, of what only they can take
    (the dual of the linear program, as Hall's theorem has it)."""
    rng = np.random.default_rng(seed)
    slots = np.concatenate([rng.permutation(6), rng.integers(0, 6, 4)])[rng.permutation(10)]
    load = rng.gamma(0.5, 10.0, 6)
    shares = split_shares(slots[None], load[None], 5)[0]
    rank = np.arange(10) // 2
    fullest = np.bincount(rank, load[slots] * shares, 5).max()
    needed = 0.0
    for size in range(1, 6):
        for some in combinations(range(5), size):
            only = [e for e in range(6) if set(rank[slots == e]) <= set(some)]
            needed = max(needed, load[only].sum() / size)
    assert np.bincount(slots, shares, 6) == pytest.approx(np.ones(6))
    assert fullest == pytest.approx(needed, rel=1e-7)


def test_nodes_keep_their_parts() -> None:
    slots = np.array([[0, 1, 0, 2, 1, 2, 0, 3]])
    parts = np.zeros((1, 4, 2))
    parts[0, :, 0], parts[0, :, 1] = [0.8, 0.3, 0.5, 0], [0.2, 0.7, 0.5, 1]
    loads = np.array([[10.0, 5.0, 4.0, 1.0]])
    shares = split_parts(slots, parts, loads, 4)
    assert np.bincount(slots[0, :4], shares[0, :4], 4) == pytest.approx(parts[0, :, 0])
    assert np.bincount(slots[0, 4:], shares[0, 4:], 4) == pytest.approx(parts[0, :, 1])
    # Node 0 holds 8 + 1.5 + 2 on two ranks, and expert 0 is on both.
    assert shares[0, 0] * 10 + shares[0, 1] * 5 == pytest.approx(11.5 / 2)
