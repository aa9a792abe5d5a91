"""`meshwright diff`: two plans side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from launch.cli.exit import Exit
from launch.cli.options import Json, PlanFile
from launch.cli.terminal import say

_COSTS = ("step_s", "compute_s", "p2p_s", "collective_s", "idle_s", "peak_bytes")


def run(
    plan: PlanFile,
    other: Annotated[Path, typer.Argument(help="plan.json", metavar="OTHER", show_default=False)],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 4 if they differ.")] = False,
    as_json: Json = False,
) -> int:
    """Compare two plans: inputs, layout, cost."""
    from launch.artifact import read_plan
    from profiler.codec import canonical, to_plain

    a, b = read_plan(plan), read_plan(other)
    changes = []
    for part in ("model", "job", "cluster", "profile", "options"):
        changes += _changes(to_plain(getattr(a, part)), to_plain(getattr(b, part)), part)
    for part in ("config", "placement"):
        old, new = (to_plain(getattr(x.chosen, part)) for x in (a, b))
        changes += _changes(old, new, f"chosen.{part}")
    known = all(x.chosen.estimate is not None for x in (a, b))
    names = _COSTS if known else ()
    costs = {n: [getattr(x.chosen.cost, n) for x in (a, b)] for n in names}
    if as_json:
        document = {
            "format_version": "1.0",
            "kind": "diff",
            "plans": [a.id, b.id],
            "changes": [{"path": p, "old": o, "new": n} for p, o, n in changes],
            "costs": costs,
        }
        typer.echo(canonical(document), nl=False)
    else:
        _print(a.id, b.id, changes, costs)
    return Exit.DIFFERS if exit_code and a.id != b.id else Exit.OK


def _changes(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    """(path, old, new) of every leaf that differs; a list of other length is one change."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [c for k in keys for c in _changes(old.get(k), new.get(k), f"{path}.{k}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [c for i, (o, n) in pairs for c in _changes(o, n, f"{path}.{i}")]
    return [] if old == new else [(path, old, new)]


def _print(
    a: str, b: str, changes: list[tuple[str, Any, Any]], costs: dict[str, list[float]]
) -> None:
    from launch.cli.render import seconds, size

    say(f"{a} -> {b}\n")
    if a == b:
        say("The plans are equal")
        return
    shown = [c for c in changes if not c[0].startswith("profile.")]
    for path, old, new in shown:
        say(f"  {path:<34} {_short(old)} -> {_short(new)}")
    if len(shown) < len(changes):
        say(f"  {'profile':<34} {len(changes) - len(shown)} values differ")
    say()
    for name, (old, new) in costs.items():
        words = size if name.endswith("bytes") else seconds
        share = f"{new / old - 1:+.1%}" if old else ""
        label = name.rsplit("_", 1)[0]
        say(f"  {label:<12}{words(old):>12} -> {words(new):<12}{share:>8}")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 18 else f"{text[:15]}..."
