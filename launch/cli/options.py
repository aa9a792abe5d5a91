"""Options that several commands take, and how their text is read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli import complete
from profiler.errors import UserError

if TYPE_CHECKING:
    from planner.plan import SearchOptions
    from profiler.cluster import ClusterSpec
    from profiler.job import Precision

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
_MODEL = typer.Option(
    "-m",
    "--model",
    help="Hugging Face config.json, or a catalogue name.",
    autocompletion=complete.models,
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
PlanFile = Annotated[Path, typer.Argument(help="plan.json", metavar="PLAN", show_default=False)]


def parse_axes(texts: list[str], flag: str) -> dict[str, tuple[str, ...]]:
    """`tp=2,4,pp=1` -> {"tp": ("2", "4"), "pp": ("1",)}; several texts add up."""
    out: dict[str, tuple[str, ...]] = {}
    for text in texts:
        axis = ""
        for part in text.split(","):
            name, equals, value = part.partition("=")
            if equals:
                axis, part = name.strip(), value
            if not axis or not part.strip():
                raise UserError(f"`{flag} {text}` is not of the form AXIS=VALUE[,VALUE...]")
            out[axis] = (*out.get(axis, ()), part.strip())
    return out


def search_options(
    pin: list[str], forbid: list[str], top: int, objective: str = "step", devices: str | None = None
) -> "SearchOptions":
    """What the flags seek, and to what they narrow the search."""
    from planner.plan import OBJECTIVES, SearchOptions

    known = next((name for name in OBJECTIVES if name == objective), None)
    if known is None:
        raise UserError(
            f"`--objective {objective[:40]}` is not known", hint=f"one of {', '.join(OBJECTIVES)}"
        )
    return SearchOptions(
        pin=parse_axes(pin, "--pin"),
        forbid=parse_axes(forbid, "--forbid"),
        top=top,
        objective=known,
        devices=() if devices is None else parse_counts(devices, "--devices"),
    )


def parse_counts(text: str, flag: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4), ascending and without repeats."""
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdigit() and 0 < len(p) <= 12 and int(p) > 0 for p in parts):
        raise UserError(f"`{flag} {text}` is not a list of positive numbers", hint="like 1,2,4")
    return tuple(sorted({int(p) for p in parts}))


def default_precision(cluster: "ClusterSpec") -> "Precision":
    """bf16 where all devices have it, else fp16, else fp32."""
    rates = set.intersection(*(set(g.device.flops_per_s) for g in cluster.groups))
    return "bf16" if "bf16" in rates else "fp16" if "fp16" in rates else "fp32"
