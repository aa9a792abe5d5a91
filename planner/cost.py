"""The cost model that a profile calls for: from its constants, or from its measured entries."""

from planner.analytic import AnalyticCosts
from planner.config import ParallelConfig, Placement
from planner.measured import MeasuredCosts
from planner.mixed_costs import MixedCosts
from planner.prepared import Costs, Prepared
from planner.simulate import simulate
from planner.where import groups_of_ranks
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile


def cost_model(model: ModelSpec, job: JobSpec, profile: Profile) -> Costs:
    """Costs of layouts of `model` and `job` on the profile's cluster."""
    if profile.is_analytic:
        return AnalyticCosts(model, job, profile)
    return MeasuredCosts(model, job, profile)


def in_order_s(costs: Costs, config: ParallelConfig) -> float:
    """Step of the layout with its ranks in the order of the hosts; 0 where these are alike."""
    if not isinstance(costs, MeasuredCosts) or costs.hosts is None:
        return 0.0
    ready = costs.in_order(config)
    return 0.0 if ready is None else simulate(ready.program, ready.sharing).step_s


def prepare_placed(
    model: ModelSpec, job: JobSpec, profile: Profile, config: ParallelConfig, placement: Placement
) -> Prepared:
    """A layout of a plan again, ready to simulate, on any cluster."""
    kinds = groups_of_ranks(profile.cluster, config, placement)
    used = sorted({g for own in kinds for g in own})
    if not profile.is_analytic:
        prepared = MeasuredCosts(model, job, profile).placed(config, placement)
    elif len(profile.cluster.groups) == 1:
        prepared = AnalyticCosts(model, job, profile).prepare(config, placement.stages)
    elif len(used) == 1:
        alone = AnalyticCosts(model, job, profile.of_group(used[0]))
        prepared = alone.prepare(config, placement.stages)
    elif placement.devices:
        mixed = MixedCosts(model, job, profile)
        prepared = mixed.prepare(config, tuple(own[0] for own in kinds), placement.stages)
    else:
        nodes = sum(g.num_nodes for g in profile.cluster.groups)
        each = [AnalyticCosts(model, job, profile.of_group(g, nodes)) for g in used]
        found = slowest(each, config, placement)
        prepared = None if found is None else found[1]
    if prepared is None:
        raise ValueError("the stages of a plan need no split")
    return prepared


def slowest(
    kinds: list[AnalyticCosts], config: ParallelConfig, placement: Placement
) -> tuple[AnalyticCosts, Prepared] | None:
    """Of kinds of node that all work on every stage, the one that takes longest; None where a
    layout does not fit all of them."""
    ready = []
    for costs in kinds:
        prepared = costs.prepare(config, placement.stages)
        if prepared is None or prepared.peak_bytes > costs.capacity_bytes:
            return None
        ready.append((simulate(prepared.program, prepared.sharing).step_s, costs, prepared))
    _, costs, prepared = max(ready, key=lambda each: each[0])
    return costs, prepared
