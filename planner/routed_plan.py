"""Recorded routing in the choice of a layout: experts placed for each degree of `ep`, the loads
that this leaves priced in, and the chosen degree's placement in the plan.

Ranks of an `ep` group follow each other (`planner.grid`), so that a node holds as many of them as
it has devices, at most. Replicas are rounded up to fill all ranks evenly.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from planner.config import ExpertSlots
from planner.expert_placement import (
    Floats,
    Ranks,
    Rates,
    degrees_of,
    load_of,
    parts_of,
    place,
    rates_of,
    routing_groups,
)
from planner.plan import Plan, plan_id
from profiler.codec import replace
from profiler.job import ACTIVATION_BYTES, JobSpec
from profiler.model import ModelSpec
from profiler.profile import ExpertLoad, HostLinks, Profile
from profiler.routing.trace import Routing

Placements = dict[int, tuple[ExpertSlots, ...]]
"""By ep."""
Progress = Callable[[int, int, str], None]


def with_loads(
    profile: Profile,
    routing: Routing,
    job: JobSpec,
    *,
    redundant: int = 0,
    wanted: Sequence[int] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Profile, Placements]:
    """The profile with what routing leaves to the fullest rank of each `ep` (of `wanted`, where
    that is not empty), and the placements that do so."""
    model = profile.model
    devices = sum(g.num_nodes * g.devices_per_node for g in profile.cluster.groups)
    degrees = degrees_of(model, devices, wanted)
    loads, placements = list[ExpertLoad](), Placements()
    for number, ep in enumerate(degrees):
        if progress is not None:
            progress(number, len(degrees), f"placing experts on {ep} ranks")
        ranks = ranks_of(profile, job, ep, redundant)
        found = place(routing, ranks, seed=seed, compare=False)
        placements[ep] = found.layers
        loads.append(_load(profile, routing, job, found.layers))
    return replace(profile, expert_loads=tuple(loads)), placements


def with_layout(
    profile: Profile, routing: Routing, job: JobSpec, layers: Sequence[ExpertSlots]
) -> Profile:
    """The profile with what routing leaves to the fullest rank where experts are so placed."""
    return replace(profile, expert_loads=(_load(profile, routing, job, layers),))


def _load(
    profile: Profile, routing: Routing, job: JobSpec, layers: Sequence[ExpertSlots]
) -> ExpertLoad:
    ep = len(layers[0].slots)
    most = max(len(slots) for layer in layers for slots in layer.slots)
    parts = [parts_of(layer, profile.model.num_experts) for layer in layers]
    return load_of(
        routing, parts, most, window=job.seq_len * ep,
        capacity=profile.model.capacity_factor or 0.0, keep_shares=not profile.is_analytic,
    )  # fmt: skip


def ranks_of(profile: Profile, job: JobSpec, ep: int, redundant: int = 0) -> Ranks:
    """The ranks of a group of `ep`, as a training step uses them."""
    model, node = profile.model, profile.cluster.groups[0]
    ranks = Ranks(
        num_ranks=ep,
        ranks_per_node=math.gcd(ep, node.devices_per_node),
        slots_per_rank=-(-(model.num_experts + redundant) // ep),
        rates=_rates(profile, job),
        num_groups=routing_groups(model),
    )
    if profile.links is None or ep != node.num_nodes * node.devices_per_node:
        return ranks
    return _on_links(ranks, profile.links, _token_bytes(model, job))


def _token_bytes(model: ModelSpec, job: JobSpec) -> float:
    """Of a choice in a training step: out and back, forward and backward."""
    return 4.0 * model.hidden_size * ACTIVATION_BYTES[job.precision]


def _rates(profile: Profile, job: JobSpec) -> Rates:
    """Of a training step: of experts that were profiled, else of the catalogue."""
    model, node = profile.model, profile.cluster.groups[0]
    constants = profile.group_constants[0] if profile.group_constants else profile.constants
    rates = rates_of(model, job, node, constants).trained
    entries = [e for e in profile.blocks if e.block == "experts" and e.status == "ok"]
    if not entries:
        return rates
    entry = min(entries, key=lambda e: e.micro_batch)
    times = (entry.forward, entry.input_grad, entry.weight_grad)
    choices = entry.micro_batch * profile.seq_len * model.num_experts_per_token
    num_bytes = _token_bytes(model, job)
    between = _between(profile.links) if profile.links else np.empty(0)
    # The devices of a host share its NIC.
    each = num_bytes * node.devices_per_node / float(np.median(between)) if len(between) else 0.0
    return replace(
        rates,
        compute_s=sum(t.median_s for t in times if t) / choices,
        inter_s=each or rates.inter_s,
    )


def _between(links: HostLinks) -> Floats:
    """Bytes per second of all pairs of hosts."""
    rates = np.array(links.bytes_per_s)
    return rates[~np.eye(len(rates), dtype=np.bool_)]


def _on_links(ranks: Ranks, links: HostLinks, num_bytes: float) -> Ranks:
    """On hosts that `ep` fills, whose links are known one by one: seconds of a copy, all ways."""
    return replace(
        ranks,
        pair_s=num_bytes / np.array(links.bytes_per_s),
        out_s=num_bytes / np.array(links.out_bytes_per_s),
        in_s=num_bytes / np.array(links.in_bytes_per_s),
    )


def loads_again(facts: Profile, old: Plan) -> Profile:
    """Facts for a plan after `old`, with the load of its ep where its experts were placed; what
    routing would leave to other degrees is not known any more."""
    chosen = old.chosen
    known = old.profile.expert_loads if chosen.placement.experts else ()
    kept = tuple(each for each in known if each.ep == chosen.config.ep)
    return replace(facts, expert_loads=kept)


def experts_again(plan: Plan, old: Plan) -> Plan:
    """The plan with its experts where `old` has them, if they are spread over as many ranks."""
    layers = old.chosen.placement.experts
    return with_experts(plan, {old.chosen.config.ep: layers}) if layers else plan


def with_experts(plan: Plan, placements: Placements) -> Plan:
    """The plan with its chosen layout's experts where the routing wants them."""
    layers = placements.get(plan.chosen.config.ep)
    if layers is None:
        return plan
    placement = replace(plan.chosen.placement, experts=layers)
    found = replace(plan, id="", chosen=replace(plan.chosen, placement=placement))
    return replace(found, id=plan_id(found))
