"""The page about free choices: docs/free-choice.md."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from planner.config import ParallelConfig
from planner.plan import Candidate
from tests.accuracy.free_choice_job import (
    SEEN,
    SOFTWARE,
    SPACE,
    Answer,
    differing,
    seen_values,
    unseen,
)

NARROWINGS = (SPACE, SOFTWARE, SEEN)
SHOWN = 15
HEAD = """\
# What the planner would choose for published jobs

Written by `python -m tests.accuracy.free_choice RUNS.csv`; do not edit.

**A predicted gain is not a measurement.** Nobody ran these choices. Both sides of every comparison
are predictions of the model whose errors `accuracy-published.md` states, with the same assumptions
about the software; a search finds the layouts that its model flatters, so expect less.

A job is a model, nodes, a global batch, a sequence length, a precision and a training software, of
trusted rows. Its reference is the layout that was measured fastest. Most jobs have few layouts, and
many of these were fixed for other reasons than speed: vTrain always recomputes, llm-foundry has
FSDP alone, and blank recomputation is read as none."""


def page(answers: Sequence[Answer]) -> str:
    """All of it."""
    parts = [
        HEAD,
        _jobs(answers),
        "## Predicted gain over the layout that was measured fastest",
        _gains(answers),
        "By software, " + SOFTWARE + ":",
        _by_software(answers),
        "## What differs",
        "Share of the choices that differ from the fastest published layout on an axis.",
        _axes(answers),
        "Mean share of the published step that a choice saves, by term:",
        _terms(answers),
        "## What no run checks",
        "Choices with a value that no trusted run of any software has, or none of the job's; and "
        "choices that rest on costs which the model hides entirely.",
        _unchecked(answers),
        "## Published layouts that the search refuses",
        "Of the layouts of all jobs, one for each distinct layout; by the first reason. These ran: "
        "where the reason is memory, the memory model or its assumptions are wrong for them.",
        _refused(answers),
        f"## The {SHOWN} largest gains, {SOFTWARE}",
        "Terms: what they save or cost, of the published step, from 3 % on.",
        _largest(answers),
    ]
    return "\n\n".join(parts) + "\n"


def _jobs(answers: Sequence[Answer]) -> str:
    layouts = [len(a.published) for a in answers]
    runs = sum(len(a.job.runs) for a in answers)
    lines = [
        f"{runs:,} rows are {len(answers):,} jobs with {sum(layouts):,} layouts; "
        f"{sum(n > 1 for n in layouts)} jobs have more than one."
    ]
    parts = sum(not a.job.whole_nodes for a in answers)
    lines += [f"{parts} jobs fill no whole nodes and are left out."] if parts else []
    return " ".join(lines)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *lines])


def quantiles(values: Sequence[float]) -> list[str]:
    """Least, 10 %, median, 90 %, most."""
    if not values:
        return [""] * 5
    return [f"{q:+.1%}" for q in np.quantile(values, (0, 0.1, 0.5, 0.9, 1))]


_QUANTILES = ("least", "10 %", "median", "90 %", "most")


def _with(answers: Sequence[Answer], name: str) -> list[Answer]:
    return [a for a in answers if name in a.chosen]


def _gains(answers: Sequence[Answer]) -> str:
    rows = []
    for name in NARROWINGS:
        mine = _with(answers, name)
        gains = [a.gain(name) for a in mine]
        same = sum(not differing(a.fastest.config, a.chosen[name].config) for a in mine)
        slower = sum(g < -0.001 for g in gains)
        refused = sum(name in a.errors for a in answers)
        counts = (len(mine), refused, same, slower)
        rows.append((name, *map(str, counts), *quantiles(gains)))
    columns = ("choice among", "jobs", "nothing fits", "same", "slower", *_QUANTILES)
    return table(columns, rows)


def _by_software(answers: Sequence[Answer]) -> str:
    mine = _with(answers, SOFTWARE)
    rows = []
    for software in sorted({a.job.software for a in mine}):
        gains = [a.gain(SOFTWARE) for a in mine if a.job.software == software]
        rows.append((software, str(len(gains)), *quantiles(gains)))
    return table(("software", "jobs", *_QUANTILES), rows)


def _axes(answers: Sequence[Answer]) -> str:
    counts = {
        name: Counter(
            axis
            for a in _with(answers, name)
            for axis in differing(a.fastest.config, a.chosen[name].config)
        )
        for name in NARROWINGS
    }
    axes = [axis for axis, _ in counts[SPACE].most_common()]
    rows = [
        (name, *(f"{counts[name][x] / max(1, len(_with(answers, name))):.0%}" for x in axes))
        for name in NARROWINGS
    ]
    return table(("choice among", *axes), rows)


def saved(answer: Answer, choice: Candidate) -> dict[str, float]:
    """Share of the fastest published step that each term of the choice saves."""
    best = answer.fastest
    return {
        term: (best.terms.get(term, 0.0) - seconds) / best.step_s
        for term, seconds in choice.cost.terms.items()
    }


def _terms(answers: Sequence[Answer]) -> str:
    means = {}
    for name in NARROWINGS:
        mine = _with(answers, name)
        total: Counter[str] = Counter()
        for a in mine:
            total.update(saved(a, a.chosen[name]))
        means[name] = {term: value / len(mine) for term, value in total.items()} if mine else {}
    terms = sorted(means[SPACE], key=lambda t: -abs(means[SPACE][t]))
    rows = [(name, *(f"{means[name].get(t, 0.0):+.1%}" for t in terms)) for name in NARROWINGS]
    return table(("choice among", *terms), rows)


def _unchecked(answers: Sequence[Answer]) -> str:
    runs = [r for a in answers for r in a.job.runs]
    of_software = seen_values(runs)
    anywhere: dict[str, set[str]] = {}
    for values in of_software.values():
        for axis, found in values.items():
            anywhere.setdefault(axis, set()).update(found)
    counts: dict[str, Counter[str]] = {}
    for name in NARROWINGS:
        counts[name] = Counter()
        for a in _with(answers, name):
            choice = a.chosen[name]
            marks = [f"no run has its {x}" for x in unseen(choice.config, anywhere)]
            own = unseen(choice.config, of_software[a.job.software])
            marks += [f"no run of its software has its {x}" for x in own]
            counts[name].update([*marks, *assumptions(a, choice)])
    found = Counter[str]()
    for each in counts.values():
        found.update(each)
    rows = [
        (mark, *(str(counts[name][mark]) for name in NARROWINGS)) for mark, _ in found.most_common()
    ]
    return table(("choices", *NARROWINGS), rows)


def assumptions(answer: Answer, choice: Candidate) -> list[str]:
    """What a choice rests on that deserves doubt."""
    c, terms, step_s = choice.config, choice.cost.terms, choice.cost.step_s
    run = answer.job.run
    reached = c.tp * c.cp > run.group.devices_per_domain
    tokens = c.micro_batch * run.job.seq_len / c.cp
    found = {
        "context parallel at no cost": c.cp > 1 and terms.get("context", 0.0) < 1e-4 * step_s,
        "context parallel between nodes": c.cp > 1 and reached,
        "tensor parallel between nodes": c.tp > run.group.devices_per_domain,
        "ZeRO-2 or 3, reduced at under 1 % of the step": c.zero > 1
        and terms.get("reduction", 0.0) < 0.01 * step_s,
        "ZeRO-3 in a pipeline": c.zero == 3 and c.pp > 1,
        "one layer per virtual stage": c.vpp > 1 and c.num_stages >= run.model.num_layers,
        "over 32,768 tokens in a micro-batch": tokens > 2**15,
        "experts not spread (ep 1)": run.model.num_experts > 0 and c.ep == 1,
    }
    return [mark for mark, holds in found.items() if holds]


def _refused(answers: Sequence[Answer]) -> str:
    reasons: dict[str, Counter[str]] = {}
    for a in answers:
        for p in a.published:
            why = p.refused[0] if p.refused else "not refused"
            reasons.setdefault(why, Counter())[a.job.software] += 1
    software = sorted({a.job.software for a in answers})
    ordered = sorted(reasons, key=lambda why: -reasons[why].total())
    return table(
        ("reason", "layouts", *software),
        [
            (why, str(reasons[why].total()), *(str(reasons[why][s] or "") for s in software))
            for why in ordered
        ],
    )


def _largest(answers: Sequence[Answer]) -> str:
    mine = sorted(_with(answers, SOFTWARE), key=lambda a: -a.gain(SOFTWARE))
    shown, models = [], Counter[str]()
    for a in mine:  # one of a family of like jobs says enough
        family = f"{a.job.software} {a.job.run.model.hidden_size} {a.job.run.model.num_experts}"
        models[family] += 1
        if models[family] <= 2:
            shown.append(a)
    columns = (
        "job", "published", "measured", "predicted", "choice", "predicted", "gain", "terms",
    )  # fmt: skip
    return table(columns, [_example(a, a.chosen[SOFTWARE]) for a in shown[:SHOWN]])


def _example(answer: Answer, choice: Candidate) -> tuple[str, ...]:
    run, best = answer.job.run, answer.fastest
    terms = sorted(saved(answer, choice).items(), key=lambda item: -abs(item[1]))
    return (
        f"{best.run.cells.get('model', '')}, {run.num_devices} x {run.group.device.name}, "
        f"batch {run.job.global_batch:,} x {run.job.seq_len:,}, {answer.job.software}",
        _layout(best.config),
        f"{best.measured_s:.3g} s",
        f"{best.step_s:.3g} s",
        _layout(choice.config),
        f"{choice.cost.step_s:.3g} s",
        f"{answer.gain(SOFTWARE):+.0%}",
        ", ".join(f"{term} {share:+.0%}" for term, share in terms if abs(share) >= 0.03),
    )


def _layout(config: ParallelConfig) -> str:
    return config.label if config.schedule == "1f1b" else f"{config.label} {config.schedule}"
