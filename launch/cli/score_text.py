"""A score as text of at most 80 columns. Pure: records in, lines out."""

from collections.abc import Mapping, Sequence

from planner.choice import Choice
from planner.figures import Figures, FitErrors, Memory, Share, StepTime
from planner.scoring import GroupFigures, Score, WorstRow
from planner.stats import Range

NONE = "-"
NUM_WORST, NUM_GROUPS, NUM_ROWS = 10, 10, 3
HUGE = 100
"""Ratios from here on are shown by their magnitude."""


def percent(value: float | None, *, sign: bool = False) -> str:
    """`12.3%`; `1e+05%` of what fits no column; a dash for nothing."""
    if value is None:
        return NONE
    if value >= HUGE:
        return f"{100 * value:.0e}%"
    return f"{value:+.1%}" if sign else f"{value:.1%}"


def number(value: float | None, digits: int = 3) -> str:
    """`0.934`; a dash for nothing."""
    if value is None:
        return NONE
    return f"{value:.{digits}f}" if value < HUGE else f"{value:.0e}"


def cut(text: str, width: int) -> str:
    """At most `width` characters, the cut shown."""
    return text if len(text) <= width else f"{text[: width - 2]}.."


def _counted(number: int, noun: str) -> str:
    """`1 row`, `1,668 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def heading(score: Score) -> list[str]:
    """How many rows there were, and what became of them."""
    of = f"{score.modelled:,} of {_counted(score.complete, 'complete row')}"
    share = f" ({score.modelled_share:.1%})" if score.modelled_share is not None else ""
    apart = score.modelled - score.trusted
    lines = [f"Predicted {of}{share}, {_counted(score.rows, 'row')} in all"]
    lines.append(
        f"Scored {_counted(score.trusted, 'trusted row')}"
        + (f"; {apart:,} that are not trusted are apart" if apart else "")
    )
    return lines


def overall(step: StepTime, choice: Choice) -> list[str]:
    """The main figures and their ranges."""
    p, r = percent, number
    title = f"Step time, {_counted(step.rows, 'row')}"
    ranged = any((step.median_ape_range, step.p90_ape_range, step.bias_range, step.spearman_range))
    lines = [f"{title:<50}{'95% range':>9}" if ranged else title]
    lines += [
        _line("median error", p(step.median_ape), _span(step.median_ape_range)),
        _line("90th percentile", p(step.p90_ape), _span(step.p90_ape_range)),
        _line("bias, + is too slow", p(step.bias, sign=True), _span(step.bias_range, sign=True)),
        _line("rank correlation", r(step.spearman), _plain_span(step.spearman_range)),
    ]
    if not choice.groups:
        return lines
    groups = _counted(choice.groups, "group")
    lines += ["", f"Choice, {groups} of {choice.layouts:,} layouts"]
    lines += ["  regret: the layout said fastest, as measured, over the fastest measured"]
    lines += [
        _line("regret, mean", r(choice.regret_geomean), _plain_span(choice.regret_geomean_range)),
        _line("regret, median", r(choice.regret_median)),
        _line("regret, worst", r(choice.regret_max)),
        _line("regret, said to fit", r(choice.regret_fitting_geomean)),
        _line("rank correlation", r(choice.spearman_median)),
    ]
    return lines


def _line(name: str, value: str, span: str = "") -> str:
    return f"  {name:<22}{value:>9}   {span:>24}".rstrip()


def _span(value: Range | None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    return f"{percent(value[0], sign=sign)} to {percent(value[1], sign=sign)}"


def _plain_span(value: Range | None) -> str:
    return f"{number(value[0])} to {number(value[1])}" if value is not None else ""


_COLUMNS = f"{'rows':>6}{'median':>9}{'p90':>9}{'bias':>9}{'rank':>7}"


def step_table(
    title: str, named: Sequence[tuple[str, StepTime]], choices: Sequence[Choice] = ()
) -> list[str]:
    """A line of step-time figures for each name, with the regret where there are choices."""
    lines = [f"{cut(title, 29):<30}{_COLUMNS}{'regret' if choices else '':>8}".rstrip()]
    for n, (name, step) in enumerate(named):
        regret = number(choices[n].regret_geomean, 2) if choices else ""
        lines.append(
            f"  {cut(name, 27):<28}{step.rows:>6,}{percent(step.median_ape):>9}"
            f"{percent(step.p90_ape):>9}{percent(step.bias, sign=True):>9}"
            f"{number(step.spearman, 2):>7}{regret:>8}".rstrip()
        )
    return lines


def sources(score: Score) -> list[str]:
    """Step time per source, and of the rows that are not trusted."""
    named = [(name, f) for name, f in score.per_source.items() if f.step_time.rows]
    if score.untrusted.step_time.rows:
        named.append(("(not trusted)", score.untrusted))
    return step_table(
        "Per source", [(name, f.step_time) for name, f in named], [f.choice for _, f in named]
    )


def groups(score: Score, columns: Sequence[str]) -> list[str]:
    """The groups whose choice is worst, then those of the largest error."""
    known = [g for g in score.per_group if g.step_time.rows]
    shown = sorted(known, key=_badness)[:NUM_GROUPS]
    named = [(_group_name(g.group), g.step_time) for g in shown]
    lines = step_table(f"Per {', '.join(columns)}", named, [g.choice for g in shown])
    if len(shown) < len(known):
        lines.append(f"  {len(shown)} of {len(known):,} groups, the largest regret first")
    return lines if shown else []


def _group_name(values: Sequence[str]) -> str:
    """The values; where they are too long, the longest is cut and the others stay whole."""
    longest = max(range(len(values)), key=lambda n: len(values[n]))
    room = 27 - sum(len(v) + 1 for n, v in enumerate(values) if n != longest)
    return " ".join(cut(v, max(room, 6)) if n == longest else v for n, v in enumerate(values))


def _badness(group: GroupFigures) -> tuple[float, float, tuple[str, ...]]:
    return -(group.choice.regret_geomean or 0.0), -(group.step_time.median_ape or 0.0), group.group


def memory_summary(memory: Memory) -> list[str]:
    """One paragraph on peak memory."""
    p, bias_range = percent, _span(memory.bias_range, sign=True)
    under, under_range = memory.underestimates_over_5pct, memory.underestimates_over_5pct_range
    return [
        f"Peak memory, {_counted(memory.rows, 'row')}",
        _line("median error", p(memory.median_ape), _span(memory.median_ape_range)),
        _line("90th percentile", p(memory.p90_ape), _span(memory.p90_ape_range)),
        _line("bias, + is too much", p(memory.bias, sign=True), bias_range),
        _line("more than 5% too low", p(under), _span(under_range)),
    ]


def memory_table(per_source: Sequence[tuple[str, Figures]]) -> list[str]:
    """Peak memory per source."""
    head = f"{'rows':>6}{'median':>9}{'p90':>9}{'bias':>9}{'5% too low':>13}"
    lines = [f"{'Memory per source':<30}{head}"]
    for name, figures in per_source:
        m = figures.memory
        lines.append(
            f"  {cut(name, 27):<28}{m.rows:>6,}{percent(m.median_ape):>9}{percent(m.p90_ape):>9}"
            f"{percent(m.bias, sign=True):>9}{percent(m.underestimates_over_5pct):>13}"
        )
    return lines


def fit_lines(errors: FitErrors) -> list[str]:
    """What fits and what does not, against what ran and what failed."""
    lines = ["What fits"]
    lines.append(f"  ran, but said not to fit    {_share_words(errors.feasible_called_oom)}")
    if errors.failed_called_feasible.of:
        lines.append(f"  failed, but said to fit     {_share_words(errors.failed_called_feasible)}")
    return lines


def _share_words(share: Share) -> str:
    return f"{share.count:,} of {share.of:,}, {percent(share.share)}" if share.of else NONE


def terms(score: Score) -> list[str]:
    """Step time by the largest term of the prediction."""
    return step_table("By largest term", list(score.per_term.items()))


def worst(rows: Sequence[WorstRow]) -> list[str]:
    """The rows that are furthest off, two lines each."""
    lines = [f"Furthest off{'measured':>30}{'predicted':>12}{'error':>9}  largest term"]
    for w in rows:
        share = f" {w.term_share:.0%}" if w.term_share is not None else ""
        lines.append(
            f"  {cut(w.row_id, 27):<28}{w.measured_step_s:>10.4g} s{w.predicted_step_s:>10.4g} s"
            f"{w.error:>+9.1%}  {cut(w.term or NONE, 10)}{share}"
        )
        where = f"{w.source}: {w.model}, {w.num_gpus} {w.gpu}, {w.label}"
        lines.append(f"    {cut(where.strip(), 76)}")
    return lines


def unmodelled(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """Rows left out, by what comes before the colon of their reasons; of each the first rows, with
    what is said of them alone."""
    found: dict[str, list[str]] = {}
    for reason, rows in reasons.items():
        what, _, details = reason.partition(": ")
        said = f": {details}" if details else ""
        found.setdefault(what, []).extend(f"{row}{said}" for row in rows)
    lines = [f"Not predicted, {_counted(sum(map(len, found.values())), 'row')}"]
    for what, rows in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"  {len(rows):>6,}  {cut(what, 70)}")
        lines += [f"          {cut(row, 70)}" for row in rows[:NUM_ROWS]]
        if len(rows) > NUM_ROWS:
            lines.append(f"          and {len(rows) - NUM_ROWS:,} more")
    return lines


def report(score: Score, columns: Sequence[str], *, memory: bool) -> list[str]:
    """The whole text; memory per source where `memory`."""
    parts = [heading(score), overall(score.step_time, score.choice)]
    if score.per_source:
        parts.append(sources(score))
    parts.append(groups(score, columns))
    parts.append(memory_summary(score.memory))
    if memory:
        parts.append(memory_table([(s, f) for s, f in score.per_source.items() if f.memory.rows]))
    parts.append(fit_lines(score.fit_errors))
    if score.worst:
        parts += [terms(score), worst(score.worst[:NUM_WORST])]
    if score.unmodelled:
        parts.append(unmodelled(score.unmodelled_rows))
    return "\n\n".join("\n".join(part) for part in parts if part).splitlines()
