"""Whether the layout that the model ranks first is a fast one.

Layouts compete where all else is equal: source, model, GPU, number of GPUs, global batch, sequence
length, precision and the columns grouped by. Step times then compare as times per token do.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.scored import Scored
from planner.stats import RESAMPLES, Array, Range, geomean, quantile, ranges, spearman

MIN_RANKED = 3
"""Fewer layouts have no rank correlation worth a median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Regret is measured time of the layout predicted fastest / of the fastest measured, >= 1."""

    groups: int
    """With two layouts or more."""
    layouts: int
    """In these groups; repeats of a layout count once, with the median of their times."""
    regret_geomean: float | None
    regret_geomean_range: Range | None
    """Groups are resampled, not rows."""
    regret_median: float | None
    regret_max: float | None
    regret_fitting_geomean: float | None
    """The same choice among the layouts said to fit, over the groups that have one."""
    spearman_median: float | None
    """Rank correlation within a group, the median over groups of three layouts or more."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Repeats of a layout as one: same label, same prediction."""

    predicted_s: float
    measured_s: float
    fits: bool


def choice(rows: Iterable[Scored], seed: int = 0, resamples: int = RESAMPLES) -> Choice:
    """Regret over all groups of `rows` with two layouts or more."""
    groups = [g for g in _groups(rows) if len(g) > 1]
    regrets = np.array([regret(g, g) for g in groups])
    among = [(g, [x for x in g if x.fits]) for g in groups]
    fitting = np.array([regret(g, allowed) for g, allowed in among if allowed])
    (span,) = ranges(len(groups), (lambda i: geomean(regrets[i]),), seed, resamples)
    orders = [
        spearman(_column(g, "predicted_s"), _column(g, "measured_s"))
        for g in groups
        if len(g) >= MIN_RANKED
    ]
    return Choice(
        groups=len(groups),
        layouts=sum(map(len, groups)),
        regret_geomean=geomean(regrets),
        regret_geomean_range=span,
        regret_median=quantile(regrets, 0.5),
        regret_max=float(regrets.max()) if len(groups) else None,
        regret_fitting_geomean=geomean(fitting),
        spearman_median=quantile(np.array([o for o in orders if o is not None]), 0.5),
    )


def regret(group: Sequence[_Layout], allowed: Sequence[_Layout]) -> float:
    """Measured time of the layout of `allowed` predicted fastest, over the fastest of `group`.

    Where several share the lowest prediction, the mean of their times: what picking one of them
    blindly costs on average, whatever the order of the rows.
    """
    lowest = min(x.predicted_s for x in allowed)
    picked = [x.measured_s for x in allowed if x.predicted_s == lowest]
    return float(np.mean(picked)) / min(x.measured_s for x in group)


def _groups(rows: Iterable[Scored]) -> list[list[_Layout]]:
    """Layouts by group; groups and layouts in the order of their keys."""
    found: defaultdict[tuple[object, ...], defaultdict[tuple[str, float], list[Scored]]]
    found = defaultdict(lambda: defaultdict(list))
    for r in rows:
        if r.measured_step_s is not None and r.predicted_step_s is not None:
            where = (r.source, r.gpu, r.model, r.num_gpus)
            job = (r.global_batch, r.seq_len, r.precision)
            found[(*where, *job, r.group)][r.label, r.predicted_step_s].append(r)
    return [
        [_merged(predicted, layouts[label, predicted]) for label, predicted in sorted(layouts)]
        for _, layouts in sorted(found.items(), key=lambda item: item[0])
    ]


def _merged(predicted_s: float, repeats: Sequence[Scored]) -> _Layout:
    measured = [r.measured_step_s for r in repeats if r.measured_step_s is not None]
    return _Layout(predicted_s, float(np.median(measured)), all(r.fits for r in repeats))


def _column(group: Sequence[_Layout], name: str) -> Array:
    return np.array([getattr(x, name) for x in group])
