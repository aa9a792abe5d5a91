"""`meshwright plan --from`: plan again for what is there now; what moves, and what it costs."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.exit import Exit
from launch.cli.moves_text import MOST_NODES, by_node, totals
from launch.cli.options import search_options
from launch.cli.terminal import bold, note, say
from profiler.errors import UserError

if TYPE_CHECKING:
    from launch.replan import Changes
    from planner.plan import Plan
    from planner.replan import Replan
    from planner.ways import Situation, Way

DEFAULT_OUT = Path("new-plan.json")
From = Annotated[
    Path | None,
    typer.Option("--from", help="Plan again from this plan, save new-plan.json."),
]
Lost = Annotated[
    str | None,
    typer.Option(help="With --from: nodes that are gone, from 0: 2,5; or hosts of --run."),
]
Run = Annotated[
    Path | None, typer.Option("--run", help="With --from: folder of the run that it is about.")
]
Every = Annotated[
    int | None,
    typer.Option(min=1, max=10**7, help="With --from: steps per checkpoint [the run's]."),
]
Restart = Annotated[
    float | None,
    typer.Option("--restart-s", min=0.0, max=1e6, help="With --from: to start all ranks, s."),
]
ReadRate = Annotated[
    float | None,
    typer.Option(min=1e-6, max=1e6, help="With --from: of the checkpoints' storage, GB/s."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of a replan."""

    plan: Path
    lost: str | None
    run: Path | None
    checkpoint_every: int | None
    restart_s: float | None
    read_rate: float | None


def run(asked: Asked, typed: Mapping[str, Any], out: Path | None, *, as_json: bool) -> int:
    """Plan again, save the plan, say what moves; `typed` are the options of `plan` that were given.

    0: the old layout stays where it is; 4: another one, restart with the new plan.
    """
    from launch.artifact import read_plan, write_atomic
    from launch.replan import by_names, plan_again
    from planner.replan import make_replan
    from planner.survivors import survivors
    from profiler.codec import encode

    old = read_plan(asked.plan)
    situation = _situation(asked, old)
    changes = by_names(old, _changes(asked, old, typed))
    if asked.run is not None and old.model.num_moe_layers:
        old, changes = _moved(old, changes, asked.run)
    new = plan_again(old, changes, note)
    left = survivors(old.cluster, new.cluster, changes.lost)
    found = make_replan(old, new, left, situation)
    write_atomic(out or DEFAULT_OUT, encode(new))
    if as_json:
        typer.echo(encode(found), nl=False)
    else:
        _print(old, new, found, guessed=not changes.lost)
    note(f"Saved the plan to: `{out or DEFAULT_OUT}`")
    return Exit.OK if found.verdict == "keep" else Exit.DIFFERS


def _moved(old: "Plan", changes: "Changes", run_dir: Path) -> "tuple[Plan, Changes]":
    """With experts where the run has moved them, and what it routed there."""
    from launch.expert_looks import places_of_run
    from planner.expert_moves import placed_experts
    from planner.moved_plan import as_moved, exchanges_of
    from profiler.codec import replace

    chosen = old.chosen
    experts, counts = places_of_run(old, run_dir)
    if experts == placed_experts(old.model, chosen.config, chosen.placement):
        return old, changes
    note("The run has moved its experts: planning on from where they are now")
    if counts is not None:
        changes = replace(changes, routing=exchanges_of(old, counts))
    return as_moved(old, experts, counts), changes


def _changes(asked: Asked, old: "Plan", typed: Mapping[str, Any]) -> "Changes":
    from launch.artifact import read_profile
    from launch.replan import Changes
    from profiler.catalog import resolve_cluster, resolve_model
    from profiler.link_files import read_links

    names = ("global_batch", "seq_len", "precision")
    options: dict[str, object] = {}
    if typed.keys() & {"pin", "forbid", "top", "objective", "devices"}:
        given = search_options(
            typed.get("pin", []), typed.get("forbid", []), typed.get("top", 5),
            typed.get("objective", "step"), typed.get("devices"),
        )  # fmt: skip
        options = {name: getattr(given, name) for name in _OPTIONS if name in typed}
    return Changes(
        cluster=resolve_cluster(typed["cluster"]) if "cluster" in typed else None,
        profile=read_profile(typed["profile"]) if "profile" in typed else None,
        links=read_links(typed["links"]) if "links" in typed else None,
        lost=_nodes(asked, old) if asked.lost else (),
        model=resolve_model(typed["model"]) if "model" in typed else None,
        software=typed.get("software"),
        job={name: typed[name] for name in names if name in typed},
        options=options,
        layout=typed.get("layout"),
    )


_OPTIONS = ("pin", "forbid", "top", "objective", "devices")


def _nodes(asked: Asked, old: "Plan") -> tuple[int, ...]:
    """`2,5`, or hosts of the run: `host2,host5` -> (2, 5), ascending and without repeats."""
    text = asked.lost or ""
    found: set[int] = set()
    hosts = old.profile.links.hosts if old.profile.links else ()
    for part in (part.strip() for part in text.split(",")):
        if part.isdigit() and len(part) <= 9:
            found.add(int(part))
            continue
        if asked.run is not None and not hosts:
            from launch.situation import hosts_of

            hosts = hosts_of(asked.run, old)
        own = {node for node, host in enumerate(hosts) if part and host == part}
        if not own:
            known = ", ".join(dict.fromkeys(host for host in hosts if host))
            raise UserError(
                f"`--lost {text[:40]}`: `{part[:40]}` is no node",
                hint=f"the hosts are {known}"
                if known
                else "like 2,5; from 0; with `--run` also the names of its hosts",
            )
        found |= own
    return tuple(sorted(found))


def _situation(asked: Asked, old: "Plan") -> "Situation":
    from launch.situation import situation_of
    from planner.ways import Situation
    from profiler.codec import replace

    known = situation_of(asked.run, old) if asked.run else Situation()
    rate = asked.read_rate
    return replace(
        known,
        checkpoint_every=asked.checkpoint_every or known.checkpoint_every,
        restart_s=asked.restart_s,
        read_bytes_per_s=rate * 1e9 if rate else None,
    )


def _print(old: "Plan", new: "Plan", found: "Replan", *, guessed: bool) -> None:
    from launch.cli import render

    say(bold(render.heading(new)))
    for line in _nodes_lines(old, found, guessed=guessed):
        say(line)
    say()
    for name, label, step in (
        ("old", found.old_layout, found.old_step_s), ("new", found.new_layout, found.new_step_s)
    ):  # fmt: skip
        words = render.seconds(step) if step is not None else "unknown"
        say(f"  {name}  {label:<58}{words:>14}")
    if found.old_step_s and found.new_step_s is not None:
        share = found.new_step_s / found.old_step_s - 1
        more = f"{abs(share):.1%} {'longer than' if share > 0 else 'less than'}"
        say(f"\nA step takes {more if abs(share) >= 5e-4 else 'as long as'} before")
    if found.verdict == "keep":
        say("\nThe layout stays as it is: nothing moves, go on with the old plan")
        return
    for line in (*totals(found.moves), *by_node(found.moves), *_ways_lines(found)):
        say(line)


def _nodes_lines(old: "Plan", found: "Replan", *, guessed: bool) -> list[str]:
    """Which nodes went and came."""
    total = len(found.nodes) - sum(n is None for n in found.nodes) + len(found.lost_nodes)
    lines = []
    if found.lost_nodes:
        shown = ", ".join(str(n) for n in found.lost_nodes[:MOST_NODES])
        more = ", ..." if len(found.lost_nodes) > MOST_NODES else ""
        which = "; taken to be the last, as no `--lost` says" if guessed else ""
        word = "node" if len(found.lost_nodes) == 1 else "nodes"
        lines.append(f"Gone: {word} {shown}{more} of 0 to {total - 1}{which}")
    if came := sum(n is None for n in found.nodes):
        lines.append(f"New: {came} {'node' if came == 1 else 'nodes'}")
    return [part for line in lines for part in textwrap.wrap(line, 80)]


_WAYS = {
    "checkpoint": "new plan, from the checkpoint",
    "survivors": "new plan, from survivors' memory",
    "beginning": "new plan, from step 0",
    "fewer_replicas": "old shape, fewer replicas",
    "keep": "old plan, on what is there now",
}


def _ways_lines(found: "Replan") -> list[str]:
    """The ways to go on with their time, and what that rests on."""
    from launch.cli.render import seconds

    if not found.ways:
        return ["\nWhat it costs is not known: the cost model covers neither layout"]
    head = f"\n{'time lost':<37}{'restart':>8}{'load':>9}{'again':>9}{'sum':>9}{'step':>8}"
    lines = [head, *(_row(way) for way in found.ways)]
    for name, figure in found.facts.items():
        unit = f"{figure.value:g} steps" if name == "again" else seconds(figure.value)
        text = f"{name}: {unit}, {figure.source}: {figure.how}"
        lines += textwrap.wrap(
            text, 78, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
    if any(way.name == "survivors" for way in found.ways):
        text = "From memory: for software that moves state; `launch` goes by checkpoints"
        lines += textwrap.wrap(text, 80)
    return [*lines, *_break_even(found)]


def _row(way: "Way") -> str:
    from launch.cli.render import seconds

    parts = (way.restart_s, way.load_s, way.again_s, way.lost_s)
    cells = "".join(f"{seconds(part) if part else '-':>9}" for part in parts)
    return f"  {_WAYS[way.name]:<35}{cells[1:]}{seconds(way.step_s):>8}"


def _break_even(found: "Replan") -> list[str]:
    from launch.cli.render import seconds

    lines = []
    if found.pays_after_steps is not None:
        lines.append(f"\nThe restart has paid after {found.pays_after_steps:,.0f} steps")
    if found.wait_s_per_step and found.lost_nodes:
        steps = found.steps_left if found.steps_left is not None else 1000
        whose = "that are left" if found.steps_left is not None else "more to train"
        lines.append(
            f"\nWith {steps:,} steps {whose}, waiting for the lost nodes pays if they are back "
            f"within {seconds(found.wait_s_per_step * steps)}"
        )
    return [part for line in lines for part in ("", *textwrap.wrap(line.strip(), 80))]
