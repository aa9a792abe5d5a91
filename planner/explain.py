"""Why a plan is what it is: each choice with the next best others, what limits it, what proves it.

All figures are the plan's own. A value of an axis that the chosen layout does not have costs what
the fastest simulated layout with it costs (`Plan.by_axis`, `alternatives`, `frontier`).
"""

import math
from dataclasses import dataclass, field

from planner.axes import divisors
from planner.config import ParallelConfig
from planner.grounds import SEARCHED, ground, value_of
from planner.objective import relative_cost
from planner.plan import TERMS, Candidate, Plan
from planner.rules import CONFIG_RULES, UNPLACED_RULES
from planner.simulate import Timeline, simulate
from planner.where import capacities_of
from planner.wording import gib, percent
from profiler.codec import replace

_ANY_DIVISOR = ("tp", "pp", "ep")
"""Degrees of which the search takes every divisor of the devices."""
_ALONE = {
    "tp": ("heads-tp", "kv-heads-tp", "ffn-tp", "shared-ffn-tp", "vocab-tp"),
    "pp": ("blocks-pp", "layers-pp"),
    "ep": ("no-experts", "experts-ep"),
}
"""Rules that look at one axis alone."""
_COMPONENTS = ("compute", "p2p", "collective", "idle")
_SHOWN, _HOSTS = 3, 8
_ROUNDING = 1e-9
"""Share of a step that is no more than what sums of floats leave."""
LITTLE = 0.005
"""Share of the step below which an order of hosts is no better than another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """Another value of an axis."""

    value: str
    cost: float | None
    """Its best layout's step over the chosen one's, less 1; None where it has none."""
    why: str = ""
    """Why there is none; of a number of devices where the fewest are sought, what more would do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One choice of the layout."""

    axis: str
    value: str
    text: str
    others: tuple[Other, ...] = ()
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why the chosen layout."""

    reasons: tuple[Reason, ...]
    limits: dict[str, str] = field(default_factory=dict)
    """What holds it back: `memory`, `time`, `bubble`, `link` -> a sentence."""
    proof: tuple[str, ...] = ()


def explain(plan: Plan) -> Explanation:
    """Reasons for the chosen layout; raises `UserError` where the plan has no estimate."""
    chosen = plan.chosen
    _ = chosen.cost
    reasons = tuple(
        Reason(
            axis=axis,
            value=value_of(chosen.config, axis),
            text=text,
            others=_others(plan, axis),
            pinned=axis in plan.options.pin,
        )
        for axis in SEARCHED
        if (text := ground(plan, axis)) is not None
    ) + _order(plan)
    return Explanation(reasons=reasons, limits=_limits(plan), proof=_proof(plan))


def _order(plan: Plan) -> tuple[Reason, ...]:
    """Why the ranks sit where they do, where links of hosts are known one by one."""
    if not plan.default_order_s:
        return ()
    more = plan.default_order_s / plan.chosen.cost.step_s - 1
    hosts = used_hosts(plan)
    shown = " ".join(hosts[:_HOSTS]) + (" ..." if hosts[_HOSTS:] else "")
    if more < LITTLE:
        return (Reason(axis="hosts", value="in order", text="no order found is faster"),)
    text = f"measured links: ranks follow each other on {shown}"
    return (
        Reason(axis="hosts", value="mapped", text=text, others=(Other(value="order", cost=more),)),
    )


def used_hosts(plan: Plan) -> tuple[str, ...]:
    """Hosts by the first coordinate on each; empty where the plan knows none."""
    links, chosen = plan.profile.links, plan.chosen
    if links is None:
        return ()
    where = chosen.placement.devices or chosen.placement.ranks or range(chosen.config.num_devices)
    per_node = plan.cluster.uniform.devices_per_node
    return tuple(dict.fromkeys(links.hosts[device // per_node] for device in where))


def timeline_of(plan: Plan) -> Timeline:
    """The simulated step of the chosen layout; raises `UserError` where the plan has no estimate.

    The one place where explaining asks the cost model."""
    from planner.cost import prepare_placed  # here: reasons need none

    chosen = plan.chosen
    _ = chosen.cost
    prepared = prepare_placed(plan.model, plan.job, plan.profile, chosen.config, chosen.placement)
    return simulate(prepared.program, prepared.sharing)


def shares(candidate: Candidate) -> dict[str, float]:
    """Share of the step by term, in the order of `TERMS`; by component in plans without terms."""
    e = candidate.cost
    parts = {name: e.terms[name] for name in TERMS if name in e.terms} or {
        name: getattr(e, f"{name}_s") for name in _COMPONENTS
    }
    total = sum(parts.values())
    if not total:
        return {}
    each = {name: seconds / total for name, seconds in parts.items()}
    return {name: share if share > _ROUNDING else 0.0 for name, share in each.items()}


def compare(ours: Candidate, theirs: Candidate) -> dict[str, tuple[float, float]]:
    """Seconds of a step by term of both, in the order of `TERMS`; by component where one of them
    has no terms. What is nothing but rounding is 0."""
    a, b = ours.cost, theirs.cost
    if a.terms and b.terms:
        names = [name for name in TERMS if name in a.terms or name in b.terms]
        pairs = {name: (a.terms.get(name, 0.0), b.terms.get(name, 0.0)) for name in names}
    else:
        pairs = {n: (getattr(a, f"{n}_s"), getattr(b, f"{n}_s")) for n in _COMPONENTS}
    least = _ROUNDING * a.step_s
    return {
        name: (x if x > least else 0.0, (x if abs(y - x) < least else y) if y > least else 0.0)
        for name, (x, y) in pairs.items()
    }


def _others(plan: Plan, axis: str) -> tuple[Other, ...]:
    """The next best other values, and what the neighbours that have none break."""
    chosen = value_of(plan.chosen.config, axis)
    base = plan.chosen.cost.step_s
    known = dict(_simulated(plan, axis))
    for value, step_s in plan.by_axis.get(axis, {}).items():
        known[value] = min(step_s, known.get(value, math.inf))
    others = [
        Other(value=value, cost=step_s / base - 1, why=_of_devices(plan, axis, value, step_s))
        for value, step_s in known.items()
        if value != chosen
    ]
    others.sort(key=lambda other: (other.cost, other.value))
    return (*others[:_SHOWN], *_impossible(plan, axis, {chosen, *known}))


def _of_devices(plan: Plan, axis: str, value: str, step_s: float) -> str:
    """What another number of devices takes, where the fewest are sought: it is no better for being
    faster."""
    if axis != "devices" or plan.options.objective != "devices":
        return ""
    more = int(value) / plan.chosen.config.num_devices
    step = step_s / plan.chosen.cost.step_s
    return f"a step of {step:.1%} of the time, {step * more - 1:+.1%} device time per token"


def _simulated(plan: Plan, axis: str) -> dict[str, float]:
    """Value -> step of the best layout with it among those that the plan shows; on other devices
    than the chosen one's, the step there that costs as much."""
    best: dict[str, float] = {}
    number = plan.chosen.config.num_devices
    apart = plan.options.objective == "devices" and axis != "devices"
    for candidate in (plan.chosen, *plan.alternatives, *plan.frontier):
        if candidate.estimate is not None and (candidate.config.num_devices == number or not apart):
            value = value_of(candidate.config, axis)
            cost = relative_cost(plan.options, plan.chosen, candidate) * plan.chosen.cost.step_s
            best[value] = min(cost, best.get(value, float("inf")))
    return best


def _impossible(plan: Plan, axis: str, known: set[str]) -> list[Other]:
    """Neighbouring values of a degree without any layout, where the search kept count."""
    if axis not in _ANY_DIVISOR or axis not in plan.by_axis or axis in plan.options.pin:
        return []
    options = divisors(plan.chosen.config.num_devices)
    place = options.index(int(value_of(plan.chosen.config, axis)))
    near = options[max(0, place - 1) : place] + options[place + 1 : place + 2]
    forbidden = plan.options.forbid.get(axis, ())
    return [
        Other(
            value=str(v),
            cost=None,
            why="forbidden"
            if str(v) in forbidden
            else _broken(plan, axis, v) or "no layout searched fits",
        )
        for v in near
        if str(v) not in known
    ]


def _broken(plan: Plan, axis: str, value: int) -> str | None:
    """Sentence of a rule that the value breaks whatever the other axes are."""
    plain = ParallelConfig(
        pp=1, dp_replicate=1, tp=1, micro_batch=1, recompute="none", schedule="1f1b"
    )
    config = replace(plain, **{axis: value})
    for rule in (*CONFIG_RULES, *UNPLACED_RULES):
        if rule.id in _ALONE.get(axis, ()) and rule.broken(config, plan.model, plan.job):
            return rule.sentence
    return "no layout searched fits"


def _limits(plan: Plan) -> dict[str, str]:
    """What holds the layout back: memory, and the costliest things besides matrix products."""
    e, job = plan.chosen.cost, plan.job
    capacities = capacities_of(plan.cluster, plan.chosen.config, plan.chosen.placement)
    full = [s.memory.total_bytes / room for s, room in zip(e.stages, capacities, strict=True)]
    stage = max(range(len(full)), key=lambda s: full[s])
    capacity, held = capacities[stage], e.stages[stage].memory.total_bytes
    usable = capacity * (1 - job.memory_reserve)
    limits = {
        "memory": f"stage {stage} is fullest: {gib(held)} of {gib(capacity)}, "
        f"{gib(max(0.0, usable - held))} free beside the {job.memory_reserve:.0%} reserve"
    }
    parts = shares(plan.chosen)
    useful = {"matrix", "compute"}
    costs = sorted((-share, name) for name, share in parts.items() if name not in useful)
    base = "matrix" if "matrix" in parts else "compute"
    top = [f"{name} {percent(-share)}" for share, name in costs[:3] if share < 0]
    limits["time"] = f"{base} {percent(parts.get(base, 0.0))} of the step; then " + (
        ", ".join(top) or "nothing"
    )
    if plan.chosen.config.pp > 1 and "bubble" in parts:
        limits["bubble"] = f"waiting in the pipeline takes {percent(parts['bubble'])} of the step"
    links = {n: parts[n] for n in ("tensor", "context", "expert", "messages", "reduction")
             if parts.get(n)}  # fmt: skip
    if links:
        most = max(links, key=lambda name: links[name])
        limits["link"] = (
            f"exposed communication takes {percent(sum(links.values()))} of the step, "
            f"most of it {most}"
        )
    return limits


def _proof(plan: Plan) -> tuple[str, ...]:
    """How far from its bounds, out of how many, and on what the figures rest."""
    e, counts = plan.chosen.cost, plan.counts
    lines = []
    if e.bound_s:
        gap = percent(max(0.0, e.step_s / e.bound_s - 1))
        lines.append(f"the step is {gap} above the lower bound of this layout")
    if plan.bound_s:
        gap = percent(max(0.0, e.step_s / plan.bound_s - 1))
        lines.append(f"it is {gap} above the lower bound of all layouts searched")
    if counts.enumerated:
        rejected = sum(counts.rejected.values())
        lines.append(
            f"of {counts.enumerated:,} layouts {rejected:,} were rejected, {counts.pruned:,} "
            f"pruned by their bound, {counts.simulated:,} simulated"
        )
    else:
        lines.append("the layout was given; nothing was searched")
    if e.measured_share:
        lines.append(f"{e.measured_share:.0%} of the busy time rests on measured entries")
    else:
        lines.append("all times are computed from catalogue numbers; nothing was measured")
    return tuple(lines)
