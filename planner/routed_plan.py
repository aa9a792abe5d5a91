"""Recorded routing in the choice of a layout: experts placed for each degree of `ep` and `etp`, the
loads that this leaves priced in, and the chosen degree's placement in the plan.

On one kind of node the seconds of a layer are in proportion to the fullest rank's choices, whatever
`etp` is: one placement of an `ep` does for all. On a cluster of several kinds
experts are placed for the ranks of each kind (pipeline ranks are on one) and for groups of ranks
that reach over kinds (`planner.expert_ranks`). Replicas are rounded up to fill all ranks evenly.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np

from planner.axes import divisors
from planner.config import ExpertSlots
from planner.expert_placement import (
    Floats,
    Ranks,
    Rates,
    Unlike,
    degrees_of,
    load_of,
    parts_of,
    place,
    rates_of,
    routing_groups,
)
from planner.expert_ranks import devices_of, spread_ranks, unlike_ranks
from planner.pipeline import moe_ranks
from planner.plan import Plan, plan_id
from planner.routed import fullest_of
from planner.where import groups_of_ranks
from profiler.codec import replace
from profiler.job import ACTIVATION_BYTES, JobSpec
from profiler.model import ModelSpec
from profiler.profile import ExpertLoad, HostLinks, Profile
from profiler.routing.trace import Routing

Degree = tuple[int, int, int | None]
"""ep, etp, and the node group on which all ranks are (None: the only one, or several)."""
Placements = dict[Degree, tuple[ExpertSlots, ...]]
Progress = Callable[[int, int, str], None]


def with_loads(
    profile: Profile,
    routing: Routing,
    job: JobSpec,
    *,
    redundant: int = 0,
    pin: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Profile, Placements]:
    """The profile with what routing leaves to the fullest rank of each `ep` and `etp` (of the
    search's `pin`, where that has some), and the placements that do so."""
    degrees = degrees_to_place(profile, pin or {})
    loads, placements, known = list[ExpertLoad](), Placements(), _Known()
    for number, (ep, etp, group) in enumerate(degrees):
        if progress is not None:
            progress(number, len(degrees), f"placing experts on {ep} ranks")
        ranks = ranks_of(profile, job, ep, redundant, etp=etp, group=group)
        key = _problem_key(ranks)
        if key not in known:
            known[key] = place(routing, ranks, seed=seed, compare=False).layers
        placements[ep, etp, group] = known[key]
        load = _load(profile, routing, job, known[key], etp, group)
        # What is as of the ep's least etp is not said again (`planner.routed`).
        if not any(replace(each, etp=etp) == load for each in loads):
            loads.append(load)
    return replace(profile, expert_loads=tuple(loads)), placements


_Known = dict[tuple[object, ...], tuple[ExpertSlots, ...]]


def _problem_key(ranks: Ranks) -> tuple[object, ...]:
    """Equal where a placement for the one is as good for the other. Copies are of choices: where
    all ranks are alike, seconds are in proportion to the fullest rank's load, whatever nodes."""
    arrays = (
        ranks.slowdown, ranks.near_s, ranks.far_s, ranks.pair_s, ranks.out_s, ranks.in_s,
    )  # fmt: skip
    if all(each is None for each in arrays):
        return (ranks.num_ranks,)
    unlike = (None if each is None else each.tobytes() for each in arrays)
    return (ranks.num_ranks, ranks.ranks_per_node, ranks.rates, *unlike)


def degrees_to_place(profile: Profile, pin: Mapping[str, Sequence[str]]) -> tuple[Degree, ...]:
    """What the search may take. Measured experts are whole (`planner.spread_experts`)."""
    cluster = profile.cluster
    wanted = {axis: tuple(int(v) for v in pin.get(axis, ()) if v.isdigit())
              for axis in ("ep", "etp", "tp")}  # fmt: skip
    widest = max(group.devices_per_domain for group in cluster.groups)
    tensor = wanted["tp"] or [d for d in divisors(profile.model.num_heads) if d <= widest]
    usual = sorted({d for tp in tensor for d in divisors(tp)})
    widths = (wanted["etp"] or usual) if profile.is_analytic else [1]

    def of(group: int | None) -> list[Degree]:
        parts = [g for k, g in enumerate(cluster.groups) if group in (None, k)]
        num = sum(g.num_nodes * g.devices_per_node for g in parts)
        eps = degrees_of(profile.model, num, wanted["ep"], all_devices=group is None)
        return [(ep, etp, group) for etp, ep in product(widths, eps) if ep * etp <= num]

    if len(cluster.groups) == 1:
        return tuple(of(None))
    # Ranks reach over kinds where nodes have equally many devices (`planner.mixed`).
    even = len({g.devices_per_node for g in cluster.groups}) == 1
    found = [degree for k in range(len(cluster.groups)) for degree in of(k)]
    return tuple(found + (of(None) if even else []))


def with_layout(
    profile: Profile, routing: Routing, job: JobSpec, layers: Sequence[ExpertSlots], etp: int = 1
) -> Profile:
    """The profile with what routing leaves to the fullest rank where experts are so placed."""
    return replace(profile, expert_loads=(_load(profile, routing, job, layers, etp, None),))


def _load(
    profile: Profile, routing: Routing, job: JobSpec, layers: Sequence[ExpertSlots],
    etp: int, group: int | None,
) -> ExpertLoad:  # fmt: skip
    ep = len(layers[0].slots)
    most = max(len(slots) for layer in layers for slots in layer.slots)
    parts = [parts_of(layer, profile.model.num_experts) for layer in layers]
    unlike = None
    if len(profile.cluster.groups) > 1 and group is None:
        unlike = speeds_of(profile, job, ep, etp)
    found = load_of(
        routing, parts, most, window=job.seq_len * ep,
        capacity=profile.model.capacity_factor or 0.0, keep_shares=not profile.is_analytic,
        unlike=unlike,
    )  # fmt: skip
    return replace(found, etp=etp, group=group)


def ranks_of(
    profile: Profile, job: JobSpec, ep: int, redundant: int = 0, *, etp: int = 1,
    group: int | None = None,
) -> Ranks:  # fmt: skip
    """The ranks of a group of `ep`, as a training step uses them; on one node group of the cluster
    or over all of them."""
    model, cluster = profile.model, profile.cluster
    ranks = spread_ranks(
        devices_of(cluster, group), _all_rates(profile, job), ep, etp,
        -(-(model.num_experts + redundant) // ep), num_groups=routing_groups(model),
    )  # fmt: skip
    if profile.links is None or ep != cluster.num_devices:
        return ranks
    return _on_links(ranks, profile.links, _token_bytes(model, job))


def speeds_of(profile: Profile, job: JobSpec, ep: int, etp: int) -> Unlike:
    """Speeds of the places of ep groups over all devices in order, and of each node group."""
    return unlike_ranks(devices_of(profile.cluster), _all_rates(profile, job), ep, etp)


def _token_bytes(model: ModelSpec, job: JobSpec) -> float:
    """Of a choice in a training step: out and back, forward and backward."""
    return 4.0 * model.hidden_size * ACTIVATION_BYTES[job.precision]


def _all_rates(profile: Profile, job: JobSpec) -> list[Rates]:
    """Of each node group."""
    return [_rates(profile, job, g) for g in range(len(profile.cluster.groups))]


def _rates(profile: Profile, job: JobSpec, group: int) -> Rates:
    """Of a training step: of experts that were profiled, else of the catalogue."""
    model, node = profile.model, profile.cluster.groups[group]
    constants = profile.group_constants[group] if profile.group_constants else profile.constants
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


def load_of_plan(plan: Plan) -> ExpertLoad | None:
    """What was routed to the fullest ranks of the chosen layout; None where nobody knows."""
    config, known = plan.chosen.config, plan.profile.expert_loads
    groups = set(_groups_of(plan))
    of_ep = [each for each in known if each.ep == config.ep and each.group in groups]
    # As the table has it, where the etp is not in it.
    least = min((each.etp for each in of_ep), default=1)
    etp = config.etp if any(each.etp == config.etp for each in of_ep) else least
    return next(iter(fullest_of(each for each in of_ep if each.etp == etp)), None)


def loads_again(facts: Profile, old: Plan) -> Profile:
    """Facts for a plan after `old`, with the load of its ep where its experts were placed; what
    routing would leave to other degrees is not known any more."""
    chosen = old.chosen
    known = old.profile.expert_loads if chosen.placement.experts else ()
    kept = tuple(each for each in known if each.ep == chosen.config.ep)
    num_groups = len(facts.cluster.groups)
    if num_groups != len(old.cluster.groups):
        groups = (None, *range(num_groups)) if num_groups > 1 else (None,)
        plain = (replace(each, group=None, group_computed=(), group_sent=()) for each in kept)
        kept = tuple(replace(each, group=g) for g, each in product(groups, fullest_of(plain)))
    return replace(facts, expert_loads=kept)


def experts_again(plan: Plan, old: Plan) -> Plan:
    """The plan with its experts where `old` has them, if they are spread over as many ranks."""
    layers = old.chosen.placement.experts
    if not layers or plan.chosen.config.ep != old.chosen.config.ep:
        return plan
    return _placed(plan, layers)


def with_experts(plan: Plan, placements: Placements) -> Plan:
    """The plan with its chosen layout's experts where the routing wants them: of each layer, on the
    kind of node that its pipeline rank is on."""
    config, placement = plan.chosen.config, plan.chosen.placement
    found = [placements.get((config.ep, config.etp, group)) for group in _groups_of(plan)]
    of_rank = [each for each in found if each is not None]
    if len(of_rank) < config.pp:
        return plan
    ranks = moe_ranks(plan.model, config, placement)
    return _placed(plan, tuple(of_rank[rank][layer] for layer, rank in enumerate(ranks)))


def _groups_of(plan: Plan) -> tuple[int | None, ...]:
    """Of each pipeline rank the node group that its experts are placed for."""
    config, placement, cluster = plan.chosen.config, plan.chosen.placement, plan.cluster
    # Layouts on one group, and pipelines over several, name their devices (`planner.mixed`).
    if len(cluster.groups) == 1 or not placement.devices:
        return (None,) * config.pp
    return tuple(own[0] for own in groups_of_ranks(cluster, config, placement))


def _placed(plan: Plan, layers: tuple[ExpertSlots, ...]) -> Plan:
    placement = replace(plan.chosen.placement, experts=layers)
    found = replace(plan, id="", chosen=replace(plan.chosen, placement=placement))
    return replace(found, id=plan_id(found))
