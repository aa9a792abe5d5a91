"""Where the experts of a run are, look by look: RUN/experts.jsonl, which rank 0 writes.

A line is a look at the routing before a step: where experts are from that step on, if that has
changed, and what was routed since the look before. The first line of a process says where they are,
if that is not where the plan has them. A torn last line is left out; a run that goes on from a
checkpoint cuts what came after it.
"""

import contextlib
import json
from pathlib import Path

import numpy as np

from launch.artifact import write_atomic
from launch.checkpoints import STATE, checkpoint_root, complete_checkpoints, places_in
from launch.observed import Observed
from launch.records import LOOKS_NAME
from planner.config import ExpertSlots
from planner.expert_moves import Experts, placed_experts
from planner.moved_plan import Stay
from planner.plan import Plan
from profiler.codec import build, record, to_plain
from profiler.errors import UserError
from profiler.model import NotNegative
from profiler.routing.trace import Counts


@record
class ExpertLook:
    """One line."""

    step: NotNegative
    """Before which."""
    layers: tuple[ExpertSlots, ...] = ()
    """Slots of every MoE layer; empty: as before."""
    counts: tuple[tuple[NotNegative, ...], ...] = ()
    """[layers][experts]: choices of all ranks since the look before; empty: not looked."""

    @property
    def table(self) -> Counts:
        """[layers, experts]."""
        return np.array(self.counts, np.int64)


def append(run_dir: Path, look: ExpertLook) -> None:
    """Write a line."""
    with (run_dir / LOOKS_NAME).open("a", encoding="utf-8") as out:
        out.write(_line(look))


def cut(run_dir: Path, first_step: int) -> None:
    """Keep what was before `first_step`, from which on the run goes on."""
    path = run_dir / LOOKS_NAME
    if path.exists():
        kept = [look for look in read_looks(run_dir) if look.step < first_step]
        write_atomic(path, "".join(map(_line, kept)))


def _line(look: ExpertLook) -> str:
    return json.dumps(to_plain(look)) + "\n"


def read_looks(run_dir: Path) -> tuple[ExpertLook, ...]:
    """In the order of steps; none where the run did not look at its routing."""
    path = run_dir / LOOKS_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot be read: {e}", place=str(path)) from None
    rows = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):  # torn by a fault
            rows.append(json.loads(line))
    return tuple(build(ExpertLook, row, str(path)) for row in rows)


def places_of_run(plan: Plan, run_dir: Path) -> tuple[Experts, Counts | None]:
    """Slots of every MoE layer at the end of a run of `plan`, and what was routed before the last
    look. Where no look says, its newest complete checkpoint does; else where the plan has them."""
    chosen, looks = plan.chosen, read_looks(run_dir)
    counts = next((look.table for look in reversed(looks) if look.counts), None)
    layers = next((look.layers for look in reversed(looks) if look.layers), ())
    label = f"{chosen.config.label} {chosen.config.schedule}"
    folders = complete_checkpoints(checkpoint_root(run_dir)) if not layers else []
    if folders and (folders[0] / STATE).is_file():
        layers = places_in(folders[0], label)
    return layers or placed_experts(plan.model, chosen.config, chosen.placement), counts


def stays_of(plan: Plan, run_dir: Path, observed: Observed) -> tuple[Stay, ...]:
    """Between looks, where experts were and what was routed; none where they were where the plan
    has them, or nobody looked."""
    looks = read_looks(run_dir)
    places = placed_experts(plan.model, plan.chosen.config, plan.chosen.placement)
    if not any(look.layers and look.layers != places for look in looks):
        return ()
    counted = [look for look in looks if look.counts]
    bounds = [observed.first_step, *(look.step for look in counted)]
    found = []
    for number, begin in enumerate(bounds if counted else ()):
        end = bounds[number + 1] if number < len(counted) else observed.steps_done
        moved = [look.layers for look in looks if look.layers and look.step <= begin]
        # After the last look nobody counted: what was routed before it is taken to go on.
        counts = counted[min(number, len(counted) - 1)].table
        num_steps = sum(begin <= step.step < end for step in observed.steps)
        found.append(
            Stay(experts=moved[-1] if moved else places, counts=counts, num_steps=num_steps)
        )
    return tuple(found)
