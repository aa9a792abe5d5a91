"""Parts of `show` that are asked for by name: memory by stage, the frontier. Pure: lines out."""

import textwrap

from launch.cli.render import memory_bars, seconds, size
from planner.plan import Plan, StageMemory
from planner.where import capacities_of
from planner.wording import gib

PARTS = ("weight", "grad", "optimizer", "activation", "buffer", "workspace")
PART_WORDS = {
    "weight": "weights",
    "grad": "gradients",
    "optimizer": "optimizer state",
    "activation": "activations",
    "buffer": "receive buffers",
    "workspace": "workspace",
}
_HEADS = ("weights", "grads", "optim", "activ", "buffers", "work", "total", "free")


def part_bytes(memory: StageMemory) -> dict[str, int]:
    """Bytes by part."""
    return {name: getattr(memory, f"{name}_bytes") for name in PARTS}


def memory_lines(plan: Plan) -> list[str]:
    """Bars of all stages and a table of what fills them."""
    rooms = capacities_of(plan.cluster, plan.chosen.config, plan.chosen.placement)
    reserve = plan.job.memory_reserve
    stages = [s.memory for s in plan.chosen.cost.stages]
    largest = max(m.total_bytes for m in stages)
    unit, scale = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    lines = [*memory_bars(plan), "", f"{unit:<8}" + "".join(f"{head:>9}" for head in _HEADS)]
    for number, memory in enumerate(stages):
        values = [
            *part_bytes(memory).values(),
            memory.total_bytes,
            rooms[number] - memory.total_bytes,
        ]
        lines.append(f"stage {number:<2}" + "".join(f"{v / scale:>9.1f}" for v in values))
    each = (f"{gib(c * (1 - reserve))} of {gib(c)}" for c in sorted(set(rooms)))
    limits = " or ".join(dict.fromkeys(each))
    lines += ["", f"Limit {limits}: {reserve:.0%} of a device stays free"]
    return lines


def frontier_lines(plan: Plan) -> list[str]:
    """Layouts that no other beats in both time and memory."""
    if not plan.frontier:
        return ["This plan has no frontier of time and memory"]
    base = plan.chosen.cost.step_s
    lines = [
        "Layouts that no other beats in both step and peak memory",
        "",
        f"     {'layout':<44}{'step':>9}{'peak':>11}{'vs chosen':>11}",
    ]
    for c in plan.frontier:
        mine = c.config == plan.chosen.config
        cost = "chosen" if mine else f"{c.cost.step_s / base - 1:+.1%}"
        name = f"{c.config.label} {c.config.schedule}"
        if len(name) > 43:
            first, *more = textwrap.wrap(name, 75, break_on_hyphens=False)
            lines.append(f" {'✔' if mine else ' '}   {first}")
            name, mine = "".join(f"  {part}" for part in more), False
        lines.append(
            f" {'✔' if mine else ' '}   {name:<44}{seconds(c.cost.step_s):>9}"
            f"{size(c.cost.peak_bytes):>11}{cost:>11}"
        )
    return lines
