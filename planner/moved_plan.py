"""A plan as it runs once its experts have moved: placed where they are, and priced by what was
routed there.

A run counts choices over many steps; what the fullest rank of an exchange takes is more than that
of the sum. So the exchanges of a load are drawn from the counts, choices independent of each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.config import ExpertSlots
from planner.cost import cost_model
from planner.expert_placement import FEWEST_WINDOWS
from planner.given import candidate_of
from planner.plan import Plan
from planner.routed_plan import with_layout
from profiler.codec import replace
from profiler.errors import UserError
from profiler.profile import ExpertLoad, Profile
from profiler.routing.trace import Counts, RoutingCounts

_MOST_WINDOWS = 64
"""Exchanges that are drawn: the mean of more is no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """Steps in which experts were in the same places."""

    experts: tuple[ExpertSlots, ...]
    """Slots of every MoE layer."""
    counts: Counts
    """[layers, experts]: choices of all ranks together."""
    num_steps: int
    """That count, of those that were timed."""


def exchanges_of(plan: Plan, counts: Counts) -> RoutingCounts:
    """Exchanges as those of the plan's `ep`, drawn from `counts` [layers, experts]; equal counts
    give equal ones."""
    choices = plan.job.seq_len * plan.chosen.config.ep * plan.model.num_experts_per_token
    number = int(counts.sum(axis=1).max() // choices)
    number = min(_MOST_WINDOWS, max(FEWEST_WINDOWS, number))
    parts = np.maximum(counts, 0) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    known = counts.sum(axis=1) > 0
    parts[~known] = 1 / counts.shape[1]
    generator = np.random.default_rng(0)
    rows = [generator.multinomial(choices, part, size=number) for part in parts]
    return RoutingCounts(windows=np.stack(rows, axis=1), model=plan.model.name)


def as_moved(plan: Plan, experts: tuple[ExpertSlots, ...], counts: Counts | None) -> Plan:
    """The plan, under its own id, with experts where they are now; where it is known what was
    routed, with the load and the estimate that this gives (as it was, where the cost model does not
    reach it)."""
    if counts is None:
        return _placed(plan, experts, plan.profile)
    found = _placed(plan, experts, _routed(plan, experts, counts))
    return _priced(found) or found


def as_run(plan: Plan, stays: Sequence[Stay]) -> Plan | None:
    """The plan, under its own id, with the estimate for the places and the routing of a run, mean
    over its timed steps; None where the cost model does not reach it."""
    timed = [stay for stay in stays if stay.num_steps]
    if not timed:
        return None
    profiles = [_routed(plan, stay.experts, stay.counts) for stay in timed]
    weights = [stay.num_steps for stay in timed]
    load = _mean([profile.expert_loads[0] for profile in profiles], weights)
    profile = replace(plan.profile, expert_loads=(load,))
    return _priced(_placed(plan, timed[-1].experts, profile))


def _routed(plan: Plan, experts: tuple[ExpertSlots, ...], counts: Counts) -> Profile:
    return with_layout(plan.profile, exchanges_of(plan, counts), plan.job, experts)


def _placed(plan: Plan, experts: tuple[ExpertSlots, ...], profile: Profile) -> Plan:
    placement = replace(plan.chosen.placement, experts=experts)
    return replace(plan, profile=profile, chosen=replace(plan.chosen, placement=placement))


def _priced(plan: Plan) -> Plan | None:
    """With the estimate for its profile; None where there was none or can be none."""
    if plan.chosen.estimate is None or len(plan.cluster.groups) > 1:
        return None
    costs = cost_model(plan.model, plan.job, plan.profile)
    try:
        chosen = candidate_of(costs, plan.chosen.config, plan.chosen.placement)
    except UserError:  # more memory than there is said to be: it ran all the same
        return None
    return replace(plan, chosen=chosen) if chosen.estimate else None


def _mean(loads: Sequence[ExpertLoad], weights: Sequence[int]) -> ExpertLoad:
    def of(values: Sequence[float]) -> float:
        return float(np.average(values, weights=weights))

    shares: tuple[tuple[float, ...], ...] = ()
    if all(load.shares for load in loads):
        mean = np.average([load.shares for load in loads], axis=0, weights=weights)
        shares = tuple(map(tuple, mean.tolist()))
    return replace(
        loads[-1],
        slots_per_rank=max(load.slots_per_rank for load in loads),
        imbalance=of([load.imbalance for load in loads]),
        held_imbalance=of([load.held_imbalance for load in loads]),
        replicated=of([load.replicated for load in loads]),
        shares=shares,
    )
