"""Fit the constants of the time model to published runs: `python -m tests.accuracy.fit RUNS.csv`.

Least squares of the logarithms of predicted over measured step times, with the pseudo-Huber loss at
7 % and the priors of `fit_spec` as further residuals: the maximum of the posterior of a hierarchical
model. A source of n runs counts as at most sqrt(60 / n) each, so that sweeps of hundreds do not
drown tables of a few. Only trusted rows take part. Ranges are +-1.96 standard deviations of the
Gauss-Newton approximation at the maximum.

    python -m tests.accuracy.fit RUNS.csv            write profiler/catalog/constants.yaml
    python -m tests.accuracy.fit RUNS.csv --out F    and leave-one-out results for the page
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares

from launch.published.runs import PublishedRun, read_runs
from planner.predict import Quantities
from planner.timing.quantities import Constants
from planner.timing.step import step_times
from profiler.catalog.constants import scopes_of
from tests.accuracy.fit_spec import SPECS, Spec, offset

Floats = NDArray[np.float64]
LOSS_SCALE = 0.07
LARGEST_SOURCE = 60


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number to fit: a constant, or a member's shift from it."""

    spec: Spec
    member: str
    mean: float
    spread: float


class Problem:
    """Runs as arrays and the parameters that speak of them."""

    def __init__(self, runs: Sequence[PublishedRun]) -> None:
        self.runs = runs
        self.quantities = Quantities.of([r.run for r in runs])
        self.log_measured = np.log([r.step_s or np.nan for r in runs])
        scopes = [scopes_of(r.run.group, r.software) for r in runs]
        self.members = {by: np.array([s[by] for s in scopes]) for by in scopes[0]}
        sources = np.array([r.cells["source"] for r in runs])
        sizes = {s: int((sources == s).sum()) for s in set(sources)}
        self.weights = np.array([min(1.0, (LARGEST_SOURCE / sizes[s]) ** 0.5) for s in sources])
        self.parameters = [p for spec in SPECS for p in self._parameters(spec)]
        self.index = {(p.spec.name, p.member): i for i, p in enumerate(self.parameters)}

    def _parameters(self, spec: Spec) -> list[Parameter]:
        found = [Parameter(spec, "", float(np.log(spec.prior)), spec.spread)]
        if spec.by != "all":
            for member in sorted(set(self.members[spec.by])):
                found.append(Parameter(spec, str(member), *offset(spec, str(member))))
        return found

    @property
    def start(self) -> Floats:
        """The priors' means."""
        return np.array([p.mean for p in self.parameters])

    def constants(self, theta: Floats) -> Constants:
        """Per run."""
        values = {}
        for spec in SPECS:
            log_value = theta[self.index[(spec.name, "")]] + np.zeros(len(self.runs))
            if spec.by != "all":
                for member in set(self.members[spec.by]):
                    shift = theta[self.index[(spec.name, str(member))]]
                    log_value[self.members[spec.by] == member] += shift
            values[spec.name] = np.exp(log_value)
        return Constants(**values)

    def log_ratio(self, theta: Floats) -> Floats:
        """Logarithm of predicted over measured, by the closed form."""
        q = self.quantities
        step = step_times(q.shape, q.split, q.machine, q.software, self.constants(theta)).step_s
        return np.asarray(np.log(step) - self.log_measured, dtype=np.float64)

    def residuals(self, theta: Floats) -> Floats:
        """Of the runs and of the priors."""
        scaled = self.log_ratio(theta) / LOSS_SCALE
        # Pseudo-Huber as a residual: its square is 2 (sqrt(1 + x^2) - 1).
        soft = self.weights * np.sign(scaled) * np.sqrt(2 * (np.sqrt(1 + scaled**2) - 1))
        prior = [(t - p.mean) / p.spread for t, p in zip(theta, self.parameters, strict=True)]
        return np.concatenate([soft, prior])

    def carried(self, other: "Problem", theta: Floats) -> Floats:
        """Values of another problem's fit for this one's parameters; priors where it had none."""
        start = self.start
        for i, p in enumerate(self.parameters):
            at = other.index.get((p.spec.name, p.member))
            if at is not None:
                start[i] = theta[at]
        return start


def fit(problem: Problem, start: Floats | None = None, steps: int = 60) -> tuple[Floats, Floats]:
    """(logarithms, their standard deviations)."""
    spreads = np.array([p.spread for p in problem.parameters])
    first = problem.start if start is None else start
    found = least_squares(problem.residuals, first, x_scale=spreads, max_nfev=steps)
    covariance = np.linalg.inv(found.jac.T @ found.jac)
    return found.x, np.sqrt(np.diag(covariance))


def trusted_runs(path: Path) -> list[PublishedRun]:
    """Rows of the table that are trusted and have a time."""
    runs, _, _ = read_runs(path)
    return [r for r in runs if r.step_s and r.cells.get("trusted", "Y").upper() == "Y"]


def write_constants(problem: Problem, theta: Floats, spread: Floats, path: Path) -> None:
    """The catalogue's file."""
    document = {"fitted_from": _origin(problem), "constants": {}}
    for spec in SPECS:
        at = problem.index[(spec.name, "")]
        entry = {
            "meaning": spec.meaning,
            "unit": spec.unit,
            "by": spec.by,
            "all": _fitted(theta[at], spread[at]),
        }
        if spec.by != "all":
            entry["of"] = {}
            for member in sorted(set(problem.members[spec.by])):
                own = problem.index[(spec.name, str(member))]
                entry["of"][str(member)] = _fitted(theta[at] + theta[own], spread[own])
        document["constants"][spec.name] = entry
    header = (
        "# Constants of the time model, written by tests/accuracy/fit.py: do not edit.\n"
        "# Meaning and method: planner/timing, tests/accuracy/fit_spec.py, docs/accuracy-published.md\n"
    )
    text = yaml.safe_dump(document, sort_keys=False, width=100)
    path.write_text(header + text, encoding="utf-8")


def _origin(problem: Problem) -> str:
    sources = sorted({r.cells["source"] for r in problem.runs})
    return f"{len(problem.runs)} published runs of {len(sources)} sources"


def _fitted(log_value: float, spread: float) -> dict[str, float]:
    low, high = log_value - 1.96 * spread, log_value + 1.96 * spread
    value, lower, upper = (float(f"{np.exp(x):.4g}") for x in (log_value, low, high))
    return {"value": value, "low": lower, "high": upper}


CONSTANTS = Path(__file__).parents[2] / "profiler" / "catalog" / "constants.yaml"


def main() -> None:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    args = parser.parse_args()
    problem = Problem(trusted_runs(args.runs))
    theta, spread = fit(problem)
    write_constants(problem, theta, spread, CONSTANTS)
    error = np.abs(np.expm1(problem.log_ratio(theta)))
    print(f"{len(error)} runs: median {np.median(error):.1%}, p90 {np.quantile(error, 0.9):.1%}")


if __name__ == "__main__":
    main()
