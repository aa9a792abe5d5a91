"""A plan as one HTML page that needs nothing else: no script, no request, light and dark."""

from launch.cli.render import (
    cluster_words,
    counts_devices,
    devices_word,
    seconds,
    size,
    versus,
)
from launch.cli.why_text import others_words
from launch.report import bars
from launch.report.html import Html, el, join, section, table
from launch.report.links import links_section
from launch.report.scatter import pareto
from launch.report.style import style
from launch.report.timeline import timeline_section
from planner.explain import Explanation, Reason, explain, timeline_of
from planner.objective import price_of
from planner.plan import Plan
from planner.simulate import Timeline
from planner.space import MEMORY_RULE, SENTENCES
from planner.where import capacities_of, used_of_groups

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page_of(plan: Plan) -> str:
    """The page; raises `UserError` where the plan has no estimate."""
    return build(plan, explain(plan), timeline_of(plan))


def build(plan: Plan, explained: Explanation, timeline: Timeline) -> str:
    """The page from its parts. Same plan, same bytes."""
    title = f"{plan.model.name} on {cluster_words(plan.cluster)}"
    head = el(
        "head",
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Html('<meta name="viewport" content="width=device-width,initial-scale=1">'),
        Html('<link rel="icon" href="data:,">'),
        el("title", f"Meshwright: {title}"),
        el("style", Html(style())),
    )
    parts = [
        _header(plan, title),
        _figures(plan),
        _warning(plan),
        _why(explained),
        timeline_section(timeline),
        bars.memory(plan),
        bars.step(plan),
        links_section(plan),
        _alternatives(plan),
        pareto(plan),
        _rejected(plan),
        _footer(plan),
    ]
    body = el("body", el("main", *(part for part in parts if part)))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _header(plan: Plan, title: str) -> Html:
    job, chosen = plan.job, plan.chosen
    asked = (
        f"Global batch {job.global_batch:,} x {job.seq_len:,} tokens, {job.precision}, "
        f"{job.optimizer}"
    )
    layout = f"{chosen.config.label} {chosen.config.schedule}"
    return el(
        "header",
        el("h1", title),
        el("p", asked, class_="note"),
        el("p", "Layout ", el("span", layout, class_="mono"), class_="layout"),
    )


def _figures(plan: Plan) -> Html:
    """The figures one asks for first."""
    e, config, placement = plan.chosen.cost, plan.chosen.config, plan.chosen.placement
    rooms = capacities_of(plan.cluster, config, placement)
    full = max(s.memory.total_bytes / room for s, room in zip(e.stages, rooms, strict=True))
    used = used_of_groups(plan.cluster, config, placement)
    pairs = [(g, n) for g, n in zip(plan.cluster.groups, used, strict=True) if n]
    names = ", ".join(dict.fromkeys(g.device.name for g, _ in pairs))
    cells = [
        (seconds(e.step_s), "per step, predicted"),
        (f"{e.tokens_per_s:,.0f}", "tokens per second"),
        (f"{e.mfu:.1%}", "MFU"),
        (size(e.peak_bytes), f"peak memory, {full:.0%}"),
        (f"{config.num_devices:,}", f"{names} devices"),
        (f"{e.tokens_per_s * 86400 / 1e9:,.3g} B", "tokens per day"),
    ]
    price = sum(price_of(g, n) for g, n in pairs)
    if all(g.price_per_hour for g, _ in pairs) and e.tokens_per_s:
        cells.append((f"{1e9 / e.tokens_per_s / 3600 * price:,.4g}", "price of a billion tokens"))
    return el(
        "div", *(el("div", el("b", big), el("span", words)) for big, words in cells),
        class_="figures",
    )  # fmt: skip


def _warning(plan: Plan) -> Html | None:
    """What the figures do not rest on."""
    share = plan.chosen.cost.measured_share
    if share >= 0.995:
        return None
    if share:
        words = f"{1 - share:.0%} of the busy time is computed from catalogue numbers, not measured"
    else:
        words = "No time on this page was measured: all are computed from catalogue numbers"
    hint = ". Profile the cluster before you rely on them: "
    return el("p", words, hint, el("code", "meshwright profile"), class_="warn", role="note")


def _why(explained: Explanation) -> Html:
    choices = join(_choice(reason) for reason in explained.reasons)
    limits = join(
        Html(el("dt", name) + el("dd", words)) for name, words in explained.limits.items()
    )
    proof = el("ul", *(el("li", words) for words in explained.proof))
    return section(
        "Why this layout",
        el("dl", choices, class_="why"),
        el("div",
           el("div", el("h3", "What limits it"), el("dl", limits, class_="why")),
           el("div", el("h3", "How sure it is"), proof),
           class_="pair"),
        id_="why",
    )  # fmt: skip


def _choice(reason: Reason) -> Html:
    others = others_words(reason)
    small = [el("small", others)] if others else []
    return Html(el("dt", f"{reason.axis} {reason.value}") + el("dd", reason.text, *small))


def _alternatives(plan: Plan) -> Html | None:
    known = [c for c in plan.alternatives if c.estimate is not None]
    if not known:
        return None
    counted = counts_devices(plan)
    rows = [
        [el("span", f"{c.config.label} {c.config.schedule}", class_="mono"),
         *([devices_word(plan, c)] if counted else []), seconds(c.cost.step_s),
         f"{c.cost.mfu:.1%}", size(c.cost.peak_bytes), "chosen" if k == 0 else versus(plan, c)]
        for k, c in enumerate((plan.chosen, *known))
    ]  # fmt: skip
    devices = [">devices"] if counted else []
    heads = ["layout", *devices, ">step", ">MFU", ">peak", ">vs chosen"]
    return section("Alternatives", table(heads, rows, chosen=0), id_="alternatives")


def _rejected(plan: Plan) -> Html | None:
    counts = plan.counts
    if not counts.rejected:
        return None
    rows = [
        [f"{number:,}", rule, SENTENCES.get(rule, "")]
        for rule, number in sorted(counts.rejected.items(), key=lambda x: (-x[1], x[0]))
    ]
    unfit = counts.rejected.get(MEMORY_RULE, 0)
    note = (
        f"Of {counts.enumerated:,} layouts {unfit:,} do not fit the memory, "
        f"{sum(counts.rejected.values()) - unfit:,} break another rule, {counts.pruned:,} were "
        f"pruned by their lower bound and {counts.simulated:,} simulated."
    )
    return section(
        "Rejected layouts",
        table([">layouts", "rule", "what it says"], rows),
        note=note,
        id_="rejected",
    )


def _footer(plan: Plan) -> Html:
    return el(
        "footer",
        el("p", "Plan ", el("code", plan.id), ", content hash of its inputs and its result. ",
           el("code", "meshwright launch plan.json"), " runs it, ",
           el("code", "meshwright verify"), " compares the run with this prediction."),
    )  # fmt: skip
