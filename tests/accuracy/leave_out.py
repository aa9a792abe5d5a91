"""Errors on what a fit had not seen: each source and each model left out in turn.

The constants are fitted without the rows of one name, starting from the fit of all, and these rows
are predicted with them as `meshwright validate` predicts: layers in closed form, pipelines
simulated. A device, network or software that only those rows have keeps what was known of it before
any run was read (`fit_spec`), else the constant of all.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.figures import StepTime, step_time
from planner.predict import Progress, predict_steps
from planner.scored import Scored
from planner.timing.quantities import Constants, rows
from tests.accuracy.fit_spec import Spec, offset
from tests.accuracy.problem import Floats, Problem, fit
from tests.accuracy.published_page import Constant, HeldOut

STEPS = 8
"""Of the optimiser, from the fit of all: the figures move by less than 0.1 % after them."""
Names = NDArray[np.str_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A problem with the maximum of its posterior and the covariance there."""

    problem: Problem
    theta: Floats
    covariance: Floats


def model_names(problem: Problem) -> Names:
    """A name for each run's model: its key, which joins the spellings of several tables."""
    return np.array([r.cells.get("model_key") or r.cells["model"] for r in problem.runs])


def source_names(problem: Problem) -> Names:
    """The source of each run."""
    return np.array([r.cells["source"] for r in problem.runs])


def held_out_s(whole: Fitted, names: Names, progress: Callable[[str], None]) -> Floats:
    """Predicted seconds of each run by constants fitted without the runs of its name."""
    problem, found = whole.problem, np.zeros(len(names))
    for name in sorted(set(names)):
        progress(f"without {name[:40]}")
        kept, out = np.flatnonzero(names != name), np.flatnonzero(names == name)
        less = Problem([problem.runs[i] for i in kept.tolist()])
        theta, _ = fit(less, less.carried(problem, whole.theta), STEPS)
        found[out] = predicted_s(problem, problem.carried(less, theta), out.tolist())
    return found


def predicted_s(problem: Problem, theta: Floats, chosen: Iterable[int]) -> Floats:
    """Seconds of the chosen runs with the constants of `theta`, pipelines simulated."""
    constants = problem.constants(theta)
    runs = [
        replace(problem.runs[i].run, constants=_floats(rows(constants, np.array(i))))
        for i in chosen
    ]
    return np.array([seconds for seconds, _ in predict_steps(runs)])


def _floats(constants: Constants) -> Constants:
    values = {n: float(getattr(constants, n)) for n in Constants.__dataclass_fields__}
    return Constants(**values)


def held_out(whole: Fitted, names: Names, predicted: Floats) -> HeldOut:
    """Figures of held-out predictions: all together, by what was left out, and by source."""
    scored = [
        _scored(run.cells.get("row_id") or str(i), seconds, run.step_s)
        for i, (run, seconds) in enumerate(zip(whole.problem.runs, predicted, strict=True))
    ]
    return HeldOut(
        pooled=step_time(scored, 0, 1000),
        of=_by(names, scored),
        per_source=_by(source_names(whole.problem), scored),
    )


def _by(names: Names, scored: list[Scored]) -> dict[str, StepTime]:
    return {
        str(name): step_time([scored[i] for i in np.flatnonzero(names == name)], 0, 1000)
        for name in sorted(set(names))
    }


def _scored(row_id: str, predicted: float, measured: float | None) -> Scored:
    return Scored(
        row_id=row_id, source="", model="", gpu="", num_gpus=1, global_batch=1, seq_len=1,
        precision="", trusted=True, group=(), label="", measured_step_s=measured,
        predicted_step_s=float(predicted), measured_peak_gib=None, predicted_peak_gib=None,
        fits=True, failed=False, parts={},
    )  # fmt: skip


def constants_table(whole: Fitted, specs: Iterable[Spec]) -> tuple[Constant, ...]:
    """All constants and their members, each with its range and how far the runs narrowed it."""
    found = []
    for spec in specs:
        found.append(_constant(whole, spec, ""))
        if spec.by != "all":
            members = sorted(set(whole.problem.members[spec.by]))
            found += [_constant(whole, spec, str(m)) for m in members]
    return tuple(found)


def _constant(whole: Fitted, spec: Spec, member: str) -> Constant:
    value, spread = posterior(whole, spec, member)
    low, high = value - 1.96 * spread, value + 1.96 * spread
    before = spec.spread if not member else float(np.hypot(spec.spread, offset(spec, member)[1]))
    centre, lower, upper = (float(f"{np.exp(x):.4g}") for x in (value, low, high))
    return Constant(
        name=f"{spec.name}[{member}]" if member else spec.name, value=centre, low=lower, high=upper,
        meaning="" if member else f"{spec.meaning} ({spec.unit})", against_prior=spread / before,
    )  # fmt: skip


def posterior(whole: Fitted, spec: Spec, member: str) -> tuple[float, float]:
    """(logarithm, standard deviation) of a constant, or of what it is for a member: the sum of the
    constant of all and of the member's shift, which the fit leaves correlated."""
    at = [whole.problem.index[(spec.name, "")]]
    if member:
        at.append(whole.problem.index[(spec.name, member)])
    variance = whole.covariance[np.ix_(at, at)].sum()
    return float(whole.theta[at].sum()), float(np.sqrt(variance))


def leave_out(whole: Fitted, progress: Progress) -> tuple[HeldOut, HeldOut]:
    """(without a source, without a model)."""
    problem = whole.problem
    kinds = (source_names(problem), model_names(problem))
    total, done = sum(len(set(names)) for names in kinds), 0

    def tell(label: str) -> None:
        nonlocal done
        progress(done, total, label)
        done += 1

    source, model = (held_out(whole, names, held_out_s(whole, names, tell)) for names in kinds)
    progress(total, total, "left out")
    return source, model
