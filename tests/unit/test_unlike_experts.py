"""Experts on ranks of unlike speed: against all placements, and what levelling times gives."""

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.experts.baselines import contiguous, eplb
from solvers.experts.bounds import load_bound, time_bound
from solvers.experts.joint_bound import joint_bound, joint_loads
from solvers.experts.packing import packed
from solvers.experts.problem import Problem, check, held
from solvers.experts.score import score
from solvers.experts.shares import split_shares
from solvers.experts.solve import METHODS, Objective, layer_costs, solve
from solvers.experts.traffic import home_s
from tests.unit.routed import least, loaded, routed

HALF = np.array([1.0, 0.5])
PORTS = {"in_s": np.array([0.2, 0.9]), "out_s": np.array([0.3, 0.8])}
SMALL: list[dict[str, Any]] = [
    {"copies": "node"},
    {"copies": "choice", "near_s": np.array([0.9, 0.2])},
    {"copies": "rank", "ranks_per_node": 2},
    {"copies": "choice", "far_s": np.array([2.0, 0.5])},
    {"copies": "node", "near_s": np.array([0.9, 0.2]), "far_s": np.array([2.0, 0.5])},
    {"copies": "choice", **PORTS},
    {"traffic": "chained", "far_s": np.array([2.0, 0.5])},
    {"traffic": "chained", "ranks_per_node": 2},
    {"tokens": 0, "counts": np.array([[4.0, 3, 2, 1]] * 3)},
]


@pytest.mark.parametrize("fields", SMALL)
@pytest.mark.parametrize("objective", ["time", "load", "hops"])
def test_exact_is_the_least_of_all(fields: dict[str, Any], objective: Objective) -> None:
    for seed in range(3):
        problem = routed(seed=seed, slowdown=HALF, **fields)
        found = solve(problem, objective=objective)
        assert (found.method, found.status) == ("exact", "OPTIMAL")
        assert found.objective == pytest.approx(least(problem, objective), rel=1e-9)


@pytest.mark.parametrize("traffic", ["home", "chained"])
def test_names_of_unlike_ranks_are_not_exchanged(traffic: Any) -> None:
    """Four ranks, of which two are alike; nodes whose links inside are unlike."""
    problem = routed(
        layers=2, ranks=4, ranks_per_node=2, traffic=traffic, compute_s=0.4, intra_s=9.0,
        slowdown=np.array([1.0, 0.4, 1.0, 0.7]), near_s=np.array([0.9, 0.1]),
        far_s=np.array([0.2, 0.7]), seed=5,
    )  # fmt: skip
    assert solve(problem).objective == pytest.approx(least(problem, "time"), rel=1e-9)


def test_an_optimum_found_by_hand() -> None:
    """One choice per token, one node, no code of the solvers: seconds of a layer are those of the
    rank that computes longest, and of the copies that enter the rank with most."""
    counts, slow = np.array([50.0, 30, 12, 9, 5, 2]), np.array([1.0, 0.25, 0.5])
    costs = []
    for order in permutations(range(6)):
        loads = [counts[list(order[2 * rank : 2 * rank + 2])].sum() for rank in range(3)]
        computing = max(load * each for load, each in zip(loads, slow, strict=True))
        costs.append(2.0 * computing + 0.7 * max(loads) * 2 / 3)
    problem = loaded(
        [counts.tolist()], num_ranks=3, ranks_per_node=3, slots_per_rank=2, copies="choice",
        compute_s=2.0, intra_s=0.7, slowdown=slow,
    )  # fmt: skip
    assert solve(problem).objective == pytest.approx(min(costs))


@pytest.mark.parametrize(("method", "near"), [("auto", 0.1), ("level", 0.1), ("hybrid", 0.25)])
@pytest.mark.parametrize("per", [2, 4])
def test_a_rank_twice_as_fast_gets_twice_the_load(method: Any, near: float, per: int) -> None:
    """A spare slot per rank and even experts: shares can make times equal."""
    slow = np.array([1.0, 0.5, 1.0, 0.5]) if per == 2 else np.array([1.0, 1.0, 0.5, 0.5])
    problem = routed(
        tokens=4000, experts=32, k=4, ranks=4, ranks_per_node=per, slots_per_rank=12,
        copies="choice", slowdown=slow, intra_s=0.0, inter_s=0.0, seed=per,
    )  # fmt: skip
    found = solve(problem, method=method)
    assert found.value is not None
    check(problem, found.value)
    for layer in range(problem.num_layers):
        load = problem.counts[layer] @ held(problem, found.value, layer)
        fast, late = load[slow < 1].mean(), load[slow == 1].mean()
        assert fast == pytest.approx(2 * late, rel=near)
    assert found.bound == pytest.approx(found.objective, rel=near)
    assert score(problem, found.value).max_over_mean < 1 + near


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "layers": st.integers(1, 2),
        "shape": st.sampled_from([(6, 2, 1, 4), (8, 4, 2, 2), (12, 4, 4, 4), (12, 6, 3, 2)]),
        "traffic": st.sampled_from(["home", "chained"]),
        "copies": st.sampled_from(["node", "rank", "choice"]),
        "compute_s": st.sampled_from([0.1, 1.0]),
    }
)


@settings(max_examples=30, deadline=None)
@given(shapes, st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.7]), min_size=9, max_size=9))
def test_between_the_bound_and_what_knows_no_speeds(
    drawn: dict[str, Any], slow: list[float]
) -> None:
    experts, ranks, per, room = drawn.pop("shape")
    problem = routed(
        experts=experts, ranks=ranks, ranks_per_node=per, slots_per_rank=room,
        slowdown=np.array(slow[:ranks]), near_s=np.array(slow[ranks : ranks + ranks // per]),
        far_s=np.array(slow[-(ranks // per) :]),
        **drawn,
    )  # fmt: skip
    for objective in ("time", "load"):
        found = solve(problem, objective=objective)
        assert found.value is not None
        assert found.objective is not None
        check(problem, found.value)
        bound = time_bound(problem) if objective == "time" else load_bound(problem).sum()
        assert bound <= found.objective * (1 + 1e-9)
        for other in (contiguous(problem), eplb(problem, hierarchical=False)):
            limit = float(layer_costs(problem, other, objective).sum())
            assert found.objective <= limit * (1 + 1e-9)


def _same(one: Problem, two: Problem, method: Any) -> bool:
    first, second = (solve(each, method=method) for each in (one, two))
    if first.value is None or second.value is None:
        return first.value is second.value
    same = (first.objective, first.bound) == (second.objective, second.bound)
    pairs = ((getattr(x.value, name) for x in (first, second)) for name in ("slots", "shares"))
    return same and all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize("method", [m for m in METHODS if "tuner" not in m and "flow" not in m])
@pytest.mark.parametrize("traffic", ["home", "chained"])
def test_equal_speeds_change_nothing(method: Any, traffic: Any) -> None:
    """Not a bit."""
    small = method in ("auto", "exact", "sweeps")
    shape = {"experts": 8, "ranks": 4, "ranks_per_node": 2, "slots_per_rank": 2 if small else 3}
    one = routed(traffic=traffic, seed=4, num_groups=2, **shape)
    alike = {"slowdown": np.ones(4), "near_s": np.full(2, one.intra_s)}
    assert _same(one, routed(traffic=traffic, seed=4, num_groups=2, **shape, **alike), method)


def test_moetuner_says_that_it_knows_no_speeds() -> None:
    with pytest.raises(ValueError, match="unlike speed"):
        solve(routed(slowdown=HALF), method="moetuner")


def test_wrong_speeds_are_told() -> None:
    for wrong in ({"slowdown": np.ones(3)}, {"slowdown": np.zeros(2)}, {"near_s": np.ones(3)}):
        with pytest.raises(ValueError, match="slowdown"):
            routed(**wrong)


@pytest.mark.parametrize("seed", range(5))
def test_shares_and_packing_against_all(seed: int) -> None:
    """One expert everywhere levels the times; packed bins are above the optimum of all, near."""
    rng = np.random.default_rng(seed)
    slow, load = rng.uniform(0.3, 1.0, 3), rng.gamma(1.0, 1.0, 6)
    everywhere = split_shares(np.zeros((1, 3), np.int64), load[None, :1], 3, slow)[0]
    assert everywhere * slow == pytest.approx(np.full(3, 1 / (1 / slow).sum()))
    owners = [o for o in product(range(3), repeat=6) if all(o.count(r) == 2 for r in range(3))]
    best = min(max(load[np.array(o) == r].sum() * slow[r] for r in range(3)) for o in owners)
    bins = packed(load[None], 3, slow)[0]
    took = (load[bins].sum(axis=1) * slow).max()
    assert best * (1 - 1e-9) <= took <= 1.2 * best


@pytest.mark.parametrize(("loads", "seconds"), [((60.0, 40.0), 60.0), ((20.0, 80.0), 80.0)])
def test_a_slow_nic_sends_its_share_whatever_it_receives(
    loads: tuple[float, float], seconds: float
) -> None:
    """Two nodes of a rank, 2 s and 0.5 s per copy. Node 0 receives half of its load from node 1
    and sends half of node 1's: max(30, 20) * 2 s, and max(10, 40) * 2 s."""
    problem = loaded(
        [list(loads)], num_ranks=2, ranks_per_node=1, slots_per_rank=1, copies="choice",
        compute_s=0.0, far_s=np.array([2.0, 0.5]),
    )  # fmt: skip
    assert score(problem, contiguous(problem)).time_s == pytest.approx(seconds)
    assert time_bound(problem) <= seconds


def test_many_experts_come_near_their_bound() -> None:
    """As docs/routing.md has it."""
    problem = routed(
        tokens=2000, layers=2, experts=128, k=8, ranks=16, ranks_per_node=8, copies="choice",
        intra_s=0.0, inter_s=0.0, slowdown=np.repeat([1.0, 0.4], 8),
    )  # fmt: skip
    found, other = solve(problem), eplb(problem, hierarchical=False)
    assert found.objective is not None
    assert found.objective == pytest.approx(found.bound, rel=2e-3)
    assert score(problem, other).time_s / found.objective == pytest.approx(1.76, abs=0.01)


LINKS: list[dict[str, Any]] = [
    {"far_s": np.array([2.0, 0.5])},
    {"slowdown": HALF, "near_s": np.array([0.9, 0.2]), "inter_s": 0.3},
    {"slowdown": HALF, **PORTS},
    {"pair_s": np.array([[0.0, 1.3], [0.4, 0.0]]), "in_s": np.array([0.2, 0.9])},
]


@pytest.mark.parametrize("fields", LINKS)
@pytest.mark.parametrize("compute_s", [0.0, 0.2, 1.0])
def test_the_joint_bound_is_the_best_division(fields: dict[str, Any], compute_s: float) -> None:
    """Of two ranks on two nodes, against every division in steps of 1 / 2000."""
    problem = loaded(
        [[60.0, 40.0]], num_ranks=2, ranks_per_node=1, slots_per_rank=1, copies="choice",
        compute_s=compute_s, **fields,
    )  # fmt: skip
    part = np.linspace(0, 100, 2001)
    loads = np.stack([part, 100 - part], axis=1)
    took = compute_s * (loads * problem.slow).max(axis=1) + home_s(problem, loads, loads)
    (bound,) = joint_bound(problem)
    assert took.min() * (1 - 5e-3) <= bound <= took.min()
    assert joint_loads(problem).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_replicas_reach_the_joint_bound(seed: int) -> None:
    """Fast nodes have fast NICs, which is where a level of computation alone would overload."""
    problem = routed(
        tokens=2000, layers=2, experts=32, k=4, ranks=8, ranks_per_node=4, slots_per_rank=6,
        copies="choice", compute_s=0.5, intra_s=0.1, slowdown=np.repeat([1.0, 0.35], 4),
        near_s=np.array([0.1, 0.05]), far_s=np.array([2.0, 1.0]), seed=seed,
    )  # fmt: skip
    found = solve(problem)
    assert found.objective is not None
    assert found.objective == pytest.approx(found.bound, rel=0.02)
    assert score(problem, eplb(problem, hierarchical=False)).time_s > found.objective
