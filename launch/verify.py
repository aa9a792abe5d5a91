"""Predicted against observed, component by component.

Observed figures are medians over the timed steps. The error of the step and of memory is relative
to the observed value; the error of a component is relative to the observed step, since a component
of a thousandth of the step may be wrong by half and matter to nobody; so is the error of a part of
the peak, relative to the observed peak.
"""

import statistics
from typing import Literal

from launch.observed import Observed, RankObservation
from launch.training_log import LoggedRun
from planner.config import ParallelConfig
from planner.plan import Plan, StageMemory
from profiler.codec import record
from profiler.errors import UserError
from profiler.job import GRAD_BYTES, WEIGHT_BYTES, Precision
from profiler.model import NotNegative

Unit = Literal["s", "bytes"]
ExpertsAs = Literal["planned", "run"]
PartName = Literal["weights", "gradients", "optimizer", "buffers", "activations"]


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
class MemoryRow:
    """One part of the peak of the fullest rank: signed error, (predicted - observed) / peak."""

    name: PartName
    """`activations` are the rest of the peak, workspace and what ZeRO gathers included. Below 0
    where the peak comes before all gradients are there."""
    predicted_bytes: int
    observed_bytes: int
    error: float


@record
class MemorySplit:
    """Where the peak of the fullest observed rank comes from, beside the prediction for its place;
    explains the row `peak memory` and decides nothing."""

    rank: NotNegative
    coordinate: dict[str, NotNegative]
    rows: tuple[MemoryRow, ...]


@record
class Verdict:
    """Outcome of `verify`."""

    format_version: str = "1.2"
    kind: Literal["verdict"] = "verdict"
    plan_id: str
    num_steps: NotNegative
    tolerance: float
    within: bool
    rows: tuple[Row, ...]
    memory: MemorySplit | None = None
    """None where the run or the plan has no memory."""
    experts: ExpertsAs = "planned"
    """run: experts moved, and the step is predicted for where they were and for what was routed
    there; planned: for the places of the plan. Memory, taken in the second step, always is."""
    moves: tuple[NotNegative, ...] = ()
    """Steps before which experts moved."""


def verify(plan: Plan, observed: Observed, tolerance: float, as_run: Plan | None = None) -> Verdict:
    """Compare; raises `UserError` (stale) for another plan's run, or one without a timed step.

    `as_run`: the plan with the estimate for its experts' places in the run
    (`planner.moved_plan`), where they moved.
    """
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
    predicted = (as_run or plan).chosen.cost
    steps = [s.step_s for s in observed.steps]
    step_s = statistics.median(steps)
    rows = [_row("step", "s", predicted.step_s, steps, step_s, tolerance)]
    for name in ("compute", "p2p", "collective", "idle"):
        seen = [getattr(s.split, f"{name}_s") for s in observed.steps]
        value = getattr(predicted, f"{name}_s")
        rows.append(_row(name, "s", value, seen, step_s, tolerance))
    peaks = [r.memory.peak_bytes for r in observed.ranks if r.memory is not None]
    memory = None
    if peaks and len(peaks) == len(observed.ranks):
        peak = float(max(peaks))
        rows.append(
            _row(
                "peak memory", "bytes", float(plan.chosen.cost.peak_bytes), [peak], peak, tolerance
            )
        )
        fullest = observed.ranks[peaks.index(max(peaks))]
        memory = _memory_split(plan, fullest)
    return Verdict(
        plan_id=plan.id,
        num_steps=len(steps),
        tolerance=tolerance,
        within=all(r.within for r in rows),
        rows=tuple(rows),
        memory=memory,
        experts="run" if as_run else "planned",
        moves=tuple(move.step for move in observed.moves),
    )


def verify_log(plan: Plan, run: LoggedRun, tolerance: float) -> Verdict:
    """Compare with what another framework logged: its steps, and its memory where it says."""
    predicted = plan.chosen.cost
    steps = list(run.step_s)
    rows = [_row("step", "s", predicted.step_s, steps, statistics.median(steps), tolerance)]
    if run.peak_bytes:
        peak = float(run.peak_bytes)
        ours = float(predicted.peak_bytes)
        rows.append(_row("peak memory", "bytes", ours, [peak], peak, tolerance))
    return Verdict(
        plan_id=plan.id,
        num_steps=len(steps),
        tolerance=tolerance,
        within=all(row.within for row in rows),
        rows=tuple(rows),
    )


def _memory_split(plan: Plan, rank: RankObservation) -> MemorySplit | None:
    """The rank's peak against that of its pipeline rank, or of the fullest one where the run does
    not say which it is."""
    seen = rank.memory
    memories = [stage.memory for stage in plan.chosen.cost.stages]
    if not memories or seen is None:
        return None
    pp = rank.coordinate.get("pp", len(memories))
    memory = memories[pp] if pp < len(memories) else max(memories, key=lambda m: m.total_bytes)
    ours = _parts(memory, plan.chosen.config, plan.job.precision)
    observed = (
        seen.weight_bytes,
        seen.grad_bytes,
        seen.optimizer_bytes,
        seen.buffer_bytes,
        seen.activation_and_workspace_bytes,
    )
    return MemorySplit(
        rank=rank.rank,
        coordinate=rank.coordinate,
        rows=tuple(
            MemoryRow(
                name=name,
                predicted_bytes=mine,
                observed_bytes=theirs,
                error=(mine - theirs) / max(1, seen.peak_bytes),
            )
            for name, mine, theirs in zip(_PARTS, ours, observed, strict=True)
        ),
    )


_PARTS: tuple[PartName, ...] = ("weights", "gradients", "optimizer", "buffers", "activations")


def _parts(memory: StageMemory, config: ParallelConfig, precision: Precision) -> tuple[int, ...]:
    """A predicted peak cut as a run cuts its own: all gradients count, whether they are there at
    the peak or not, and the rest is what is left."""
    # Shards of ZeRO are float32, their own masters; they are rounded when they are gathered.
    width = GRAD_BYTES[precision] if config.dp_shard > 1 else WEIGHT_BYTES[precision]
    held = (
        memory.weight_bytes,
        memory.weight_bytes // width * GRAD_BYTES[precision],
        memory.optimizer_bytes,
        memory.buffer_bytes,
    )
    return (*held, memory.total_bytes - sum(held))


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
