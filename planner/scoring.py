"""How good predictions of measured runs are: errors, order, choice, memory and what fits.

`score` is pure and does not depend on the order of its rows: same rows, same document. Main
figures are of trusted rows; others are scored apart.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log

from planner.choice import Choice, choice
from planner.figures import Figures, FitErrors, Memory, StepTime, figures, step_time
from planner.scored import Scored, Unmodelled
from planner.stats import RESAMPLES

__all__ = ["Score", "Scored", "Unmodelled", "score"]

NUM_WORST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigures:
    """Figures of the trusted rows of a group; no ranges."""

    group: tuple[str, ...]
    step_time: StepTime
    choice: Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstRow:
    """A row that is far off, and the largest term of its prediction."""

    row_id: str
    source: str
    model: str
    gpu: str
    num_gpus: int
    label: str
    measured_step_s: float
    predicted_step_s: float
    error: float
    """predicted / measured - 1."""
    term: str
    term_share: float | None
    """Of the sum of all terms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The document of `meshwright validate --json`."""

    rows: int
    """Rows of the table of runs, without the failed ones: modelled and unmodelled."""
    modelled: int
    complete: int
    """Modelled rows, and unmodelled ones that state all that is needed."""
    modelled_share: float | None
    """`modelled` of `complete`."""
    trusted: int
    failed: int
    unmodelled: dict[str, int]
    unmodelled_rows: dict[str, tuple[str, ...]]
    step_time: StepTime
    memory: Memory
    choice: Choice
    fit_errors: FitErrors
    per_source: dict[str, Figures]
    per_group: tuple[GroupFigures, ...]
    per_term: dict[str, StepTime]
    """Trusted rows by the largest term of their prediction; no ranges."""
    worst: tuple[WorstRow, ...]
    """Trusted rows, |ln(predicted / measured)| descending."""
    untrusted: Figures


def score(
    rows: Sequence[Scored],
    unmodelled: Sequence[Unmodelled],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Score:
    """Score predictions. `seed` and `resamples` are of the bootstrap; 0 resamples: no ranges."""
    ordered = sorted(rows, key=_order)
    _check(ordered)
    ran = [r for r in ordered if not r.failed]
    failed = [r for r in ordered if r.failed]
    trusted = [r for r in ran if r.trusted]
    main = figures([*trusted, *failed], seed, resamples)
    left_out = sorted(unmodelled, key=lambda u: (u.reason, u.source, u.row_id))
    complete = len(ran) + sum(u.complete for u in left_out)
    by_reason = grouped((u.reason, u.row_id) for u in left_out)
    return Score(
        rows=len(ran) + len(left_out),
        modelled=len(ran),
        complete=complete,
        modelled_share=len(ran) / complete if complete else None,
        trusted=len(trusted),
        failed=len(failed),
        unmodelled=dict(Counter(u.reason for u in left_out)),
        unmodelled_rows={reason: tuple(ids) for reason, ids in by_reason.items()},
        step_time=main.step_time,
        memory=main.memory,
        choice=main.choice,
        fit_errors=main.fit_errors,
        per_source=_per_source(trusted, failed, seed, resamples),
        per_group=_per_group(trusted),
        per_term=_per_term(trusted),
        worst=_worst(trusted),
        untrusted=figures([r for r in ran if not r.trusted], seed, resamples),
    )


def dominant_term(parts: Mapping[str, float]) -> tuple[str, float | None]:
    """The largest term, the first by name among equals, and its share of the sum of all."""
    if not parts:
        return "", None
    term = min(parts, key=lambda name: (-parts[name], name))
    total = sum(parts[name] for name in sorted(parts))
    return term, parts[term] / total if total > 0 else None


def _order(row: Scored) -> tuple[object, ...]:
    """A total order of whatever may differ, so that input order cannot matter."""
    numbers = (
        row.measured_step_s,
        row.predicted_step_s,
        row.measured_peak_gib,
        row.predicted_peak_gib,
    )
    return (
        *(row.source, row.row_id, row.failed, row.label, row.trusted, row.model, row.gpu),
        *(row.num_gpus, row.global_batch, row.seq_len, row.precision, row.group, row.fits),
        tuple(-1.0 if n is None else n for n in numbers),
        tuple(sorted(row.parts.items())),
    )


def _check(rows: Iterable[Scored]) -> None:
    """Numbers a ratio can be taken of; anything else is a fault of the reader or the model."""
    for row in rows:
        for name in (
            "measured_step_s",
            "predicted_step_s",
            "measured_peak_gib",
            "predicted_peak_gib",
        ):
            value = getattr(row, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise ValueError(f"{name} of row {row.row_id} is {value}")


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Second values by their first."""
    out: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in pairs:
        out[key].append(value)
    return dict(out)


def _per_source(
    trusted: Sequence[Scored], failed: Sequence[Scored], seed: int, resamples: int
) -> dict[str, Figures]:
    rows = [*trusted, *failed]
    return {
        source: figures([r for r in rows if r.source == source], seed, resamples)
        for source in sorted({r.source for r in rows})
    }


def _per_group(trusted: Sequence[Scored]) -> tuple[GroupFigures, ...]:
    groups: defaultdict[tuple[str, ...], list[Scored]] = defaultdict(list)
    for row in trusted:
        groups[row.group].append(row)
    return tuple(
        GroupFigures(
            group=key, step_time=step_time(groups[key], 0, 0), choice=choice(groups[key], 0, 0)
        )
        for key in sorted(groups)
    )


def _per_term(trusted: Sequence[Scored]) -> dict[str, StepTime]:
    terms: defaultdict[str, list[Scored]] = defaultdict(list)
    for row in trusted:
        if row.predicted_step_s is not None and row.measured_step_s is not None:
            terms[dominant_term(row.parts)[0] or "not told"].append(row)
    return {term: step_time(terms[term], 0, 0) for term in sorted(terms)}


def _worst(trusted: Sequence[Scored]) -> tuple[WorstRow, ...]:
    """The `NUM_WORST` rows with the largest |ln(predicted / measured)|."""
    found: list[tuple[float, WorstRow]] = []
    for row in trusted:
        predicted, measured = row.predicted_step_s, row.measured_step_s
        if predicted is None or measured is None:
            continue
        term, share = dominant_term(row.parts)
        worst = WorstRow(
            row_id=row.row_id,
            source=row.source,
            model=row.model,
            gpu=row.gpu,
            num_gpus=row.num_gpus,
            label=row.label,
            measured_step_s=measured,
            predicted_step_s=predicted,
            error=predicted / measured - 1,
            term=term,
            term_share=share,
        )
        found.append((-abs(log(predicted / measured)), worst))
    return tuple(w for _, w in sorted(found, key=lambda f: f[0])[:NUM_WORST])
