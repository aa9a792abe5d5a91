"""The one door to expert placement: which method for which size, and how good the result is known
to be.

    auto    one slot per expert, at most 8 experts on 4 ranks    exact
            traffic "chained", one slot per expert, 16 ranks     sweeps, level
            traffic "chained" otherwise                          level
            traffic "home"                                       hybrid, level; then `refine` and,
                                                                 over measured links,
                                                                 `linked_shares`
            contiguous and EPLB are looked at as well (with "home" layer by layer), so that the
            result is never worse than they are on the objective
    shadow  the hottest experts on every rank (FasterMoE)
    moetuner, exflow: their integer programs by CP-SAT, with `_cbc` by CBC (`ilp`); one slot per
            expert. On "load" and "hops" (of one node) they are certificates where they finish.
            Where CBC does not, what it has found depends on the machine: it knows no limit but
            seconds that ends its first node. All other methods give the same bytes everywhere.

Objectives: "time" (seconds, `score`), "load" (sum over layers of the fullest rank's load, by its
slowdown), "hops" (as ExFlow counts them).

Unlike ranks: all of `auto`'s own level times, of computation alone and with copies. Contiguous,
round-robin, EPLB, shadowing and ExFlow know nothing of speeds and are judged all the same; MoETuner
refuses.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from solvers.experts.baselines import contiguous, eplb, round_robin
from solvers.experts.bounds import hops_bound, load_bound, time_bound
from solvers.experts.exact import exact, fits
from solvers.experts.hybrid import hybrid
from solvers.experts.ilp import exflow, moetuner
from solvers.experts.joint_bound import applies, joint_loads
from solvers.experts.level import level
from solvers.experts.linked_shares import split_by_links
from solvers.experts.problem import Floats, Placed, Problem, held
from solvers.experts.program import Library
from solvers.experts.refine import refined, refines
from solvers.experts.score import best_of_layers, flows_of, times
from solvers.experts.shadow import shadow
from solvers.experts.sweeps import placed_of, sweeps
from solvers.experts.traffic import home_s, hops
from solvers.result import SolveResult

Objective = Literal["time", "load", "hops"]
Method = Literal[
    "auto",
    "contiguous",
    "round_robin",
    "eplb",
    "eplb_global",
    "shadow",
    "level",
    "hybrid",
    "sweeps",
    "exact",
    "moetuner",
    "moetuner_cbc",
    "exflow",
    "exflow_cbc",
]
METHODS: tuple[Method, ...] = get_args(Method)
_MOST_SWEPT = 16
"""Ranks up to which swaps over chained layers are worth their time."""
_MOST_LEVELLED = 256
"""Slots up to which replicas are also placed for load alone; beyond, EPLB comes as near."""
_LEVELLING: tuple[Method, ...] = ("hybrid", "level")
_LEAST_LOAD = 1e-3
"""Of the largest load, what a rank takes at least where loads are levelled."""
_SAME = 1e-9
"""Relative distance to the bound at which a placement counts as optimal."""


def solve(
    problem: Problem,
    *,
    objective: Objective = "time",
    seed: int = 0,
    effort: float | None = None,
    method: Method = "auto",
) -> SolveResult[Placed]:
    """The best placement found; `method` of the result says by what.

    `effort`: deterministic units of work of about a second for what can use more of it (starts of a
    search, limits of integer programs); None: each method's own. ValueError where a method named
    does not fit the problem.
    """
    if method.startswith(("moetuner", "exflow")):
        return _programmed(problem, objective, effort, method)
    if method != "auto":
        placed = _place(problem, method, objective, seed, effort)
        value = float(layer_costs(problem, placed, objective).sum())
        limit = value if method == "exact" else _bound(problem, objective)
        return _result(placed, value, limit, method)
    if fits(problem):
        return solve(problem, objective=objective, seed=seed, method="exact")
    paces = _paces(problem) if objective == "time" else [problem]
    tried = [(name, each) for name in _chosen(problem, objective)
             for each in (paces if name in _LEVELLING else [problem])]  # fmt: skip
    found = [_place(each, name, objective, seed, effort) for name, each in tried]
    best, value, which = _best(problem, objective, found)
    return _result(best, value, _bound(problem, objective), tried[which][0])


def _paces(problem: Problem) -> list[Problem]:
    """The problem; and with traffic "home" on unlike ranks others whose `slowdown` levels
    computation and copies together: their sum (hot experts that cannot be divided go where both
    are fast), and to the loads that take least."""
    like = not problem.unlike and problem.near_s is None and problem.far_s is None
    if like or problem.traffic != "home":
        return [problem]
    alone = np.eye(problem.num_ranks)
    nodes = alone.reshape(len(alone), problem.num_nodes, -1).sum(axis=2)
    paces = [problem.compute_s * problem.slow + home_s(problem, nodes, alone)]
    if applies(problem):
        loads = joint_loads(problem)
        paces.append(1 / np.maximum(loads, _LEAST_LOAD * loads.max()))
    others = (replace(problem, slowdown=pace / pace.max()) for pace in paces if pace.all())
    return [problem, *others]


def _best(problem: Problem, objective: Objective, found: list[Placed]) -> tuple[Placed, float, int]:
    """(the best, what it costs, which it is mostly): where layers do not depend on each other, the
    best of each, and after swaps where those help."""
    linked = _linked(problem, objective)
    costs = np.empty((len(found), problem.num_layers))
    for number, placed in enumerate(found):
        known = costs[:number].min(axis=0) if number and not linked else None
        costs[number] = layer_costs(problem, placed, objective, known)
    which = int(costs.sum(axis=1).argmin())
    if linked:
        return found[which], float(costs[which].sum()), which
    best, cost = best_of_layers(found, costs), costs.min(axis=0)
    for improve in _improvements(problem) if objective == "time" else ():
        other = improve(problem, best)
        after = np.stack([cost, layer_costs(problem, other, objective)])
        best, cost = best_of_layers([best, other], after), after.min(axis=0)
    return best, float(cost.sum()), which


def _improvements(problem: Problem) -> tuple[Callable[[Problem, Placed], Placed], ...]:
    """What is tried on the best placement, one after the other, for traffic "home"."""
    swaps = (refined,) if refines(problem) else ()
    unlike = problem.measured and problem.num_nodes > 1
    if not unlike or problem.num_slots == problem.num_experts:
        return swaps
    return (split_by_links, *swaps, split_by_links, *swaps, split_by_links)


def _programmed(
    problem: Problem, objective: Objective, effort: float | None, method: Method
) -> SolveResult[Placed]:
    """By an integer program, judged on `objective` and not on its own."""
    if problem.num_slots != problem.num_experts:
        raise ValueError(f"{method} places every expert once: as many slots as experts")
    library: Library = "cbc" if method.endswith("_cbc") else "cpsat"
    program = moetuner if method.startswith("moetuner") else exflow
    found = program(problem, library, effort)
    if found.value is None:
        return SolveResult(status=found.status, method=method)
    placed = placed_of(problem, found.value)
    value = float(layer_costs(problem, placed, objective).sum())
    limit = _bound(problem, objective)
    # Their own bound holds where what they minimise is the objective.
    if found.bound is not None and objective == ("load" if program is moetuner else "hops"):
        limit = max(limit, found.bound)
    return _result(placed, value, limit, method)


def _result(placed: Placed, value: float, limit: float, method: str) -> SolveResult[Placed]:
    return SolveResult(
        status="OPTIMAL" if value <= limit * (1 + _SAME) else "FEASIBLE",
        value=placed,
        objective=value,
        bound=min(limit, value),
        method=method,
    )


def layer_costs(
    problem: Problem, placed: Placed, objective: Objective, below: Floats | None = None
) -> Floats:
    """[layers]: what each adds to the objective; exact where that is less than `below`."""
    if objective == "time":
        return times(problem, placed, below)
    parts = [held(problem, placed, layer) for layer in range(problem.num_layers)]
    if objective == "load":
        loads = [problem.counts[layer] @ part for layer, part in enumerate(parts)]
        return np.array([(load * problem.slow).max() for load in loads])
    return np.append(hops(problem, flows_of(problem, parts)), 0.0)


def _linked(problem: Problem, objective: Objective) -> bool:
    """Whether the cost of a layer depends on where the next one is."""
    return objective == "hops" or (objective == "time" and problem.traffic == "chained")


def _bound(problem: Problem, objective: Objective) -> float:
    """Below which no placement goes."""
    if objective == "time":
        return time_bound(problem)
    return float(load_bound(problem).sum()) if objective == "load" else hops_bound(problem)


def _chosen(problem: Problem, objective: Objective) -> tuple[Method, ...]:
    """The methods that auto looks at where exact does not fit."""
    plain: tuple[Method, ...] = ("contiguous", "eplb_global")
    if problem.num_groups > 1 and problem.num_groups % problem.num_nodes == 0:
        plain = ("contiguous", "eplb", "eplb_global")
    if not _linked(problem, objective):
        if objective == "load":
            return ("level", *plain)
        many = problem.num_slots > max(_MOST_LEVELLED, problem.num_experts)
        return ("hybrid", *plain) if many else ("hybrid", "level", *plain)
    single = problem.num_slots == problem.num_experts
    if single and problem.num_ranks <= _MOST_SWEPT:
        return ("sweeps", "level", *plain)
    return ("level", *plain)


def _place(
    problem: Problem, method: Method, objective: Objective, seed: int, effort: float | None
) -> Placed:
    """By one method."""
    if method == "exact":
        return exact(problem, objective, seed)
    if method == "sweeps":
        return sweeps(problem, objective, seed, effort)
    if method == "hybrid":
        return hybrid(problem, seed)
    if method == "level":
        return level(problem)
    if method == "shadow":
        return shadow(problem)
    if method in ("eplb", "eplb_global"):
        return eplb(problem, hierarchical=method == "eplb")
    return round_robin(problem) if method == "round_robin" else contiguous(problem)
