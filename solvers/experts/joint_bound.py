"""What no placement can go below where ranks or links are unlike: load and traffic together.

    min  C + V      with choices that any rank takes any part of,   sum of load[r] = all
    C >= compute_s * slowdown[r] * load[r]
    V >= seconds of `traffic.home_s`, whose every term is linear in the loads

Of copies "choice" alone, which are the loads. Each bound by itself may rest on another division of
the load: what levels computation need not level the links. All of it is in proportion to the load,
so that one linear program does for all layers.
"""

import numpy as np
from scipy.optimize import linprog  # type: ignore[import-untyped]

from solvers.experts.linked_shares import phases
from solvers.experts.problem import Floats, Problem


def joint_bound(problem: Problem) -> Floats:
    """[layers]: seconds; 0 where load and traffic by themselves say as much."""
    least_s = _divided(problem)[0] if applies(problem) else 0.0
    return np.asarray(least_s * problem.counts.sum(axis=1))


def applies(problem: Problem) -> bool:
    """Whether copies are of choices, and ranks or links unlike."""
    linked = problem.near_s is not None or problem.far_s is not None or problem.measured
    of_choices = (problem.traffic, problem.copies) == ("home", "choice")
    return of_choices and (problem.unlike or linked)


def joint_loads(problem: Problem) -> Floats:
    """[ranks]: parts of the load that take least, equal ones on like ranks of a node."""
    loads = _divided(problem)[1]
    node = np.arange(problem.num_ranks) // problem.ranks_per_node
    alike = (node[:, None] == node) & (problem.slow[:, None] == problem.slow)
    return np.asarray(alike @ loads / alike.sum(axis=1))


def _divided(problem: Problem) -> tuple[float, Floats]:
    """(seconds of one choice, [ranks] what each takes of it)."""
    ranks, one = problem.num_ranks, np.eye(problem.num_ranks)
    # Columns: loads, C, V, and the two phases of measured links.
    blocks = [_rows(one * (problem.compute_s * problem.slow)[:, None], ranks)]
    per, num = problem.ranks_per_node, problem.num_nodes
    inside_s = np.repeat(problem.inside_s, per) * (per - 1) / ranks
    blocks.append(_rows(one * inside_s[:, None], ranks + 1))
    on_node = np.repeat(np.eye(num), per, axis=1)
    if num > 1 and problem.measured:
        for phase, rows in enumerate(phases(problem)):
            blocks.append(_rows(rows @ on_node, ranks + 2 + phase))
        both = np.zeros((1, ranks + 4))
        both[0, [ranks + 1, ranks + 2, ranks + 3]] = -1.0, 0.5, 0.5
        blocks.append(both)
    elif num > 1:
        between_s = np.repeat(problem.between_s, per)
        blocks.append(_rows(one * (between_s * (num - 1) / num)[:, None], ranks + 1))
    if num > 1 and problem.far_s is not None and not problem.measured:
        # What is not taken by a node's own ranks, its part of it; loads sum to 1.
        sent = (1 - on_node) * problem.far_s[:, None] / (num * per)
        blocks.append(_rows(sent, ranks + 1))
    upper = np.concatenate(blocks)
    total = np.append(np.ones(ranks), np.zeros(4))[None]
    cost = np.append(np.zeros(ranks), [1.0, 1.0, 0.0, 0.0])
    unit = max(float(np.abs(upper[:, :ranks]).max()), 1e-300)
    upper[:, :ranks] /= unit
    found = linprog(cost, upper, np.zeros(len(upper)), total, np.ones(1), method="highs")
    if found.status != 0:
        return 0.0, np.full(ranks, 1 / ranks)
    # A hair less: the program is solved within its tolerance.
    return float(found.fun) * unit * (1 - 1e-7), np.asarray(found.x[:ranks])


def _rows(values: Floats, column: int) -> Floats:
    """[rows, ranks + 4]: `values` [rows, ranks] @ loads <= the variable at `column`."""
    rows = np.concatenate([values, np.zeros((len(values), 4))], axis=1)
    rows[:, column] = -1.0
    return rows
