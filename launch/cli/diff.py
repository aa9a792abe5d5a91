"""`meshwright diff`: two plans side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.exit import Exit
from launch.cli.moves_text import totals
from launch.cli.options import Json, PlanFile
from launch.cli.terminal import say

if TYPE_CHECKING:
    from planner.moves import Moves
    from planner.plan import Plan

Pair = tuple[float, float]
_MOVES = (
    "state_bytes", "need_bytes", "held_bytes", "fetched_bytes", "from_checkpoint_bytes",
)  # fmt: skip
_COSTS = ("step_s", "compute_s", "p2p_s", "collective_s", "idle_s", "peak_bytes")


def run(
    plan: PlanFile,
    other: Annotated[Path, typer.Argument(help="plan.json", metavar="OTHER", show_default=False)],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 4 if they differ.")] = False,
    as_json: Json = False,
) -> int:
    """Compare two plans: inputs, layout, cost, where time and memory go, what state moves."""
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
    costs = {n: (getattr(a.chosen.cost, n), getattr(b.chosen.cost, n)) for n in names}
    terms, memory = (_terms(a, b), _memory(a, b)) if known else ({}, {})
    moves = _moves(a, b)
    if as_json:
        document = {
            "format_version": "1.1",
            "kind": "diff",
            "plans": [a.id, b.id],
            "changes": [{"path": p, "old": o, "new": n} for p, o, n in changes],
            "costs": {name: list(pair) for name, pair in costs.items()},
            "terms": {name: list(pair) for name, pair in terms.items()},
            "memory": {name: list(pair) for name, pair in memory.items()},
            "moves": {name: getattr(moves, name) for name in _MOVES} if moves else None,
        }
        typer.echo(canonical(document), nl=False)
    else:
        _print(a.id, b.id, changes)
        if a.id != b.id:
            _print_costs(costs, terms, memory)
        for line in totals(moves) if moves else ():
            say(line)
    return Exit.DIFFERS if exit_code and a.id != b.id else Exit.OK


def _moves(a: "Plan", b: "Plan") -> "Moves | None":
    """What moves from one layout to the other, no node being lost; None where they are equal, or of
    other models."""
    from planner.holdings import Holdings
    from planner.moves import moves_of
    from planner.survivors import survivors
    from profiler.config_json import first_difference

    x, y = a.chosen, b.chosen
    if first_difference(a.model, b.model) or (x.config, x.placement) == (y.config, y.placement):
        return None
    before, after = (Holdings(a.model, c.config, c.placement) for c in (x, y))
    now = survivors(a.cluster, b.cluster, ()).devices
    return moves_of(a.model, before, after, now, b.cluster)


def _changes(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    """(path, old, new) of every leaf that differs; a list of other length is one change."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [c for k in keys for c in _changes(old.get(k), new.get(k), f"{path}.{k}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [c for i, (o, n) in pairs for c in _changes(o, n, f"{path}.{i}")]
    return [] if old == new else [(path, old, new)]


def _terms(a: "Plan", b: "Plan") -> dict[str, Pair]:
    """Seconds by term of both; none where a plan has no terms."""
    from planner.explain import compare

    if not (a.chosen.cost.terms and b.chosen.cost.terms):
        return {}
    return compare(a.chosen, b.chosen)


def _memory(a: "Plan", b: "Plan") -> dict[str, Pair]:
    """Bytes by part on the fullest stage of each."""
    from launch.cli.sections import part_bytes

    ours, theirs = (
        part_bytes(max((s.memory for s in x.chosen.cost.stages), key=lambda m: m.total_bytes))
        for x in (a, b)
    )
    return {name: (ours[name], theirs[name]) for name in ours}


def _print(a: str, b: str, changes: list[tuple[str, Any, Any]]) -> None:
    say(f"{a} -> {b}\n")
    if a == b:
        say("The plans are equal")
        return
    shown = [c for c in changes if not c[0].startswith("profile.")]
    for path, old, new in shown:
        say(f"  {path:<34} {_short(old)} -> {_short(new)}")
    if len(shown) < len(changes):
        hidden = len(changes) - len(shown)
        words = "1 value differs" if hidden == 1 else f"{hidden:,} values differ"
        say(f"  {'profile':<34} {words}")
    say()


def _print_costs(costs: dict[str, Pair], terms: dict[str, Pair], memory: dict[str, Pair]) -> None:
    from launch.cli.render import seconds, size

    for name, pair in costs.items():
        words = size if name.endswith("bytes") else seconds
        say(_row(name.rsplit("_", 1)[0], pair, words))
    if terms:
        say("\nA step by term")
        for name, pair in terms.items():
            if any(pair):
                say(_row(name, pair, seconds))
    if memory:
        say("\nMemory of the fullest stage")
        for name, pair in memory.items():
            if any(pair):
                say(_row(name, pair, size))


def _row(label: str, pair: Pair, words: Callable[[float], str]) -> str:
    old, new = pair
    share = f"{new / old - 1:+.1%}" if old else ""
    return f"  {label:<12}{words(old):>12} -> {words(new):<12}{share:>8}".rstrip()


def _short(value: Any) -> str:
    flat = isinstance(value, list) and not any(isinstance(v, (list, dict)) for v in value)
    text = ",".join(map(str, value)) if flat else str(value)
    if value is None or value == []:
        text = "none"
    return text if len(text) <= 18 else f"{text[:15]}..."
