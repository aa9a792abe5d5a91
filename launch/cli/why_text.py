"""Reasons and their opposites as text of at most 80 columns. Pure: records in, lines out."""

import textwrap

from launch.cli.render import seconds, size
from planner.explain import Explanation, Other, Reason, compare
from planner.objective import relative_cost
from planner.plan import Candidate, Plan
from planner.whynot import Answer, sentence
from planner.wording import percent

WIDTH = 80
_LABEL = 24


def reason_lines(explained: Explanation) -> list[str]:
    """The choices, what limits them, what proves them."""
    lines = ["Why"]
    for reason in explained.reasons:
        lines += _entry(f"{reason.axis} {reason.value}", reason.text)
        others = others_words(reason)
        if others:
            lines += _entry("", others)
    lines += ["", "Limits"]
    for name, text in explained.limits.items():
        lines += _entry(name, text)
    lines += ["", "Proof"]
    for text in explained.proof:
        lines += _entry("", text, indent=2)
    return lines


def others_words(reason: Reason) -> str:
    """`instead 4: +3.1%, 2: +9.0%; 16: no layout fits`."""
    if reason.pinned and not reason.others:
        return "the only value that --pin allows"
    cost = [other_words(o) for o in reason.others if not o.why]
    none = [f"{o.value}: {o.why}" for o in reason.others if o.why]
    parts = [*(["instead " + ", ".join(cost)] if cost else []), *none]
    return "; ".join(parts)


def other_words(other: Other) -> str:
    """`4: +3.1%`."""
    return f"{other.value}: {other.cost or 0.0:+.1%}"


def _entry(label: str, text: str, indent: int = _LABEL) -> list[str]:
    first = f"  {label}".ljust(indent)
    if not first.endswith(" "):
        first += " "
    wrapped = textwrap.wrap(text, WIDTH - indent, break_on_hyphens=False) or [""]
    return [first + wrapped[0], *(" " * indent + line for line in wrapped[1:])]


def pin_words(answer: Answer) -> str:
    """`tp 4, pp 2`."""
    return ", ".join(
        f"{axis} {(',' if axis == 'split' else ' or ').join(v)}" for axis, v in answer.pins.items()
    )


def answer_lines(plan: Plan, answer: Answer) -> list[str]:
    """What a layout with the pins costs, or what forbids it."""
    lines = []
    if answer.dropped:
        lines += textwrap.wrap(f"Set aside: the plan's {', '.join(answer.dropped)}", WIDTH)
        lines.append("")
    if answer.best is None:
        return lines + _forbidden(answer)
    if answer.best.config == plan.chosen.config:
        return [*lines, f"The chosen layout has {pin_words(answer)}: {plan.chosen.config.label}"]
    lines += [f"The best layout with {pin_words(answer)}:", ""]
    if plan.chosen.estimate is None:
        return [*lines, *_rows([("", answer.best)], None)]
    base = plan.chosen.cost.step_s
    lines += _rows([("chosen", plan.chosen), ("", answer.best)], base)
    return [
        *lines,
        "",
        *_verdict(plan, answer.best),
        "",
        *split_pair(plan.chosen, answer.best),
    ]


def _rows(named: list[tuple[str, Candidate]], base: float | None) -> list[str]:
    lines = [f"  {'layout':<43}{'step':>9}{'MFU':>7}{'peak':>10}"]
    for word, c in named:
        cost = word or (f"{c.cost.step_s / base - 1:+.1%}" if base else "")
        name = f"{c.config.label} {c.config.schedule}"
        if len(name) > 42:
            first, *more = textwrap.wrap(name, WIDTH - 2, break_on_hyphens=False)
            lines.append(f"  {first}")
            name = "".join(f"  {part}" for part in more)
        lines.append(
            f"  {name:<43}{seconds(c.cost.step_s):>9}{c.cost.mfu:>7.1%}"
            f"{size(c.cost.peak_bytes):>10}{cost:>9}".rstrip()
        )
    return lines


def _verdict(plan: Plan, other: Candidate) -> list[str]:
    """Slower by how much, and which term is most of it; on other devices, what that is worth."""
    chosen = plan.chosen
    if other.config.num_devices != chosen.config.num_devices:
        return _on_other_devices(plan, other)
    by = other.cost.step_s / chosen.cost.step_s - 1
    differences = {name: b - a for name, (a, b) in compare(chosen, other).items()}
    if abs(by) < 0.0005:
        return ["Equally fast: the simpler layout goes first"]
    sign = 1 if by > 0 else -1
    most = max(differences, key=lambda name: sign * differences[name])
    change = differences[most]
    word = "Slower" if by > 0 else "Faster"
    text = f"{word} by {percent(abs(by))}"
    if sign * change > 0:
        text += f"; most of it {most}, {'+' if change > 0 else '-'}{seconds(abs(change))}"
    lines = [text]
    if by < 0:
        lines.append("The plan did not search where this layout is")
    return lines


def _on_other_devices(plan: Plan, other: Candidate) -> list[str]:
    """Numbers of devices side by side, by what the plan makes least."""
    ours, theirs = plan.chosen.config.num_devices, other.config.num_devices
    step = other.cost.step_s / plan.chosen.cost.step_s
    lines = [
        f"On {theirs:,} devices, the chosen one on {ours:,}: a step takes {step - 1:+.1%}, "
        f"device time per token {step * theirs / ours - 1:+.1%}"
    ]
    if plan.options.objective == "devices" and theirs > ours:
        lines.append("The plan uses the fewest devices on which any layout fits")
    elif plan.options.objective == "cost":
        more = relative_cost(plan.options, plan.chosen, other) - 1
        lines.append(f"The plan seeks the least cost per token: {more:+.1%}")
    return [part for line in lines for part in textwrap.wrap(line, WIDTH)]


def split_pair(chosen: Candidate, other: Candidate) -> list[str]:
    """Terms of both side by side."""
    lines = ["A step by term", f"  {'':<12}{'chosen':>10}{'with it':>12}{'':>14}"]
    for name, (a, b) in compare(chosen, other).items():
        if a or b:
            lines.append(f"  {name:<12}{seconds(a):>10}{seconds(b):>12}{_signed(b - a):>14}")
    return [line.rstrip() for line in lines]


def _signed(difference: float) -> str:
    return f"{'+' if difference >= 0 else '-'}{seconds(abs(difference))}" if difference else ""


def _forbidden(answer: Answer) -> list[str]:
    """Rules with their counts, memory, the closest miss."""
    lines = [f"No layout with {pin_words(answer)}: {answer.message}"]
    lines = [part for line in lines for part in textwrap.wrap(line, WIDTH)]
    if answer.rejected:
        lines += ["", "Rejected by rule"]
        for rule, n in sorted(answer.rejected.items(), key=lambda x: (-x[1], x[0])):
            lines += _entry(f"{n:>7,}  {rule}", sentence(rule), indent=31)
    if answer.num_valid or answer.details:
        lines.append("")
    if answer.num_valid:
        lines.append(f"{answer.num_valid:,} such layouts break no rule, and none fits")
    for detail in answer.details:
        lines += textwrap.wrap(detail, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return lines
