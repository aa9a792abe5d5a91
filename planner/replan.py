"""A plan for what is there now against the one that ran: what moves, and what going on costs.

A step of R steps that are left is `new - old` longer than on the nodes that are gone: waiting for
them pays if they are back within R * (new - old). Where no device of the old layout is gone, the
restart has paid after lost_s / (old - new) steps, both on the cluster as it is now.
"""

from typing import Annotated, Literal

from annotated_types import Ge

from planner.holdings import Holdings
from planner.moves import Moves, moves_of
from planner.plan import Plan
from planner.survivors import Survivors
from planner.ways import Figure, Situation, Way, Ways, label_of
from profiler.codec import record, replace
from profiler.model import NotNegative
from profiler.profile import Seconds

FORMAT_VERSION = "1.0"


@record
class Replan:
    """Content of `plan --from ... --json`."""

    format_version: str = FORMAT_VERSION
    kind: Literal["replan"] = "replan"
    verdict: Literal["keep", "restart"]
    """keep: the same layout on the same devices."""
    old_plan: str
    new_plan: str
    old_layout: str
    new_layout: str
    nodes: tuple[NotNegative | None, ...]
    """Per node of the cluster as it is now, its number in the old plan's; None: a new one."""
    lost_nodes: tuple[NotNegative, ...]
    """Nodes of the old plan's cluster that are gone."""
    moves: Moves
    old_step_s: Seconds | None
    """Of the old plan, where it was; observed where it was. None: nothing is known."""
    new_step_s: Seconds | None
    facts: dict[str, Figure]
    """What the ways rest on: `step`, `restart`, `load`, `again` (steps, not seconds)."""
    ways: tuple[Way, ...]
    """The first is what `launch --resume` of the new plan does."""
    pays_after_steps: Annotated[float, Ge(0)] | None = None
    """Steps after which the new layout has made up for the restart, where the old one could go on;
    None where it cannot or the new one is not faster."""
    wait_s_per_step: Seconds | None = None
    """Waiting for lost nodes pays if they are back within so many seconds per step that is left."""
    steps_left: NotNegative | None = None


def make_replan(old: Plan, new: Plan, left: Survivors, situation: Situation) -> Replan:
    """Compare the plan that ran to the one for what is there now. Pure."""
    a, b = old.chosen, new.chosen
    before = Holdings(old.model, a.config, a.placement)
    after = Holdings(new.model, b.config, b.placement)
    moves = moves_of(new.model, before, after, left.devices, new.cluster)
    stays = all(left.devices.get(device) == device for device in before.devices)
    same = stays and (old.job, a.config, a.placement) == (new.job, b.config, b.placement)
    count = Ways(old, new, before, left, moves, situation, can_keep=stays)
    ways = tuple(count.ways())
    found = Replan(
        verdict="keep" if same else "restart",
        old_plan=old.id,
        new_plan=new.id,
        old_layout=label_of(a.config),
        new_layout=label_of(b.config),
        nodes=left.nodes,
        lost_nodes=left.lost,
        moves=moves,
        old_step_s=count.old_step_s,
        new_step_s=count.new_step_s,
        facts=count.facts,
        ways=ways,
        steps_left=count.steps_left,
    )
    return _break_even(found)


def _break_even(found: Replan) -> Replan:
    first = next((w for w in found.ways if w.name == "checkpoint"), None)
    keep = next((w for w in found.ways if w.name == "keep"), None)
    pays = wait = None
    if first and keep and keep.step_s > first.step_s:
        pays = first.lost_s / (keep.step_s - first.step_s)
    old_s, new_s = found.old_step_s, found.new_step_s
    if not keep and old_s is not None and new_s is not None:
        wait = max(0.0, new_s - old_s)
    return replace(found, pays_after_steps=pays, wait_s_per_step=wait)
