"""Why not another layout: the best one with the given values, or what forbids them."""

from collections import Counter
from dataclasses import dataclass, field

from planner.axes import check_axes
from planner.objective import numbers_of_devices
from planner.plan import Candidate, Plan, SearchOptions
from planner.space import RULES, SENTENCES, enumerate_layouts
from profiler.codec import replace
from profiler.errors import UserError

Pins = dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a layout with the pinned values would cost, or why there is none."""

    pins: Pins
    dropped: tuple[str, ...] = ()
    """Narrowings of the plan that the question set aside, as `--pin tp=8`."""
    best: Candidate | None = None
    """The fastest layout with the pins."""
    message: str = ""
    """Why there is none."""
    details: tuple[str, ...] = ()
    hint: str = ""
    rejected: dict[str, int] = field(default_factory=dict)
    """By rule, where there is none."""
    num_valid: int | None = None
    """Layouts with the pins that break no rule, where there is none that fits."""


def why_not(plan: Plan, pins: Pins) -> Answer:
    """Search again with the plan's inputs and `pins`, which go before the plan's own narrowing.

    Raises `UserError` for an axis or a value that does not exist, and where the plan's inputs
    cannot be planned at all.
    """
    from planner.search import make_plan  # here: texts about an answer need none

    check_axes("--not", {axis: values for axis, values in pins.items() if axis != "devices"})
    options, dropped = _options(plan.options, pins)
    try:
        best = make_plan(plan.model, plan.job, plan.profile, options).chosen
    except UserError as e:
        if e.kind != "infeasible":
            raise
        rejected, num_valid = _counts(plan, options)
        counted = bool(rejected) and num_valid == 0  # the details say no more than the counts
        return Answer(
            pins=pins,
            dropped=dropped,
            message=e.message,
            details=() if counted else e.details,
            hint=e.hint or "",
            rejected=rejected,
            num_valid=num_valid,
        )
    return Answer(pins=pins, dropped=dropped, best=best)


def _options(own: SearchOptions, pins: Pins) -> tuple[SearchOptions, tuple[str, ...]]:
    """The plan's narrowing with the pins before it, and what of it had to go."""
    if "devices" in pins:
        numbers = pins["devices"]
        if not all(n.isascii() and n.isdigit() and len(n) < 10 and int(n) for n in numbers):
            raise UserError(
                f"`--not devices={','.join(numbers)[:40]}` is no number of devices",
                hint="like `devices=16`",
            )
        own = replace(own, devices=tuple(sorted({int(n) for n in numbers})))
        pins = {axis: values for axis, values in pins.items() if axis != "devices"}
    dropped = [
        f"--pin {axis}={','.join(own.pin[axis])}"
        for axis in pins
        if axis in own.pin and own.pin[axis] != pins[axis]
    ]
    forbid: Pins = {}
    for axis, values in own.forbid.items():
        asked = pins.get(axis, ())
        kept = tuple(v for v in values if v not in asked)
        dropped += [f"--forbid {axis}={v}" for v in values if v in asked]
        if kept:
            forbid[axis] = kept
    return replace(own, pin=own.pin | pins, forbid=forbid, top=0), tuple(dropped)


def _counts(plan: Plan, options: SearchOptions) -> tuple[dict[str, int], int | None]:
    """Rejections by rule, and how many layouts are left; of unlike devices, neither."""
    from planner.cost import cost_model

    if len(plan.cluster.groups) > 1:
        return {}, None
    rejected: Counter[str] = Counter()
    costs = cost_model(plan.model, plan.job, plan.profile)
    num_valid = 0
    for num_devices in numbers_of_devices(options, plan.cluster.uniform):
        chunks = enumerate_layouts(
            num_devices,
            plan.job,
            plan.model,
            options,
            costs.coverage,
            devices_per_node=plan.cluster.uniform.devices_per_node,
            rejected=rejected,
            rules=(*RULES, *costs.rules),
        )
        num_valid += sum(len(chunk) for chunk in chunks)
    return dict(rejected), num_valid


def sentence(rule: str) -> str:
    """What a rule says."""
    return SENTENCES.get(rule, rule)
