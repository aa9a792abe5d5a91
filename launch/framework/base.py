"""What an emitter makes of a plan: files for a framework, and the command that its ranks run.

An emitter says a plan in a framework's own words. What the framework has no words for it refuses
(`refuse`), with the pins that lead `meshwright plan` to the nearest plan which it has. What the
plan does not know - data, tokenizer, checkout of the framework - is a variable of the script that
the user sets (`Need`); nothing is made up.
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from launch.framework.native import check_interfaces
from launch.recipe import Recipe
from planner.config import Placement
from planner.layout import check_devices_of, check_layout
from planner.plan import Plan
from planner.where import nodes_of_ranks
from profiler.codec import replace
from profiler.errors import UserError

SCRIPT_NAME = "train.sh"
SETTINGS_NAME = "settings.sh"
"""Beside it, where the user wants one: sets the variables, on hosts and in pods that inherit none.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A variable of the script that the user sets."""

    name: str
    meaning: str
    default: str = ""
    """Value where it is not set; empty: the script ends with the meaning as its error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """A plan in a framework's words."""

    title: str
    """Framework and release, for people: `Megatron-LM (megatron-core 0.19.2)`."""
    files: dict[str, str]
    """Name -> text of what the framework reads, beside the script; `$HERE` in `words` is their
    folder."""
    words: tuple[str, ...]
    """What each rank runs, as words of bash, after torchrun or the interpreter."""
    starts_ranks: bool = False
    """The words start all ranks of a node; else what the script is given does."""
    body: tuple[str, ...] = ()
    """Lines of the script that the words rely on."""
    env: tuple[tuple[str, str], ...] = ()
    needs: tuple[Need, ...] = ()
    differs: tuple[str, ...] = ()
    """Sentences: where the framework does otherwise than the plan counts on."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something of the plan that the framework cannot do."""

    why: str
    pin: str = ""
    """`axis=value` that avoids it."""
    option: str = ""
    """Another option of `plan` that does; with neither, nothing does."""


def refuse(plan: Plan, title: str, refusals: Iterable[Refusal]) -> None:
    """Raise `UserError` with all that is refused, and the pins of the nearest plan."""
    found = list(refusals)
    if not found:
        return
    pins = dict.fromkeys(r.pin for r in found if r.pin)
    options = dict.fromkeys(r.option for r in found if r.option)
    if any(not (r.pin or r.option) for r in found):
        hint = "emit it for another framework, or launch it without `--for`"
    else:
        added = [f"--pin {','.join(pins)}"] if pins else []
        added += options
        hint = f"the nearest plan that it runs: `meshwright plan ... {' '.join(added)}`"
    raise UserError(
        f"{title} does not run layout `{plan.chosen.config.label}` of `{plan.model.name}`: "
        + "; ".join(dict.fromkeys(r.why for r in found)),
        hint=hint,
        place=f"plan {plan.id}",
    )


def check_emittable(plan: Plan) -> None:
    """Raise `UserError` for a layout that cannot be, whatever runs it."""
    chosen, place = plan.chosen, f"plan {plan.id}"
    check_layout(plan.model, plan.job, chosen.config, chosen.placement, place=place)
    check_devices_of(plan.cluster, chosen.config, chosen.placement, place=place)
    check_interfaces(plan)


def in_row_major_order(plan: Plan, title: str, refusals: Iterable[Refusal]) -> Plan:
    """The plan with its ranks in the order of its coordinates, as most frameworks number them;
    `UserError` for one that cannot be, or with all that is refused."""
    check_emittable(plan)
    refuse(plan, title, refusals)
    return in_order_of(plan, range(plan.chosen.config.num_devices))


_OWN_RUNTIME = (
    "data", "weights", "resume", "trace", "record_routing", "rebalance_experts_every",
    "keep_checkpoints", "max_restarts",
)  # fmt: skip
"""Fields of a recipe that only the reference runtime, or its start, reads."""


def not_carried(recipe: Recipe, done: Iterable[str] = ()) -> tuple[str, ...]:
    """A sentence on what a recipe asks for that no framework is told; `done`: what the start of
    the ranks does."""
    plain = Recipe()
    asked = [name for name in _OWN_RUNTIME if getattr(recipe, name) != getattr(plain, name)]
    found = [name for name in asked if name not in done]
    return (f"of the recipe, {', '.join(found)} is left out.",) if found else ()


def wsd_decay_steps(recipe: Recipe) -> int:
    """Whole steps of the final decay of `wsd`."""
    return max(1, round(recipe.lr_steps * recipe.wsd_decay_share))


def in_order_of(plan: Plan, coordinates: Sequence[int]) -> Plan:
    """The plan with rank i at coordinate `coordinates[i]`, on the device that the plan gives it.

    Frameworks number ranks by coordinates, in an order of their own. So ranks are mapped by where
    each is started: this changes no coordinate's device.
    """
    chosen, placement = plan.chosen, plan.chosen.placement
    ranks = placement.ranks or range(chosen.config.num_devices)
    device_of = placement.devices or tuple(ranks)
    devices = tuple(device_of[at] for at in coordinates)
    moved = replace(placement, ranks=(), devices=devices)
    if placement.interfaces:  # of the nodes in the order of their ranks
        name_of = dict(zip(_nodes(plan, placement), placement.interfaces, strict=True))
        names = tuple(name_of[node] for node in _nodes(plan, moved))
        moved = replace(moved, interfaces=names)
    return replace(plan, chosen=replace(chosen, placement=moved))


def _nodes(plan: Plan, placement: Placement) -> list[int]:
    """The nodes that are used, in the order of their first ranks."""
    return list(dict.fromkeys(nodes_of_ranks(plan.cluster, plan.chosen.config, placement)))


def has_runs(plan: Plan) -> bool:
    """Whether the ranks of each node follow each other, as torchrun numbers them."""
    nodes = nodes_of_ranks(plan.cluster, plan.chosen.config, plan.chosen.placement)
    return sum(a != b for a, b in pairwise(nodes)) < len(set(nodes))


def script(plan: Plan, emitted: Emitted) -> str:
    """`train.sh`: runs what it is given (torchrun, or the interpreter) with the plan's words."""
    lines = [
        "#!/bin/bash",
        f"# Plan {plan.id}, {plan.chosen.config.label}, for {emitted.title}.",
        f"# {_comment(plan.model.name)}, {plan.job.global_batch} sequences of "
        f"{plan.job.seq_len} tokens a step, {plan.chosen.config.num_devices} ranks.",
        "# It starts the ranks of a node, with HEAD_NODE and NODE_RANK where there are several."
        if emitted.starts_ranks
        else "# What it is given starts the ranks: `bash train.sh torchrun --nproc-per-node=...`",
    ]
    for sentence in emitted.differs:
        lines.append(f"# Other than in the plan: {sentence}")
    lines += ["set -eu", 'HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"']
    if emitted.needs:
        lines.append(f'if [ -f "$HERE/{SETTINGS_NAME}" ]; then . "$HERE/{SETTINGS_NAME}"; fi')
    for need in emitted.needs:
        lines.append(_variable(need))
    if emitted.needs:
        lines.append(f"export {' '.join(need.name for need in emitted.needs)}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in emitted.env]
    lines += _interface(plan)
    given = () if emitted.starts_ranks else ('"$@"',)
    lines += [*emitted.body, " ".join(("exec", *given, *emitted.words))]
    return "".join(f"{line}\n" for line in lines)


def _interface(plan: Plan) -> list[str]:
    """Lines that keep the ranks' sockets, and NCCL's first messages, to the plan's interface of
    their node.

    The node is the one that torchrun is told, else NODE_RANK, else that of RANK where each rank is
    started by itself. A script that is told nothing of it ends: no launcher's own numbering of
    hosts is the plan's.
    """
    names = plan.chosen.placement.interfaces
    if not names:
        return []
    if len(set(names)) == 1:
        return [f"export NCCL_SOCKET_IFNAME={shlex.quote(names[0])}"
                f" GLOO_SOCKET_IFNAME={shlex.quote(names[0])}"]  # fmt: skip
    of_ranks = nodes_of_ranks(plan.cluster, plan.chosen.config, plan.chosen.placement)
    order = _nodes(plan, plan.chosen.placement)
    own = '"${INTERFACES[node]}"'
    return [
        f"INTERFACES=({' '.join(map(shlex.quote, names))})  # of the nodes",
        f"NODE_OF=({' '.join(str(order.index(node)) for node in of_ranks)})  # each rank",
        'node="${NODE_RANK:-}"',
        'for word; do case "$word" in --node[-_]rank=*) node="${word#*=}" ;; esac; done',
        '[ -n "$node" ] || node="${RANK:+${NODE_OF[RANK]}}"',
        "[ -n \"$node\" ] || { echo 'set NODE_RANK: the place of this node' >&2; exit 2; }",
        f"export NCCL_SOCKET_IFNAME={own} GLOO_SOCKET_IFNAME={own}",
    ]


def _variable(need: Need) -> str:
    if need.default:
        return f': "${{{need.name}:={need.default}}}"  # {_comment(need.meaning)}'
    said = shlex.quote(f"set {need.name}: {_comment(need.meaning)}")
    return f'[ -n "${{{need.name}:-}}" ] || {{ echo {said} >&2; exit 2; }}'


def _comment(text: str) -> str:
    """A name from a user's file, on one line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def array(name: str, groups: Iterable[tuple[str, Iterable[Sequence[str]]]]) -> tuple[str, ...]:
    """An array of bash: per group a comment, then an option and its values a line. A value that
    begins with `$` is a variable of the script."""
    lines = [f"{name}=("]
    for heading, options in groups:
        words = [" ".join(_word(word) for word in option) for option in options]
        if words:
            lines += [f"  # {heading}", *(f"  {line}" for line in words)]
    return (*lines, ")")


def _word(word: str) -> str:
    if word.startswith("$"):
        return word if word.endswith("_ARGS") else f'"{word}"'
    return shlex.quote(word)
