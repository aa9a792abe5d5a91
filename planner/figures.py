"""Figures of a set of rows: errors of step time and memory, choice, what fits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.choice import Choice, choice
from planner.scored import Scored
from planner.stats import Array, Range, ape, bias, quantile, ranges, spearman

UNDER = 0.95
"""A memory prediction below this share of the measurement counts as an underestimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Errors of step time. `spearman` is over all rows, so that it sees models apart as well."""

    rows: int
    median_ape: float | None
    median_ape_range: Range | None
    p90_ape: float | None
    p90_ape_range: Range | None
    bias: float | None
    """exp(median(ln(predicted / measured))) - 1; above 0 is too slow."""
    bias_range: Range | None
    spearman: float | None
    spearman_range: Range | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Errors of the peak memory of the fullest device."""

    rows: int
    median_ape: float | None
    median_ape_range: Range | None
    p90_ape: float | None
    p90_ape_range: Range | None
    bias: float | None
    bias_range: Range | None
    underestimates_over_5pct: float | None
    """Share of rows predicted at less than 95 % of what was measured."""
    underestimates_over_5pct_range: Range | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """`count` of `of`; no share of nothing."""

    count: int
    of: int
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitErrors:
    """What ran and what failed against what the model says fits."""

    feasible_called_oom: Share
    """Runs that ran and are said not to fit."""
    failed_called_feasible: Share
    """Runs that failed and are said to fit; they may have failed for another reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All figures of a set of rows."""

    step_time: StepTime
    memory: Memory
    choice: Choice
    fit_errors: FitErrors


def figures(rows: Sequence[Scored], seed: int, resamples: int) -> Figures:
    """Of rows that ran and rows that failed; see `planner.scoring.score`."""
    ran = [r for r in rows if not r.failed]
    return Figures(
        step_time=step_time(ran, seed, resamples),
        memory=memory(ran, seed, resamples),
        choice=choice(ran, seed, resamples),
        fit_errors=FitErrors(
            feasible_called_oom=_share([not r.fits for r in ran]),
            failed_called_feasible=_share([r.fits for r in rows if r.failed]),
        ),
    )


def _share(hits: Sequence[bool]) -> Share:
    return Share(count=sum(hits), of=len(hits), share=sum(hits) / len(hits) if hits else None)


def _pairs(values: Iterable[tuple[float | None, float | None]]) -> tuple[Array, Array]:
    both = [(p, m) for p, m in values if p is not None and m is not None]
    table = np.array(both, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def step_time(rows: Iterable[Scored], seed: int, resamples: int) -> StepTime:
    """Of the rows with a measured and a predicted step."""
    predicted, measured = _pairs((r.predicted_step_s, r.measured_step_s) for r in rows)
    errors = ape(predicted, measured)
    spans = ranges(
        len(errors),
        (
            lambda i: quantile(errors[i], 0.5),
            lambda i: quantile(errors[i], 0.9),
            lambda i: bias(predicted[i], measured[i]),
            lambda i: spearman(predicted[i], measured[i]),
        ),
        seed,
        resamples,
    )
    return StepTime(
        rows=len(errors),
        median_ape=quantile(errors, 0.5),
        median_ape_range=spans[0],
        p90_ape=quantile(errors, 0.9),
        p90_ape_range=spans[1],
        bias=bias(predicted, measured),
        bias_range=spans[2],
        spearman=spearman(predicted, measured),
        spearman_range=spans[3],
    )


def memory(rows: Iterable[Scored], seed: int, resamples: int) -> Memory:
    """Of the rows with a measured and a predicted peak."""
    predicted, measured = _pairs((r.predicted_peak_gib, r.measured_peak_gib) for r in rows)
    errors = ape(predicted, measured)
    under = (predicted < UNDER * measured).astype(float)
    spans = ranges(
        len(errors),
        (
            lambda i: quantile(errors[i], 0.5),
            lambda i: quantile(errors[i], 0.9),
            lambda i: bias(predicted[i], measured[i]),
            lambda i: float(under[i].mean()),
        ),
        seed,
        resamples,
    )
    return Memory(
        rows=len(errors),
        median_ape=quantile(errors, 0.5),
        median_ape_range=spans[0],
        p90_ape=quantile(errors, 0.9),
        p90_ape_range=spans[1],
        bias=bias(predicted, measured),
        bias_range=spans[2],
        underestimates_over_5pct=float(under.mean()) if len(under) else None,
        underestimates_over_5pct_range=spans[3],
    )
