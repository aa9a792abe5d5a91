"""From what each rank wrote to `observed.json`.

Ranks write when things began and ended on the host's common monotonic clock; who waited for whom is
worked out here, after the run (`launch.waits`), so that the run itself carries no more than time
stamps. A step has a period only where the same processes took the step before.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from launch.observed import (
    MemoryObservation,
    MoveObservation,
    Observed,
    RankObservation,
    Split,
    State,
    StepObservation,
)
from launch.records import (
    Header,
    Step,
    attempt_of,
    has_period,
    rank_files,
    read_rank_file,
    steps_of_all,
)
from launch.waits import Divided, Waits, split_step
from planner.plan import Plan
from profiler.errors import UserError

StepRows = tuple[Step, ...]
"""One step of every rank."""

STATUS_NAME = "status.json"
"""Of a run that a launcher watches, which also collects; else rank 0 does at the end."""
OBSERVED_NAME = "observed.json"


def collect(plan: Plan, run_dir: Path, state: State) -> Observed | None:
    """What the ranks of a run wrote, as far as each finished its steps; None without any."""
    paths = rank_files(run_dir)
    if len(paths) < plan.chosen.config.num_devices:
        return None
    read = [read_rank_file(p) for p in paths[: plan.chosen.config.num_devices]]
    try:
        steps = steps_of_all([rows for _, rows in read])
        if not steps:
            return None
        restarts = max(attempt_of(row) for _, rows in read for row in rows)
        return _observed(plan, state, [header for header, _ in read], steps, restarts)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as e:
        raise UserError(f"the ranks' records cannot be read: {e!r}", place=str(run_dir)) from None


def _observed(
    plan: Plan, state: State, headers: list[Header], steps: list[StepRows], restarts: int
) -> Observed:
    ends = [max(row["end"] for row in rows) for rows in steps]
    valid = has_period(steps)
    timed = [i for i, rows in enumerate(steps) if valid[i] and not rows[0]["warmup"]]
    chosen = plan.chosen
    waits = Waits(chosen.config, chosen.placement, [str(h["host"]) for h in headers])
    divided = [split_step(waits, steps[i], [row["end"] for row in steps[i - 1]]) for i in timed]
    periods = [ends[i] - ends[i - 1] for i in timed]
    losses, norms, finite = _finite(steps)
    tokens_per_s = plan.job.tokens_per_step / statistics.median(periods) if periods else None
    return Observed(
        plan_id=plan.id,
        state=state,
        torch=str(headers[0]["torch"]),
        device=str(headers[0]["device"]),
        num_warmup=sum(bool(rows[0]["warmup"]) for rows in steps),
        losses=losses,
        steps=tuple(
            StepObservation(step=steps[i][0]["step"], step_s=period, split=_mean(row))
            for i, period, row in zip(timed, periods, divided, strict=True)
        ),
        ranks=tuple(
            RankObservation(
                rank=h["rank"],
                coordinate=h["coordinate"],
                host=h["host"],
                memory=MemoryObservation(**h["memory"]) if h.get("memory") else None,
                steps=tuple(row[rank][0] for row in divided),
                collective_by_axis=_by_axis([row[rank] for row in divided]),
            )
            for rank, h in enumerate(headers)
        ),
        first_step=steps[0][0]["step"],
        steps_done=steps[-1][0]["step"] + 1,
        diverged_at=None if finite == len(steps) else steps[finite][0]["step"],
        grad_norms=norms,
        restarts=restarts,
        tokens_per_s=tokens_per_s,
        moves=moves_of(
            steps, {steps[i][0]["step"]: s for i, s in zip(timed, periods, strict=True)}
        ),
        mfu=_mfu(plan, tokens_per_s, str(headers[0]["device"])),
    )


def _finite(steps: list[StepRows]) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Losses and gradient norms of the steps before the first with one that is not finite, and the
    number of these steps."""
    losses: list[float] = []
    norms: list[float] = []
    for i, rows in enumerate(steps):
        loss = next((row["loss"] for row in rows if row["loss"] is not None), None)
        norm = rows[0].get("grad_norm")
        if not all(math.isfinite(x) for x in (loss, norm) if x is not None):
            return tuple(losses), tuple(norms), i
        losses += [float(loss)] if loss is not None else []
        norms += [float(norm)] if norm is not None else []
    return tuple(losses), tuple(norms), len(steps)


def moves_of(steps: list[StepRows], period_s: Mapping[int, float]) -> tuple[MoveObservation, ...]:
    """Experts' moves, given the seconds of each timed step. The step after a move is left out: its
    period has the move in it."""
    rows = [(own[0]["step"], own) for own in steps if "moved" in own[0]]
    starts = [step for step, _ in rows]
    found = []
    for i, (step, own) in enumerate(rows):
        moved = own[0]["moved"]
        before = max([step - moved["num_steps"], *(s + 1 for s in starts[:i])])
        end = starts[i + 1] if i + 1 < len(rows) else steps[-1][0]["step"] + 1
        then = [s for k, s in period_s.items() if before <= k < step]
        now = [s for k, s in period_s.items() if step < k < end]
        gain = statistics.median(then) - statistics.median(now) if then and now else None
        found.append(
            MoveObservation(
                step=step,
                num_bytes=sum(row["moved"]["received_bytes"] for row in own),
                predicted_s=moved["move_s"],
                seconds=max(row["moved"]["seconds"] for row in own),
                predicted_gain_s=moved["gain_s"],
                gain_s=gain,
            )
        )
    return tuple(found)


def _mfu(plan: Plan, tokens_per_s: float | None, ran_on: str) -> float | None:
    """FLOPs of the model per second, over the sum of the devices' peaks."""
    groups = plan.cluster.groups
    devices = [g.device for g in groups for _ in range(g.num_nodes * g.devices_per_node)]
    used = devices[: plan.chosen.config.num_devices]
    peaks = [d.flops_per_s.get(plan.job.precision) for d in used if not d.is_host]
    known = [p for p in peaks if p is not None]
    if tokens_per_s is None or ran_on == "cpu" or len(known) < len(used):
        return None
    return plan.model.flops_per_token(plan.job.seq_len) * tokens_per_s / sum(known)


def _mean(ranks: list[Divided]) -> Split:
    def mean(of: Callable[[Split], float]) -> float:
        return sum(of(split) for split, _ in ranks) / len(ranks)

    return Split(
        compute_s=mean(lambda s: s.compute_s),
        p2p_s=mean(lambda s: s.p2p_s),
        collective_s=mean(lambda s: s.collective_s),
        idle_s=mean(lambda s: s.idle_s),
    )


def _by_axis(steps: list[Divided]) -> dict[str, float]:
    """Mean over steps."""
    axes = sorted({axis for _, by_axis in steps for axis in by_axis})
    means = {a: sum(by_axis.get(a, 0.0) for _, by_axis in steps) / len(steps) for a in axes}
    return {axis: seconds for axis, seconds in means.items() if seconds > 0}
