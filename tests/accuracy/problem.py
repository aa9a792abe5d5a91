"""Published runs as a least-squares problem in the logarithms of the constants.

Residuals are logarithms of predicted over measured step times, with the pseudo-Huber loss at 7 %,
and the priors of `fit_spec`: the maximum of the posterior of a hierarchical model. A source of n
runs counts as at most sqrt(60 / n) each, so that sweeps of hundreds do not drown tables of a few.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares  # type: ignore[import-untyped]

from launch.published.runs import PublishedRun
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
    """(logarithms, their covariance by the Gauss-Newton approximation at the maximum)."""
    spreads = np.array([p.spread for p in problem.parameters])
    first = problem.start if start is None else start
    found = least_squares(problem.residuals, first, x_scale=spreads, max_nfev=steps)
    return found.x, np.linalg.inv(found.jac.T @ found.jac)
