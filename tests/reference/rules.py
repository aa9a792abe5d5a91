"""docs/reference/rules.md: the rules of `planner.rules`, `planner.layout` and the search."""

from typing import get_args

from planner.config import CpMethod, Offload, ParallelConfig
from planner.layout import PLACEMENT_RULES, runtime_refuses
from planner.rules import CONFIG_RULES, UNPLACED_RULES
from planner.space import RULES, SENTENCES
from profiler.codec import replace
from tests.reference.table import table

_ANY = ParallelConfig(
    pp=1, dp_replicate=1, tp=1, cp=4, micro_batch=1, recompute="none", schedule="1f1b"
)

_TITLE = """# Rules
A layout that breaks a rule is refused under its id: `show` counts them, `why --not` and errors name
them. Words of layouts: [first plan](../guide/first-plan.md).
"""


def page() -> list[str]:
    """The lines of the page."""
    of_degrees = {rule.id for rule in CONFIG_RULES}
    unplaced = {rule.id for rule in UNPLACED_RULES}
    of_search = [(i, s) for i, s in SENTENCES.items() if i not in of_degrees | unplaced]
    order = {rule.id: number for number, rule in enumerate(RULES)}
    head = ("id", "what holds, or what is wrong")
    return [
        *_TITLE.split("\n"),
        "## Of any layout",
        "",
        "Searched or given by hand; asked in this order.",
        "",
        *table(head, sorted(_named(CONFIG_RULES), key=lambda row: order[row[0][1:-1]])),
        "## Where stages and experts are not placed one by one",
        "",
        *table(head, _named(UNPLACED_RULES)),
        "## Of the search",
        "",
        *table(head, ((f"`{i}`", s) for i, s in of_search)),
        "## Of a placement that a file gives",
        "",
        *table(head, _named(PLACEMENT_RULES)),
        "## Of the reference runtime",
        "",
        "`launch` refuses a layout that can be and that it does not train; `plan` then prints no",
        "command.",
        "",
        *table(("layout", "why not"), _refused()),
    ]


def _named(rules) -> list[tuple[str, str]]:
    return [(f"`{rule.id}`", rule.sentence) for rule in rules]


def _refused() -> list[tuple[str, str]]:
    """What `runtime_refuses` says of each value of the axes that it looks at."""
    axes = [("cp_method", v) for v in get_args(CpMethod)]
    axes += [("offload", v) for v in get_args(Offload)]
    said = ((a, v, runtime_refuses(replace(_ANY, **{a: v}))) for a, v in axes)
    return [(f"`{axis}={value}`", why) for axis, value, why in said if why]
