"""The integer programs, by both libraries, against the exact methods."""

from dataclasses import replace

import numpy as np
import pytest

from solvers.experts.problem import check
from solvers.experts.program import Library, Program, minimise
from solvers.experts.score import score
from solvers.experts.solve import Method, solve
from tests.unit.routed import routed


@pytest.mark.parametrize("library", ["cpsat", "cbc"])
def test_a_small_program(library: Library) -> None:
    """Three items of 5, 4, 3 under weights 4, 3, 2 and a limit of 6: the first and the last."""
    program = Program()
    x = program.add((3,))
    program.cost[:] = [-5, -4, -3]
    program.row(x, np.array([4, 3, 2]), high=6)
    found = minimise(program, library, 5)
    assert found.status == "OPTIMAL"
    assert found.value is not None
    assert found.value.tolist() == [1, 0, 1]
    assert (found.objective, found.bound) == (-8.0, -8.0)
    program.row(x, low=4)
    assert minimise(program, library, 5).status == "INFEASIBLE"


@pytest.mark.parametrize("method", ["moetuner", "moetuner_cbc"])
def test_least_loads_are_proven(method: Method) -> None:
    problem = routed(experts=6, ranks=3, ranks_per_node=3, traffic="chained")
    best = solve(problem, objective="load", method="exact")
    found = solve(problem, objective="load", method=method)
    assert found.status == "OPTIMAL"
    assert found.objective == pytest.approx(best.objective)
    assert found.value is not None
    check(problem, found.value)


@pytest.mark.parametrize("method", ["exflow", "exflow_cbc"])
def test_fewest_hops_are_proven(method: Method) -> None:
    problem = routed(experts=4, ranks=2, ranks_per_node=2, traffic="chained", tokens=20)
    best = solve(problem, objective="hops", method="exact")
    found = solve(problem, objective="hops", method=method)
    assert found.status == "OPTIMAL"
    assert found.objective == pytest.approx(best.objective)


def test_nodes_first_then_ranks() -> None:
    problem = routed(experts=8, ranks=4, ranks_per_node=2, traffic="chained", layers=2)
    found = solve(problem, objective="hops", method="exflow", effort=2)
    best = solve(problem, objective="hops", method="exact")
    assert found.value is not None
    check(problem, found.value)
    assert found.objective is not None
    assert best.objective is not None
    assert found.bound is not None
    assert best.objective <= found.objective <= best.objective * 1.25
    assert found.bound <= best.objective


def test_clusters_go_to_ranks_where_their_tokens_go() -> None:
    """Expert e's tokens go on to expert e + 1: MoETuner's second program keeps them on a node."""
    following = np.array([[[e, (e + 1) % 4]] for e in range(4) for _ in range(9)])
    ids = following.transpose(0, 2, 1)
    counts = np.full((2, 4), 9.0)
    problem = routed(layers=2, ranks=4, ranks_per_node=4, traffic="chained", counts=counts)
    problem = replace(problem, ids=ids)
    found = solve(problem, method="moetuner")
    assert found.value is not None
    assert score(problem, found.value).hops == 0


def test_an_unfinished_program_is_not_called_optimal() -> None:
    problem = routed(
        tokens=200, layers=6, experts=8, k=2, ranks=4, ranks_per_node=4, traffic="chained"
    )
    best = solve(problem, objective="hops", method="exact")
    found = solve(problem, objective="hops", method="exflow", effort=0.05)
    if found.value is not None:
        assert found.objective is not None
        assert best.objective is not None
        assert found.objective >= best.objective
        assert found.status == "FEASIBLE"
    else:
        assert found.status == "UNKNOWN"
