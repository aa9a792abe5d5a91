"""The page docs/accuracy-published.md as text. Pure: scores in, Markdown out."""

from collections.abc import Sequence
from typing import Literal

from launch.published.cells import brief
from planner.figures import Figures, StepTime
from planner.scoring import Score
from planner.stats import Range
from profiler.codec import record

NONE = "-"


@record
class Target:
    """A bar for a figure of the score."""

    what: str
    figure: str
    """Path in the score: `step_time.median_ape`."""
    bar: float
    of: Literal["all", "source left out", "model left out"] = "all"
    """Whether `figure` is of the score, or of the `HeldOut` of the fit."""
    source: str | None = None
    """Of this source alone."""
    better: Literal["lower", "higher"] = "lower"
    unit: Literal["percent", "number"] = "percent"


@record
class Constant:
    """A fitted constant and the range that the data leave it."""

    name: str
    value: float
    low: float
    high: float
    meaning: str
    """With its unit; empty for a member, `name[member]`."""
    against_prior: float
    """Width of the range, in logarithms, against the prior's."""


@record
class HeldOut:
    """Errors of predictions by constants fitted without the rows predicted."""

    pooled: StepTime
    of: dict[str, StepTime]
    """By what was left out."""
    per_source: dict[str, StepTime]
    """The same predictions by their source."""

    @property
    def worst_source(self) -> float | None:
        """The largest median of a source."""
        medians = [s.median_ape for s in self.per_source.values() if s.median_ape is not None]
        return max(medians, default=None)


@record
class Fit:
    """What fitting found: constants, and the errors on what each fit had not seen."""

    constants: tuple[Constant, ...] = ()
    leave_one_source_out: HeldOut | None = None
    leave_one_model_out: HeldOut | None = None


NO_FIT = Fit()
IDENTIFIED = 0.95
"""A range that is at least this much of the prior's is the prior's: the runs say nothing of it."""


def page(
    score: Score, fit: Fit, targets: Sequence[Target], *, picture: str, notes: str = ""
) -> str:
    """The whole page. `picture` is the name of the scatter beside it."""
    sections = (
        _head(score, picture),
        targets_section(score, fit, targets),
        per_source_section(score),
        held_out_section("source", fit.leave_one_source_out),
        held_out_section("model", fit.leave_one_model_out),
        memory_section(score),
        worst_section(score),
        unmodelled_section(score),
        constants_section(fit.constants),
        notes.strip(),
        _DEFINITIONS,
    )
    return "\n\n".join(s for s in sections if s) + "\n"


def summary(score: Score, fit: Fit) -> str:
    """A few lines for the README."""
    held_out = (("model", fit.leave_one_model_out), ("source", fit.leave_one_source_out))
    step, memory = score.step_time, score.memory
    sources = sum(f.step_time.rows > 0 for f in score.per_source.values())
    lines = [
        f"{step.rows:,} runs that {sources} sources published:",
        "",
        f"- step time: median error {percent(step.median_ape)}, 90th percentile "
        f"{percent(step.p90_ape)}",
    ]
    for what, found in held_out:
        if found:
            pooled = found.pooled
            lines.append(
                f"- the same of a {what} that took no part in the fit: "
                f"{percent(pooled.median_ape)}, {percent(pooled.p90_ape)}"
            )
    return "\n".join(
        [
            *lines,
            "- choice: the layout predicted fastest takes "
            f"{number(score.choice.regret_geomean)} times as long as the fastest",
            f"  measured (mean of {score.choice.groups} groups of layouts)",
            f"- peak memory: median error {percent(memory.median_ape)} over {memory.rows} readings",
        ]
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table; columns of numbers to the right."""
    marks = ["---:" if _numbers([row[n] for row in rows]) else "---" for n in range(len(head))]
    return "\n".join([_row(head), f"|{'|'.join(marks)}|", *map(_row, rows)])


def _numbers(cells: Sequence[str]) -> bool:
    return all(cell[:1] in "+-0123456789" for cell in cells)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"


def percent(value: float | None, *, sign: bool = False) -> str:
    """`12.3 %`."""
    if value is None:
        return NONE
    return f"{100 * value:+.1f} %" if sign else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """`0.934`."""
    return NONE if value is None else f"{value:.3f}"


def with_range(value: float | None, span: Range | None, *, unit: str = "%") -> str:
    """`12.3 % (11.5 to 13.0)`; a `unit` of `+%` shows signs, an empty one is a plain number."""
    if unit == "":
        return f"{number(value)} ({span[0]:.3f} to {span[1]:.3f})" if span else number(value)
    sign = unit == "+%"
    text = percent(value, sign=sign)
    form = "+.1f" if sign else ".1f"
    return f"{text} ({100 * span[0]:{form}} to {100 * span[1]:{form}})" if span else text


def _head(score: Score, picture: str) -> str:
    step = score.step_time
    return f"""# Predicted against published runs

Written by `python -m tests.accuracy.published`; do not edit. {score.rows:,} measured training runs
that others published, {score.modelled:,} of them predicted
({percent(score.modelled_share)} of the {score.complete:,} that state what a prediction needs),
{score.trusted:,} of these trusted and scored here.

- step time: median error {with_range(step.median_ape, step.median_ape_range)}, 90th percentile
  {with_range(step.p90_ape, step.p90_ape_range)}, bias {
        with_range(step.bias, step.bias_range, unit="+%")
    }
- order: rank correlation {with_range(step.spearman, step.spearman_range, unit="")} over all rows,
  {number(score.choice.spearman_median)} within a group of competing layouts (median)
- choice: the layout predicted fastest takes
  {with_range(score.choice.regret_geomean, score.choice.regret_geomean_range, unit="")} times as
  long as the fastest measured (geometric mean of {score.choice.groups:,} groups), at worst
  {number(score.choice.regret_max)}
- peak memory: median error {percent(score.memory.median_ape)} over {score.memory.rows:,} rows

![Predicted against measured step time and peak memory]({picture})"""


def reached(score: Score, fit: Fit, target: Target) -> tuple[float | None, Range | None]:
    """The figure of a target and, where it has one, its range."""
    node: object = {
        "all": score,
        "source left out": fit.leave_one_source_out,
        "model left out": fit.leave_one_model_out,
    }[target.of]
    if node is None:
        return None, None
    if target.source is not None:
        if target.source not in score.per_source:
            return None, None
        node = score.per_source[target.source]
    *path, last = target.figure.split(".")
    for name in path:
        node = getattr(node, name)
    return getattr(node, last), getattr(node, f"{last}_range", None)


def met(value: float | None, target: Target) -> bool:
    """Whether the bar is reached; nothing measured reaches no bar."""
    if value is None:
        return False
    return value <= target.bar if target.better == "lower" else value >= target.bar


def targets_section(score: Score, fit: Fit, targets: Sequence[Target]) -> str:
    """Targets beside what was reached."""
    rows = []
    for target in targets:
        value, span = reached(score, fit, target)
        unit = "%" if target.unit == "percent" else ""
        bar = percent(target.bar) if unit else number(target.bar)
        limit = f"{'at most' if target.better == 'lower' else 'at least'} {bar}"
        said = "yes" if met(value, target) else "**no**"
        what = f"{target.what}, {target.source}" if target.source else target.what
        rows.append((what, limit, with_range(value, span, unit=unit), said))
    if not rows:
        return ""
    return f"## Targets\n\n{table(('figure', 'target', 'reached', 'met'), rows)}"


_STEP_HEAD = ("rows", "median", "p90", "bias", "rank correlation")


def _step_cells(step: StepTime) -> tuple[str, ...]:
    return (
        f"{step.rows:,}",
        with_range(step.median_ape, step.median_ape_range),
        with_range(step.p90_ape, step.p90_ape_range),
        with_range(step.bias, step.bias_range, unit="+%"),
        with_range(step.spearman, step.spearman_range, unit=""),
    )


def per_source_section(score: Score) -> str:
    """Step time of each source with bootstrap ranges, and of what is not trusted."""
    named: list[tuple[str, Figures]] = [
        (s, f) for s, f in score.per_source.items() if f.step_time.rows
    ]
    if score.untrusted.step_time.rows:
        named.append(("(not trusted, in no other figure)", score.untrusted))
    rows = [
        (
            brief(name) if not name.startswith("(") else name,
            *_step_cells(f.step_time),
            f"{f.choice.groups:,}",
            with_range(f.choice.regret_geomean, f.choice.regret_geomean_range, unit=""),
        )
        for name, f in named
    ]
    head = ("source", *_STEP_HEAD, "groups", "regret")
    return f"## Step time per source\n\n95 % bootstrap ranges in brackets.\n\n{table(head, rows)}"


def held_out_section(what: str, found: HeldOut | None) -> str:
    """Errors on each source or model by constants fitted without it."""
    title = f"## Leave one {what} out"
    if found is None:
        return f"{title}\n\nNot computed."
    medians = sorted(s.median_ape for s in found.of.values() if s.median_ape is not None)
    rows = [("all together", *_step_cells(found.pooled))]
    rows += [(brief(name), *_step_cells(found.of[name])) for name in sorted(found.of)]
    lead = (
        f"Constants are fitted without the {what}, which is then predicted with what was known of "
        f"its hardware and software before any run was read. Median over the {len(found.of)} "
        f"{what}s of their median errors: {percent(_middle(medians))}; worst: "
        f"{percent(medians[-1] if medians else None)}."
    )
    parts = [title, lead, table(("left out", *_STEP_HEAD), rows)]
    if what != "source":
        named = [(brief(name), *_step_cells(found.per_source[name])) for name in found.per_source]
        parts += ["The same predictions by source:", table(("source", *_STEP_HEAD), named)]
    return "\n\n".join(parts)


def _middle(values: Sequence[float]) -> float | None:
    """Median of sorted values."""
    if not values:
        return None
    n = len(values)
    return (values[(n - 1) // 2] + values[n // 2]) / 2


def memory_section(score: Score) -> str:
    """Peak memory per source, and what is said to fit."""
    named = [("all", score.memory)]
    named += [(s, f.memory) for s, f in score.per_source.items() if f.memory.rows]
    rows = [
        (
            brief(name),
            f"{m.rows:,}",
            with_range(m.median_ape, m.median_ape_range),
            with_range(m.p90_ape, m.p90_ape_range),
            with_range(m.bias, m.bias_range, unit="+%"),
            percent(m.underestimates_over_5pct),
        )
        for name, m in named
    ]
    head = ("source", "rows", "median", "p90", "bias", "more than 5 % too low")
    ran = score.fit_errors.feasible_called_oom
    failed = score.fit_errors.failed_called_feasible
    lines = [f"- runs that ran but are said not to fit: {ran.count:,} of {ran.of:,}"
             f" ({percent(ran.share)})"]  # fmt: skip
    if failed.of:
        lines.append(
            f"- runs that failed but are said to fit: {failed.count:,} of {failed.of:,}"
            f" ({percent(failed.share)}); they may have failed for another reason"
        )
    return "\n\n".join(("## Peak memory", table(head, rows), "\n".join(lines)))


def worst_section(score: Score) -> str:
    """The rows furthest off, and errors by the largest term."""
    rows = [
        (
            w.row_id,
            brief(w.source),
            f"{w.model}, {w.num_gpus} {w.gpu}, {w.label}",
            f"{w.measured_step_s:.4g}",
            f"{w.predicted_step_s:.4g}",
            percent(w.error, sign=True),
            f"{w.term or NONE}{'' if w.term_share is None else f' {w.term_share:.0%}'}",
        )
        for w in score.worst
    ]
    head = ("row", "source", "run", "measured, s", "predicted, s", "error", "largest term")
    by_term = [(name, *_step_cells(step)) for name, step in score.per_term.items()]
    return "\n\n".join(
        (
            f"## The {len(rows)} rows furthest off",
            table(head, rows),
            "All trusted rows by the largest term of their prediction:",
            table(("largest term", *_STEP_HEAD), by_term),
        )
    )


def unmodelled_section(score: Score) -> str:
    """Rows that were not predicted, by reason, with the first of their names."""
    if not score.unmodelled:
        return ""
    folded: dict[str, list[str]] = {}
    for reason, ids in score.unmodelled_rows.items():
        folded.setdefault(reason.split(": ", 1)[0], []).extend(ids)
    ordered = sorted(folded.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [
        (reason, f"{len(ids):,}", ", ".join(ids[:4]) + (", ..." if len(ids) > 4 else ""))
        for reason, ids in ordered
    ]
    return f"## Not predicted\n\n{table(('reason', 'rows', 'which'), rows)}"


def constants_section(constants: Sequence[Constant]) -> str:
    """Fitted constants and how well the data fix them."""
    if not constants:
        return "## Fitted constants\n\nNone: all numbers are of the catalogue."
    rows = [
        (
            f"`{c.name}`",
            f"{c.value:.4g}",
            f"{c.low:.4g} to {c.high:.4g}",
            "**prior alone**" if c.against_prior >= IDENTIFIED else f"{c.against_prior:.0%}",
            c.meaning,
        )
        for c in constants
    ]
    alone = sum(c.against_prior >= IDENTIFIED for c in constants)
    lead = (
        "`name[member]` is the constant for one device, network, kernel or software. The range "
        "holds 95 % of what prior and runs leave possible; `of prior` is its width, in logarithms, "
        f"as a share of the prior's. {alone} of {len(constants)} are the prior alone: at least "
        f"{IDENTIFIED:.0%} of its width is left, so these runs do not identify them."
    )
    head = ("constant", "value", "95 % range", "of prior", "meaning")
    return f"## Fitted constants\n\n{lead}\n\n{table(head, rows)}"


_DEFINITIONS = """\
## Definitions

- error: |predicted - measured| / measured; p90: its 0.9 quantile, linear between order statistics
- bias: exp(median(ln(predicted / measured))) - 1; above 0 is predicted too slow, or too large
- rank correlation: Spearman's, ties sharing the mean of their ranks
- group: rows of one source, model, GPU, number of GPUs, global batch, sequence length and precision
- regret: measured time of the layout predicted fastest in its group, over that of the fastest
  measured; equal predictions count with the mean of their times, repeats of a layout with the
  median
- ranges: 95 % percentile bootstrap, 1,000 draws of rows (of groups for regret). Rows of one source
  resemble each other, so a range says how far a figure hangs on these rows; for what is new see
  the errors on what was left out
- furthest off: by |ln(predicted / measured)|"""
