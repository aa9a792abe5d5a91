"""Predicted against observed, component by component.

Observed figures are medians over the timed steps. The error of the step and of memory is relative
to the observed value; the error of a component is relative to the observed step, since a component
of a thousandth of the step may be wrong by half and matter to nobody.
"""

import statistics
from typing import Literal

from launch.observed import Observed
from planner.plan import Plan
from profiler.codec import record
from profiler.errors import UserError
from profiler.model import NotNegative

Unit = Literal["s", "bytes"]


@record
class Row:
    """One figure: signed error, (predicted - observed) / scale."""

    name: str
    unit: Unit
    predicted: float
    observed: float
    spread: float
    """Half the interquartile range over steps."""
    error: float
    within: bool


@record
class Verdict:
    """Outcome of `verify`."""

    format_version: str = "1.0"
    kind: Literal["verdict"] = "verdict"
    plan_id: str
    num_steps: NotNegative
    tolerance: float
    within: bool
    rows: tuple[Row, ...]


def verify(plan: Plan, observed: Observed, tolerance: float) -> Verdict:
    """Compare; raises `UserError` (stale) for another plan's run, or one without a timed step."""
    if observed.plan_id != plan.id:
        raise UserError(
            f"the run is of plan `{observed.plan_id}`, not of `{plan.id}`",
            hint="give the `plan.json` that lies beside the `observed.json`",
            kind="stale",
        )
    if not observed.steps:
        raise UserError(
            "the run was stopped before its first timed step", hint="launch it again", kind="failed"
        )
    predicted = plan.chosen.estimate
    steps = [s.step_s for s in observed.steps]
    step_s = statistics.median(steps)
    rows = [_row("step", "s", predicted.step_s, steps, step_s, tolerance)]
    for name in ("compute", "p2p", "collective", "idle"):
        seen = [getattr(s.split, f"{name}_s") for s in observed.steps]
        value = getattr(predicted, f"{name}_s")
        rows.append(_row(name, "s", value, seen, step_s, tolerance))
    peaks = [r.memory.peak_bytes for r in observed.ranks if r.memory is not None]
    if len(peaks) == len(observed.ranks):
        peak = float(max(peaks))
        rows.append(
            _row("peak memory", "bytes", float(predicted.peak_bytes), [peak], peak, tolerance)
        )
    return Verdict(
        plan_id=plan.id,
        num_steps=len(steps),
        tolerance=tolerance,
        within=all(r.within for r in rows),
        rows=tuple(rows),
    )


def _row(
    name: str, unit: Unit, predicted: float, seen: list[float], scale: float, tolerance: float
) -> Row:
    observed = statistics.median(seen)
    error = (predicted - observed) / scale
    quartiles = statistics.quantiles(seen, n=4) if len(seen) > 1 else [0.0, 0.0, 0.0]
    return Row(
        name=name,
        unit=unit,
        predicted=predicted,
        observed=observed,
        spread=(quartiles[2] - quartiles[0]) / 2,
        error=error,
        within=abs(error) <= tolerance,
    )
