"""docs/lab.md from the runs of `tests.lab.bench`. Pure: rows in, text out."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tests.accuracy.loop import rank_correlation

Rows = Sequence[dict[str, Any]]
TARGET_ERROR, TARGET_PICK, TARGET_GAIN = 0.10, 0.03, 3.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A layout in one order, over all rounds."""

    layout: str
    order: str
    nic: str
    predicted: float
    measured: float
    """Median of all its steps."""
    noise: float
    """Largest distance between its rounds' medians, relative to them."""
    parts: dict[str, tuple[float, float]]
    """Component -> predicted and measured, means over ranks."""

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted / self.measured - 1


def gather(rows: Rows) -> dict[tuple[str, str], Seen]:
    """(layout, order) -> what was seen of it."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["layout"], row["order"]), []).append(row)
    found = {}
    for (layout, order), own in groups.items():
        medians = [statistics.median(row["steps"]) for row in own]
        middle = statistics.median(s for row in own for s in row["steps"])
        names = own[0]["parts"]
        found[layout, order] = Seen(
            layout=layout,
            order=order,
            nic=own[0]["nic"],
            predicted=own[0]["predicted"],
            measured=middle,
            noise=max((abs(a - b) / middle for a, b in combinations(medians, 2)), default=0.0),
            parts={
                name: (
                    names[name][0],
                    statistics.mean(row["parts"][name][1] for row in own),
                )
                for name in names
            },
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a topology showed."""

    pick: Seen
    best: Seen
    default: Seen
    """The pick's layout in the hosts' order."""
    errors: list[float]
    correlation: float
    noise: float
    """Median over layouts."""
    gain: tuple[Seen, Seen]
    """The layout that the map makes fastest: in the hosts' order, and mapped."""


def judge(found: dict[tuple[str, str], Seen]) -> Verdict:
    """Of all layouts and orders."""
    every = list(found.values())
    mapped = [s for s in every if s.order == "map"]
    pick = min(mapped, key=lambda s: s.predicted)
    pairs = [(found[s.layout, "default"], s) for s in mapped]
    return Verdict(
        pick=pick,
        best=min(every, key=lambda s: s.measured),
        default=found[pick.layout, "default"],
        errors=sorted(abs(s.error) for s in every),
        correlation=rank_correlation([s.predicted for s in every], [s.measured for s in every]),
        noise=statistics.median(s.noise for s in every),
        gain=max(pairs, key=lambda pair: pair[0].measured / pair[1].measured),
    )


def summary(verdicts: dict[str, Verdict]) -> list[str]:
    """A row per topology."""
    lines = [
        "| topology | our pick | measured | best measured | pick over best | its noise "
        "| same layout, hosts' order | median error | p90 | rank corr. | noise |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, v in verdicts.items():
        over = v.pick.measured / v.best.measured - 1
        noise = max(v.pick.noise, v.best.noise)
        p90 = v.errors[round(0.9 * (len(v.errors) - 1))]
        lines.append(
            f"| {name} | {v.pick.layout} | {v.pick.measured:.3f} s | {v.best.measured:.3f} s "
            f"({v.best.layout}, {v.best.order}) | {over:+.1%} | {noise:.1%} "
            f"| {v.default.measured:.3f} s | {statistics.median(v.errors):.1%} | {p90:.1%} "
            f"| {v.correlation:.3f} | {v.noise:.1%} |"
        )
    return lines


def brief(verdicts: dict[str, Verdict]) -> str:
    """For the README."""
    lines = [
        "| topology | pick over best measured | noise | median error | most that the map wins |",
        "|---|---|---|---|---|",
    ]
    for name, v in verdicts.items():
        before, after = v.gain
        lines.append(
            f"| {name} | {v.pick.measured / v.best.measured - 1:+.1%} "
            f"| {max(v.pick.noise, v.best.noise):.1%} | {statistics.median(v.errors):.1%} "
            f"| {before.measured / after.measured:.2f} |"
        )
    return "\n".join(lines)


def gains(verdicts: dict[str, Verdict]) -> list[str]:
    """Where the map wins most, per topology."""
    lines = [
        "| topology | layout | hosts' order | mapped | gain | predicted gain |",
        "|---|---|---|---|---|---|",
    ]
    for name, v in verdicts.items():
        before, after = v.gain
        lines.append(
            f"| {name} | {after.layout} | {before.measured:.3f} s | {after.measured:.3f} s "
            f"| {before.measured / after.measured:.2f} | {before.predicted / after.predicted:.2f} |"
        )
    return lines


def misses(verdicts: dict[str, Verdict]) -> list[str]:
    """Targets that were not reached, in words."""
    lines = []
    for name, v in verdicts.items():
        over = v.pick.measured / v.best.measured - 1
        noise = max(v.pick.noise, v.best.noise)
        error = statistics.median(v.errors)
        if over > max(TARGET_PICK, noise):
            lines.append(f"- {name}: the pick is {over:.1%} over the best, noise {noise:.1%}")
        if error > TARGET_ERROR:
            lines.append(f"- {name}: the median error is {error:.1%}")
    return lines or ["None."]


def details(found: dict[tuple[str, str], Seen]) -> list[str]:
    """A row per layout: predicted / measured seconds."""
    lines = [
        "| layout | hosts' order | error | noise | mapped | error | noise | compute | p2p "
        "| collective | idle |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    layouts = dict.fromkeys(layout for layout, _ in found)
    for layout in layouts:
        cells = [layout]
        for order in ("default", "map"):
            s = found[layout, order]
            cells += [f"{s.predicted:.3f} / {s.measured:.3f}", f"{s.error:+.0%}", f"{s.noise:.0%}"]
        cells += [f"{a * 1e3:.0f} / {b * 1e3:.0f}" for a, b in s.parts.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(results: dict[str, Rows], intro: str, notes: str) -> str:
    """Content of docs/lab.md."""
    found = {name: gather(rows) for name, rows in results.items()}
    verdicts = {name: judge(each) for name, each in found.items()}
    parts = [
        "# Unlike hosts: predicted against measured",
        intro,
        *summary(verdicts),
        "",
        "Where the map of ranks wins most:",
        "",
        *gains(verdicts),
        "",
        "Targets (the pick within 3 % of the best or within the noise of the two, median error "
        "10 %) that were missed:",
        "",
        *misses(verdicts),
        "",
        notes,
    ]
    for name, each in found.items():
        parts += [
            f"\n## {name}\n",
            "Seconds predicted / measured; components in ms of the mapped layout. Waiting for "
            "another host counts as p2p or collective throughout: clocks of two hosts are not one.",
            "",
        ]
        parts += details(each)
    return "\n".join(parts) + "\n"
