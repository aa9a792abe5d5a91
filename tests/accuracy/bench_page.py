"""The page of planning's speed: docs/benchmarks/planning.md."""

from collections.abc import Sequence
from dataclasses import dataclass, field

GIB = 2.0**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a case must keep; 0: nothing."""

    seconds: float = 0.0
    """Of the whole command."""
    rate: float = 0.0
    """Layouts considered per second of screening, at least."""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """A question: a model on a cluster."""

    model: str
    cluster: str
    batch: int
    seq_len: int
    bar: Bar = field(default_factory=Bar)

    @property
    def label(self) -> str:
        """For a table."""
        return f"{self.model}, {self.cluster}, batch {self.batch:,} x {self.seq_len:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What planning took."""

    seconds: float
    screening_s: float
    considered: int
    screened: int
    """Of those considered, the ones that break no rule."""
    simulated: int
    gap: float
    """How much faster than the choice any layout can be, as a share of its step."""
    layout: str
    peak_bytes: int
    parts: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorRow:
    """The simulator on one program."""

    label: str
    first_s: float
    again_s: float
    one_of_many_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What the whole command took."""

    seconds: float
    cpu_s: float
    peak_bytes: int


Measured = tuple[Case, Answer, Command]


def page(
    *,
    where: str,
    cases: Sequence[Measured],
    growth: Sequence[tuple[Case, Answer]],
    simulator: Sequence[SimulatorRow],
) -> str:
    """All tables."""
    return "\n".join(
        [
            "# Speed of planning",
            "",
            f"One core, {where}. Written by `python -P -m tests.accuracy.bench --write`.",
            "",
            "`make_plan` is called in a process of its own, with timers around its parts; the",
            "whole command starts Python, plans, prints and saves. Its core: seconds that it",
            "computed, fewer than of its clock where others used the machine. Peak memory is the",
            "command's.",
            "",
            *_table(_QUESTIONS, [_question(*m) for m in cases]),
            "",
            "Considered: layouts of the open axes. Screened: those that break no rule, which get a",
            "bound, most also memory and a closed form. Rates are per second of screening, which",
            "includes enumerating. The gap is how much of the step any layout could save at most.",
            "",
            *_table(_COUNTS, [_counts(c, a) for c, a, _ in cases]),
            "",
            "Seconds by part, each without those inside it:",
            "",
            *_parts(cases),
            "",
            *_growth(growth),
            "",
            "## The simulator",
            "",
            "First: schedule, dependencies and times; again: times alone; one of 32 of a structure",
            "at once. Milliseconds.",
            "",
            *_table(
                ("program", "first", "again", "one of 32"),
                [
                    (r.label, *(f"{s * 1e3:.2f}" for s in (r.first_s, r.again_s, r.one_of_many_s)))
                    for r in simulator
                ],
            ),
            "",
        ]
    )


_QUESTIONS = (
    "question", "`make_plan`", "whole command", "bar", "its core", "peak memory", "bar",
)  # fmt: skip
_COUNTS = (
    "question", "considered", "considered/s", "screened", "screened/s", "simulated", "gap",
    "choice",
)  # fmt: skip


def _question(case: Case, answer: Answer, command: Command) -> tuple[str, ...]:
    seconds, num_bytes, bar = command.seconds, command.peak_bytes, case.bar
    return (
        case.label,
        f"{answer.seconds:.2f} s",
        f"{seconds:.2f} s",
        verdict(seconds <= bar.seconds, f"{bar.seconds:g} s") if bar.seconds else "",
        f"{command.cpu_s:.2f} s",
        f"{num_bytes / GIB:.2f} GiB",
        verdict(num_bytes < bar.bytes, f"{bar.bytes / GIB:g} GiB") if bar.bytes else "",
    )


def verdict(kept: bool, bar: str) -> str:
    """A bar, and whether it is kept."""
    return f"{bar}: {'kept' if kept else 'MISSED'}"


def _counts(case: Case, answer: Answer) -> tuple[str, ...]:
    rate = answer.considered / answer.screening_s
    bar = case.bar.rate
    said = f", bar {verdict(rate >= bar, f'{bar / 1e6:g} M')}" if bar else ""
    return (
        case.label,
        f"{answer.considered:,}",
        f"{rate / 1e6:.2f} M{said}",
        f"{answer.screened:,}",
        f"{answer.screened / answer.screening_s / 1e6:.2f} M",
        f"{answer.simulated}",
        f"{answer.gap:.1%}",
        answer.layout,
    )


def _parts(cases: Sequence[Measured]) -> list[str]:
    names = list(dict.fromkeys(name for _, answer, _ in cases for name in answer.parts))
    names = [n for n in names if n != "the rest"] + ["the rest"]
    rows = [
        (case.label, *(f"{answer.parts.get(name, 0.0):.2f}" for name in names))
        for case, answer, _ in cases
    ]
    return _table(("question", *names), rows)


def _growth(growth: Sequence[tuple[Case, Answer]]) -> list[str]:
    first = growth[0][0]
    rows = [
        (
            case.cluster,
            f"{a.considered:,}",
            f"{a.seconds:.2f} s",
            f"{a.screening_s:.2f} s",
            f"{a.screening_s / a.considered * 1e6:.2f} us",
            f"{a.simulated}",
            f"{a.peak_bytes / GIB:.2f} GiB",
        )
        for case, a in growth
    ]
    columns = (
        "cluster", "considered", "`make_plan`", "screening", "screening per layout", "simulated",
        "peak memory",
    )  # fmt: skip
    return [
        "## Growth with the cluster",
        "",
        f"{first.model}, batch {first.batch:,} x {first.seq_len:,}. {slope(growth)}",
        "",
        *_table(columns, rows),
    ]


def slope(growth: Sequence[tuple[Case, Answer]]) -> str:
    """How screening grows with the number of layouts."""
    (_, small), (_, large) = growth[0], growth[-1]
    layouts = large.considered / small.considered
    seconds = large.screening_s / small.screening_s
    return f"{layouts:.1f} times the layouts take {seconds:.1f} times the screening."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (columns, *rows)]
    return [lines[0], f"|{'---|' * len(columns)}", *lines[1:]]
