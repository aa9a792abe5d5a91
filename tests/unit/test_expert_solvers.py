"""Solvers of expert placement against all placements of small cases, and against each other."""

from dataclasses import replace
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.experts.baselines import contiguous, eplb
from solvers.experts.bounds import time_bound
from solvers.experts.coactivation import homes_by_coactivation
from solvers.experts.exact import exact
from solvers.experts.hybrid import hybrid
from solvers.experts.linked_shares import split_by_links
from solvers.experts.problem import DROPPED, Placed, Problem, check
from solvers.experts.refine import refined
from solvers.experts.score import count, score
from solvers.experts.solve import METHODS, Method, Objective, layer_costs, solve
from solvers.experts.sweeps import Chain, best_owners, placed_of
from tests.unit.routed import least, loaded, routed

PAIRS = np.array([[0.0, 1.3], [0.4, 0.0]])


SMALL: list[dict[str, Any]] = [
    {"traffic": "home", "copies": "node"},
    {"traffic": "home", "copies": "rank"},
    {"traffic": "home", "copies": "choice"},
    {"traffic": "home", "pair_s": PAIRS, "in_s": np.array([0.2, 0.9])},
    {"traffic": "chained"},
    {"traffic": "chained", "ranks_per_node": 2},
    {"traffic": "chained", "pair_s": PAIRS, "out_s": np.array([0.3, 0.8])},
    {"traffic": "chained", "tokens": 0, "counts": np.array([[4.0, 3, 2, 1]] * 3)},
    {"traffic": "home", "tokens": 0, "counts": np.array([[4.0, 3, 2, 1]] * 3)},
]


@pytest.mark.parametrize("fields", SMALL)
@pytest.mark.parametrize("objective", ["time", "load", "hops"])
def test_exact_is_the_least_of_all(fields: dict[str, Any], objective: Objective) -> None:
    problem = routed(seed=3, **fields)
    found = solve(problem, objective=objective)
    assert (found.method, found.status) == ("exact", "OPTIMAL")
    assert found.objective == pytest.approx(least(problem, objective), rel=1e-9)


@pytest.mark.parametrize(("experts", "ranks", "per"), [(6, 2, 1), (6, 3, 3), (4, 4, 2), (4, 4, 1)])
def test_names_of_ranks_are_exchanged_rightly(experts: int, ranks: int, per: int) -> None:
    """The exact chain looks at one assignment of each orbit; the least over all, two layers."""
    problem = routed(
        layers=2,
        experts=experts,
        ranks=ranks,
        ranks_per_node=per,
        traffic="chained",
        compute_s=0.2,
        seed=experts + ranks,
    )
    assert score(problem, exact(problem, "time")).time_s == pytest.approx(least(problem, "time"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("per", [1, 2, 4])
def test_exact_chains_are_below_sweeps_and_above_their_bound(seed: int, per: int) -> None:
    problem = routed(
        tokens=150, layers=5, experts=8, ranks=4, ranks_per_node=per, traffic="chained", seed=seed
    )
    for objective in ("time", "hops"):
        best = solve(problem, objective=objective)
        swept = solve(problem, objective=objective, method="sweeps")
        assert best.objective is not None
        assert swept.objective is not None
        assert swept.bound is not None
        assert swept.bound <= best.objective * (1 + 1e-9)
        assert best.objective <= swept.objective * (1 + 1e-9)
        assert swept.objective <= best.objective * 1.05


def test_the_chains_own_cost_is_the_score() -> None:
    problem = routed(layers=4, experts=6, ranks=3, ranks_per_node=3, traffic="chained")
    owner = best_owners(problem, "time", 0, None)
    placed = placed_of(problem, owner)
    assert Chain(problem, "time").cost(owner) == pytest.approx(score(problem, placed).time_s)
    assert Chain(problem, "hops").cost(owner) == pytest.approx(score(problem, placed).hops)


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "layers": st.integers(1, 3),
        "tokens": st.sampled_from([0, 1, 40]),
        "k": st.integers(1, 3),
        "shape": st.sampled_from(
            [(6, 2, 1, 4), (8, 4, 2, 2), (8, 4, 2, 3), (12, 4, 4, 4), (9, 3, 1, 5), (8, 8, 4, 1)]
        ),
        "traffic": st.sampled_from(["home", "chained"]),
        "copies": st.sampled_from(["node", "rank", "choice"]),
        "groups": st.sampled_from([1, 2, 4]),
        "compute_s": st.sampled_from([0.0, 0.1, 1.0]),
        "inter_s": st.sampled_from([0.0, 1.1, 20.0]),
    }
)


@settings(max_examples=30, deadline=None)
@given(shapes)
def test_never_worse_than_contiguous_and_eplb(drawn: dict[str, Any]) -> None:
    experts, ranks, per, room = drawn.pop("shape")
    groups = drawn.pop("groups")
    fields = drawn | {"num_groups": groups if experts % groups == 0 else 1}
    if not drawn["tokens"]:
        rng = np.random.default_rng(drawn["seed"])
        fields["counts"] = rng.gamma(1, 5, (drawn["layers"], experts))
    problem = routed(
        experts=experts, ranks=ranks, ranks_per_node=per, slots_per_rank=room, **fields
    )
    for objective in ("time", "load", "hops"):
        found = solve(problem, objective=objective)
        assert found.value is not None
        assert found.objective is not None
        assert found.bound is not None
        check(problem, found.value)
        cost = float(layer_costs(problem, found.value, objective).sum())
        assert found.objective == pytest.approx(cost, rel=1e-9)
        assert found.bound <= found.objective * (1 + 1e-9)
        for other in (contiguous(problem), eplb(problem, hierarchical=False)):
            limit = layer_costs(problem, other, objective).sum()
            assert found.objective <= limit * (1 + 1e-9) + 1e-12


def _in_groups(seed: int) -> Problem:
    """16 experts in 4 groups, a token stays in 2 of them; group 0 is hot; 4 nodes of 2 ranks."""
    rng = np.random.default_rng(seed)
    first = rng.choice(4, 400, p=[0.55, 0.15, 0.15, 0.15])
    second = (first + rng.integers(1, 4, 400)) % 4
    group = np.stack([first, first, second, second], axis=1)
    inside = np.argsort(rng.random((400, 2, 4)), axis=2)[:, :, :2].reshape(400, 4)
    ids = (group * 4 + inside)[:, None, :]
    return Problem(
        ids=ids,
        counts=count(ids, 16),
        num_ranks=8,
        ranks_per_node=2,
        slots_per_rank=3,
        compute_s=1.0,
        intra_s=0.05,
        inter_s=4.0,
        num_groups=4,
    )


def test_replicas_on_other_nodes_relieve_a_hot_group() -> None:
    problem = _in_groups(0)
    grouped = score(problem, eplb(problem, hierarchical=True))
    spread = score(problem, eplb(problem, hierarchical=False))
    mixed = score(problem, hybrid(problem))
    assert mixed.time_s < 0.9 * grouped.time_s
    assert mixed.time_s < spread.time_s
    assert grouped.nodes_per_token < mixed.nodes_per_token < spread.nodes_per_token


def test_experts_chosen_together_find_each_other() -> None:
    """Tokens stay in one of 4 clusters of experts, whose numbers are shuffled."""
    rng = np.random.default_rng(2)
    clusters = rng.permutation(16).reshape(4, 4)
    ids = np.stack([rng.permutation(clusters[rng.integers(4)])[:2] for _ in range(300)])[:, None]
    problem = Problem(
        ids=ids, counts=count(ids, 16), num_ranks=4, ranks_per_node=1, slots_per_rank=4, inter_s=1.0
    )
    node = homes_by_coactivation(problem, 0)[0]
    assert all(len(set(node[cluster])) == 1 for cluster in clusters)
    assert score(problem, hybrid(problem)).nodes_per_token == 1.0


@pytest.mark.parametrize("copies", ["node", "rank", "choice"])
def test_swaps_find_what_exact_finds(copies: Any) -> None:
    """On unlike links, from contiguous; and what the swaps expect is what the score says."""
    for seed in range(4):
        problem = routed(
            experts=8,
            ranks=4,
            ranks_per_node=2,
            copies=copies,
            in_s=np.array([0.2, 2.0]),
            out_s=np.array([0.2, 2.0]),
            seed=seed,
        )
        start = contiguous(problem)
        after, best = refined(problem, start), exact(problem, "time")
        check(problem, after)
        took = [score(problem, placed).layer_s for placed in (best, after, start)]
        assert (took[0] <= took[1] * (1 + 1e-9)).all()
        assert (took[1] <= took[2] * (1 + 1e-9)).all()
        assert took[1].sum() < took[0].sum() * 1.06


@pytest.mark.parametrize("copies", ["choice", "node"])
def test_shares_know_a_slow_link(copies: Any) -> None:
    """Every expert on three nodes, slow between the first two: what the third takes is found, with
    copies "choice" to the optimum of a line search over its part x."""
    slow = np.array([[0.0, 9, 1], [9, 0, 1], [1, 1, 0]])
    problem = routed(layers=2, ranks=3, slots_per_rank=4, copies=copies, pair_s=slow, compute_s=0.7)
    slots = np.tile(np.arange(4), (2, 3))
    even = Placed(slots=slots, shares=np.full((2, 12), 1 / 3))
    after = split_by_links(problem, even)
    check(problem, after)
    took, before = score(problem, after).layer_s, score(problem, even).layer_s
    assert (took < before * 0.9).all()
    if copies == "choice":
        lines = [
            Placed(slots=slots, shares=np.tile(np.repeat([(1 - x) / 2, (1 - x) / 2, x], 4), (2, 1)))
            for x in np.linspace(0, 1, 201)
        ]
        least = min(score(problem, line).layer_s[0] for line in lines)
        assert least * 0.99 <= took[0] <= least * (1 + 1e-9)


@pytest.mark.parametrize("traffic", ["home", "chained"])
@pytest.mark.parametrize("room", [3, 4])
def test_the_same_input_gives_the_same_placement(traffic: Any, room: int) -> None:
    problem = routed(
        experts=12, ranks=4, ranks_per_node=2, slots_per_rank=room, traffic=traffic, k=3
    )
    one, two = (solve(problem, seed=4).value for _ in range(2))
    assert one is not None
    assert two is not None
    assert (one.slots == two.slots).all()
    assert (one.shares == two.shares).all()


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("exact", {"experts": 10, "ranks": 2, "slots_per_rank": 5}, "at most 8 experts"),
        ("exact", {"slots_per_rank": 3}, "one slot each"),
        ("sweeps", {"slots_per_rank": 3}, "as many slots as experts"),
        ("exflow", {"slots_per_rank": 3}, "as many slots as experts"),
        ("eplb", {"num_groups": 1}, "do not divide"),
    ],
)
def test_methods_that_do_not_fit_say_so(method: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(routed(**fields), method=method)


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith(("moetuner", "exflow"))])
def test_every_method_places_everything(method: Any) -> None:
    problem = routed(experts=8, ranks=4, ranks_per_node=2, num_groups=2)
    found = solve(problem, method=method)
    assert found.value is not None
    check(problem, found.value)
    assert found.objective == pytest.approx(score(problem, found.value).time_s)


def test_one_layer_one_rank_and_no_load() -> None:
    alone = routed(layers=1, ranks=1, traffic="chained")
    assert solve(alone).objective == pytest.approx(120)
    idle = loaded([[0.0] * 12], num_ranks=4, ranks_per_node=2, slots_per_rank=4)
    assert solve(idle).objective == 0.0
    value = solve(idle).value
    assert isinstance(value, Placed)
    check(idle, value)


EDGES: dict[str, dict[str, Any]] = {
    "every expert chosen": {"k": 4},
    "one expert": {"experts": 1, "k": 1, "ranks": 1, "slots_per_rank": 1},
    "more slots on a rank than experts": {"ranks": 4, "ranks_per_node": 2, "slots_per_rank": 6},
    "one layer": {"experts": 12, "ranks": 4, "ranks_per_node": 2, "layers": 1},
    "far beyond what floats count": {"counts": np.array([[4.0, 3, 2, 1]] * 3) * 1e25},
    "beyond the counts of 64 bits together": {"counts": np.array([[4.0, 3, 2, 1]] * 3) * 3e17},
    "next to nothing": {"experts": 12, "ranks": 4, "counts": np.ones((3, 12)) * 1e-25},
    "nothing takes time": {"experts": 12, "compute_s": 0.0, "intra_s": 0.0, "inter_s": 0.0},
}


SINGLE: tuple[Method, ...] = ("exact", "sweeps", "moetuner", "exflow")
"""Methods that place every expert once."""


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("traffic", ["home", "chained"])
def test_edges(edge: str, traffic: Any) -> None:
    """By every method that fits; the first layer of each has dropped all its choices."""
    problem = routed(traffic=traffic, tokens=20, **EDGES[edge])
    ids = problem.ids.copy()
    ids[:, 0] = DROPPED
    problem = replace(problem, ids=ids)
    unfit = {method for method in METHODS if method.endswith("_cbc")}
    unfit |= set(SINGLE) if problem.num_slots > problem.num_experts else set()
    unfit |= {"exact"} if problem.num_experts > 8 else set()
    unfit |= {"eplb"} if problem.num_nodes > 1 else set()
    for method, objective in product(METHODS, get_args(Objective)):
        if method in unfit:
            continue
        found = solve(problem, method=method, objective=objective, effort=0.05)
        assert found.value is not None, (method, objective)
        assert found.objective is not None
        check(problem, found.value)
        assert np.isfinite(found.objective)
        limit = time_bound(problem) if objective == "time" else 0.0
        assert limit <= found.objective * (1 + 1e-9), (method, objective)
