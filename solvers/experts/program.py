"""An integer program as arrays, and two libraries that solve it: CBC through PuLP, and CP-SAT of
OR-Tools. Neither is needed for anything else; they are the extra `ilp`.

    min cost @ x,  low <= row @ x <= high for each row,  0 <= x <= upper, x whole

All numbers are whole, as CP-SAT asks for; who builds a program rounds loads down, so that a bound
of the program is one of the problem. Limits of CP-SAT are deterministic units, of CBC seconds (a
limit of nodes does not end its cuts at the first one).
"""

import re
import tempfile
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from solvers.experts.problem import Ints
from solvers.result import SolveResult

Library = Literal["cpsat", "cbc"]


@dataclass(slots=True, kw_only=True)
class Program:
    """Grows by `add` and `row`."""

    cost: list[int] = field(default_factory=list)
    upper: list[int] = field(default_factory=list)
    rows: list[tuple[Ints, Ints, int | None, int | None]] = field(default_factory=list)
    """(variables, coefficients, low, high)."""

    def add(self, shape: tuple[int, ...], *, upper: int = 1, cost: int = 0) -> Ints:
        """New variables of `shape`, by number."""
        first, num = len(self.cost), int(np.prod(shape, dtype=np.int64))
        self.cost += [cost] * num
        self.upper += [upper] * num
        return np.arange(first, first + num).reshape(shape)

    def row(
        self,
        variables: Ints,
        coefficients: Ints | int = 1,
        low: int | None = None,
        high: int | None = None,
    ) -> None:
        """low <= coefficients @ variables <= high."""
        variables = np.asarray(variables).ravel()
        values = np.broadcast_to(np.asarray(coefficients).ravel(), variables.shape)
        self.rows.append((variables, np.asarray(values, np.int64), low, high))


def minimise(
    program: Program, library: Library, limit: float, hint: Ints | None = None, seed: int = 0
) -> SolveResult[Ints]:
    """Values of all variables. `hint`: a solution known before, which CP-SAT starts from."""
    if library == "cpsat":
        return _cpsat(program, limit, hint, seed)
    return _cbc(program, limit, seed)


def _library(module: str, name: str) -> Any:
    """Loaded when it is needed: few need it."""
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise ValueError(
            f"this method needs {name}: pip install 'meshwright[ilp]' brings it"
        ) from None


def _cpsat(program: Program, limit: float, hint: Ints | None, seed: int) -> SolveResult[Ints]:
    cp_model = _library("ortools.sat.python.cp_model", "OR-Tools")
    model = cp_model.CpModel()
    x = [model.new_int_var(0, upper, "") for upper in program.upper]
    for variables, values, low, high in program.rows:
        total = cp_model.LinearExpr.weighted_sum([x[v] for v in variables], values.tolist())
        model.add_linear_constraint(
            total,
            cp_model.INT_MIN if low is None else low,
            cp_model.INT_MAX if high is None else high,
        )
    model.minimize(cp_model.LinearExpr.weighted_sum(x, program.cost))
    for variable, value in zip(x, [] if hint is None else hint.tolist(), strict=False):
        model.add_hint(variable, value)
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = limit
    # One worker: the same input gives the same output.
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return SolveResult(status="INFEASIBLE" if status == cp_model.INFEASIBLE else "UNKNOWN")
    return SolveResult(
        status="OPTIMAL" if status == cp_model.OPTIMAL else "FEASIBLE",
        value=np.array([solver.value(variable) for variable in x]),
        objective=float(solver.objective_value),
        bound=float(solver.best_objective_bound),
    )


def _cbc(program: Program, limit: float, seed: int) -> SolveResult[Ints]:
    pulp = _library("pulp", "PuLP")
    model = pulp.LpProblem("experts", pulp.LpMinimize)
    x: list[Any] = [
        model.add_variable(f"x{at}", 0, upper, cat="Integer")
        for at, upper in enumerate(program.upper)
    ]
    model += pulp.LpAffineExpression(
        [(x[at], cost) for at, cost in enumerate(program.cost) if cost]
    )
    for variables, values, low, high in program.rows:
        total = pulp.LpAffineExpression(
            [(x[v], int(c)) for v, c in zip(variables, values, strict=True)]
        )
        if low is not None and low == high:
            model += total == low
            continue
        if low is not None:
            model += total >= low
        if high is not None:
            model += total <= high
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        model.solve(
            pulp.COIN_CMD(
                # The one that PuLP brings, else the system's.
                path=getattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", None),
                msg=False,
                timeLimit=limit,
                threads=1,
                logPath=str(log),
                gapRel=0,
                options=[f"randomCbcSeed {seed + 1}"],
            )
        )
        said = log.read_text() if log.exists() else ""
    # A timed-out incumbent has status Optimal in PuLP 3; the status of the solution tells.
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        gone = model.sol_status == pulp.LpSolutionInfeasible
        return SolveResult(status="INFEASIBLE" if gone else "UNKNOWN")
    value = np.array([round(variable.value() or 0) for variable in x])
    objective = float(np.dot(program.cost, value))
    proven = model.sol_status == pulp.LpSolutionOptimal
    found = re.search(r"^Lower bound:\s+([-\d.e+]+)", said, re.MULTILINE)
    bound = objective if proven else float(found[1]) if found else None
    return SolveResult(
        status="OPTIMAL" if proven else "FEASIBLE", value=value, objective=objective, bound=bound
    )
