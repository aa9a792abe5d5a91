"""Plan again from an old plan: its model, job, software and options, for what is there now.

What the command line says wins. Options that cannot be any more are dropped, and it is said. Where
nothing is possible on all devices, the error proposes what is: fewer of them, or another batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from planner.given import LayoutFile, plan_for
from planner.placed import on_hosts
from planner.plan import Plan, SearchOptions
from planner.remedies import with_remedy
from planner.routed_plan import (
    Placements,
    experts_again,
    loads_again,
    with_experts,
    with_loads,
)
from planner.search import make_plan
from planner.survivors import measured_for, places_of, without
from profiler.analytic import analytic_profile
from profiler.cluster import ClusterSpec
from profiler.codec import build, decode, read_text, replace, to_plain
from profiler.config_json import first_difference
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.links import Links
from profiler.model import ModelSpec
from profiler.profile import Profile
from profiler.routing.trace import Routing

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What the command line says otherwise than the old plan; None and empty: nothing."""

    cluster: ClusterSpec | None = None
    profile: Profile | None = None
    links: Links | None = None
    """Between the hosts that are there now; hosts of the old plan are known by their names."""
    lost: tuple[int, ...] = ()
    model: ModelSpec | None = None
    software: str | None = None
    job: Mapping[str, object] = field(default_factory=dict)
    """Fields of `JobSpec`."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Fields of `SearchOptions`."""
    layout: Path | None = None
    """Take this one instead of searching."""
    routing: Routing | None = None
    """What the run routed last; experts are placed by it where `ep` is another."""


def plan_again(old: Plan, changes: Changes, note: Note) -> Plan:
    """The plan for what is there now. `note` takes sentences about what was dropped.

    Raises `UserError`: `infeasible` where nothing fits, with what would; `stale` where the old
    plan's measurements do not speak of the nodes as they are now.
    """
    model = changes.model or old.model
    if first_difference(model, old.model):
        raise UserError(
            f"`{model.name}` is another model than the old plan's, `{old.model.name}`",
            hint="leave `--model` out: what was trained goes on",
        )
    job = build(JobSpec, to_plain(old.job) | dict(changes.job), "command line")
    cluster = _cluster(old, changes)
    facts = loads_again(_facts(old, changes, model, job, cluster), old)
    if changes.layout is not None:
        layout = decode(LayoutFile, read_text(changes.layout), str(changes.layout))
        return plan_for(model, job, facts, layout, str(changes.layout))
    options, placements = _options(old, changes, facts.cluster, note), Placements()
    if changes.routing is not None:
        own = facts.expert_loads
        facts, placements = with_loads(facts, changes.routing, job)
        others = [each for each in facts.expert_loads if each.ep != old.chosen.config.ep]
        facts = replace(facts, expert_loads=(*own, *others))
    try:
        return experts_again(with_experts(make_plan(model, job, facts, options), placements), old)
    except UserError as e:
        if e.kind != "infeasible" or "devices" in changes.options:
            raise
        raise _with_proposals(e, model, job, facts, options) from None


def by_names(old: Plan, changes: Changes) -> Changes:
    """With the lost nodes that the names of the hosts tell, and the links in the old order."""
    links, known = changes.links, old.profile.links
    if links is None or known is None:
        return changes
    gone = tuple(n for n, host in enumerate(known.hosts) if host not in links.hosts)
    ordered = links.of_hosts(places_of(known.hosts, links.hosts))
    return replace(changes, links=ordered, lost=tuple(sorted({*changes.lost, *gone})))


def _cluster(old: Plan, changes: Changes) -> ClusterSpec:
    if changes.cluster is not None:
        without(old.cluster, changes.lost)  # their numbers must be right all the same
        return changes.cluster
    if changes.links is not None:
        return on_hosts(changes.profile or old.profile, changes.links).cluster
    if changes.profile is not None:
        return changes.profile.cluster
    if not changes.lost:
        raise UserError(
            "nothing says what is there now",
            hint="give `--cluster`, `--profile`, `--links`, or `--lost` with what is gone",
        )
    return without(old.cluster, changes.lost)


def _facts(
    old: Plan, changes: Changes, model: ModelSpec, job: JobSpec, cluster: ClusterSpec
) -> Profile:
    """The new profile, the old one's measurements, or the catalogue's constants."""
    if changes.links is not None:
        base = on_hosts(changes.profile or old.profile, changes.links)
        if base.cluster.num_devices != cluster.num_devices:
            raise UserError(
                f"the links are those of {len(changes.links.hosts)} hosts, and cluster "
                f"`{cluster.name}` has {cluster.num_devices} devices",
                hint="leave `--cluster` out: the links name the hosts",
            )
        return base
    if changes.profile is not None:
        return measured_for(changes.profile, cluster)
    if old.profile.is_analytic:
        known = old.profile.software
        return analytic_profile(
            model, job, cluster, changes.software or (known.name if known else None)
        )
    if changes.software:
        raise UserError("`--software` has no say where there is a profile", hint="leave it out")
    return measured_for(old.profile, cluster, changes.lost)


def _options(old: Plan, changes: Changes, cluster: ClusterSpec, note: Note) -> SearchOptions:
    """The old plan's with the changes, without numbers of devices that there are no more."""
    options = replace(old.options, **changes.options)
    if "devices" in changes.options:
        return options
    total = cluster.num_devices
    kept = tuple(n for n in options.devices if n <= total)
    if kept != options.devices:
        note(f"The old plan asked for more devices than there are: planning for {total}")
    pinned = options.pin.get("devices")
    if pinned and any(int(n) > total for n in pinned if n.isdigit()):
        options = replace(options, pin={k: v for k, v in options.pin.items() if k != "devices"})
    return replace(options, devices=kept)


def _with_proposals(
    error: UserError, model: ModelSpec, job: JobSpec, facts: Profile, options: SearchOptions
) -> UserError:
    """The same error, with what would be possible on these devices."""
    found = [*_fewer_devices(model, job, facts, options), *_batches(model, job, facts, options)]
    if not found:
        return with_remedy(error, model, job, facts, options)
    return UserError(
        error.message, details=(*error.details, *found), kind=error.kind, place=error.place,
        hint="plan again with one of these options",
    )  # fmt: skip


def _fewer_devices(
    model: ModelSpec, job: JobSpec, facts: Profile, options: SearchOptions
) -> list[str]:
    """The most devices, in whole nodes, on which the batch stays as it is."""
    if len(facts.cluster.groups) > 1:
        return []
    group = facts.cluster.uniform
    for nodes in range(group.num_nodes - 1, 0, -1):
        number = nodes * group.devices_per_node
        try:
            found = make_plan(model, job, facts, replace(options, devices=(number,)))
        except UserError:
            continue
        idle = facts.cluster.num_devices - number
        return [
            f"possible: `--devices {number}`, which leaves {idle} idle "
            f"({found.chosen.config.label}, {found.chosen.cost.step_s:.4g} s)"
        ]
    return []


def _batches(model: ModelSpec, job: JobSpec, facts: Profile, options: SearchOptions) -> list[str]:
    """The nearest global batches below and above that divide; another batch is other training."""
    total, found = facts.cluster.num_devices, []
    for batches in (
        range(job.global_batch - 1, max(0, job.global_batch - total) - 1, -1),
        range(job.global_batch + 1, job.global_batch + total + 1),
    ):
        number = next((b for b in batches if b > 0 and b % total == 0), None)
        if number is None:
            continue
        try:
            make_plan(model, replace(job, global_batch=number), facts, options)
        except UserError:
            continue
        found.append(f"possible: `--global-batch {number}`, which changes the training")
    return found
