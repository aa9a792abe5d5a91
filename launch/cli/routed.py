"""`plan --routing`: what a recording leaves to the fullest ranks, in the search and the plan."""

from pathlib import Path
from typing import TYPE_CHECKING

from launch.cli.terminal import Progress

if TYPE_CHECKING:
    from planner.given import LayoutFile
    from planner.plan import Plan, SearchOptions
    from profiler.job import JobSpec
    from profiler.model import ModelSpec
    from profiler.profile import Profile
    from profiler.routing.trace import Routing


def read_routing(path: Path, spec: "ModelSpec") -> "Routing":
    """A recording of this model's routing; `UserError` where it is of another's."""
    from launch.routing_files import read_any_routing
    from profiler.routing.checks import check_model
    from profiler.routing.readers import Wanted

    routing = read_any_routing(path, Wanted(num_experts=spec.num_experts or None, keys=()))
    check_model(routing, spec, str(path))
    return routing


def routed_plan(
    spec: "ModelSpec", job: "JobSpec", facts: "Profile", options: "SearchOptions",
    routing: "Routing", redundant: int,
) -> "Plan":  # fmt: skip
    """The best layout with its experts placed."""
    from planner.routed_plan import with_experts, with_loads
    from planner.search import make_plan

    progress = Progress()
    try:
        facts, placements = with_loads(
            facts, routing, job, redundant=redundant, pin=options.pin, progress=progress
        )
    finally:
        progress.close()
    return with_experts(make_plan(spec, job, facts, options), placements)


def given_loads(
    facts: "Profile", routing: "Routing", job: "JobSpec", layout: "LayoutFile"
) -> "Profile":
    """The loads of a given layout: of its own placement, else of consecutive experts."""
    from planner.holdings import contiguous_slots
    from planner.routed_plan import with_layout

    if layout.ep == 1:
        return facts
    model = facts.model
    layers = (
        layout.experts or (contiguous_slots(model.num_experts, layout.ep),) * model.num_moe_layers
    )
    return with_layout(facts, routing, job, layers, layout.etp)
