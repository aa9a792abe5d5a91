"""Choose the layout: enumerate, reject by rule and by memory, bound, simulate in order of the
bound.

A layout is simulated only while its lower bound is below the time of the worst layout still shown;
the rest is pruned without loss, so the result equals that of simulating everything (tested against
brute force).
"""

from collections import Counter

from planner.axes import check_options, pinned_stages
from planner.config import ParallelConfig
from planner.cost import CostModel, Prepared
from planner.estimate import estimate
from planner.plan import Candidate, Plan, SearchCounts, SearchOptions, plan_id
from planner.space import MEMORY_RULE, SENTENCES
from planner.today import Facts, enumerate_layouts, first_broken
from profiler.codec import replace
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile

_GIB = 2**30


def make_plan(model: ModelSpec, job: JobSpec, profile: Profile, options: SearchOptions) -> Plan:
    """The fastest layout of `model` on the profile's cluster. Pure: equal inputs, equal plan.

    Raises `UserError`: kind `infeasible` where nothing fits, `invalid` for options that make no
    sense, `stale` for a profile of something else.
    """
    check_options(options, model)
    check_profile(model, job, profile)
    costs = CostModel(model, job, profile)
    ready, counts = _prepare_all(costs, options)
    if not ready:
        raise _nothing_fits(costs, counts)
    best, simulated = _simulate(costs, ready, options.top + 1)
    plan = Plan(
        id="",
        model=model,
        job=job,
        cluster=profile.cluster,
        profile=profile,
        options=options,
        chosen=best[0],
        alternatives=tuple(best[1:]),
        counts=SearchCounts(
            enumerated=len(ready) + sum(counts.values()),
            rejected=dict(sorted(counts.items())),
            pruned=len(ready) - simulated,
            simulated=simulated,
        ),
    )
    return replace(plan, id=plan_id(plan))


def check_profile(model: ModelSpec, job: JobSpec, profile: Profile) -> None:
    """Raise `UserError` where the profile does not speak of this job."""
    differs = profile.fits(model, job)
    if differs:
        raise UserError(
            f"the profile does not speak of this job: {differs}",
            hint="profile again for this model and job, or leave `--profile` out",
            kind="stale",
        )
    device = profile.cluster.uniform.device
    if job.precision not in device.flops_per_s:
        raise UserError(
            f"device `{device.name}` does not compute in {job.precision}",
            hint=f"it has {', '.join(sorted(device.flops_per_s))}: choose with `--precision`",
        )


def _prepare_all(costs: CostModel, options: SearchOptions) -> tuple[list[Prepared], Counter[str]]:
    """All layouts that can be and fit, and how many broke which rule."""
    facts = Facts(costs.model, costs.job, costs.table, options)
    stages = pinned_stages(options)
    ready: list[Prepared] = []
    rejected: Counter[str] = Counter()
    for config in enumerate_layouts(costs.profile.cluster.num_devices, costs.job, costs.model):
        rule = first_broken(config, facts)
        prepared = None if rule else costs.prepare(config, stages)
        if rule:
            rejected[rule.id] += 1
        elif prepared is None or prepared.peak_bytes > costs.capacity_bytes:
            rejected[MEMORY_RULE] += 1
        else:
            ready.append(prepared)
    return ready, rejected


def _order(config: ParallelConfig) -> tuple[object, ...]:
    """Among equals the simpler layout: fewer stages, less tensor parallel, no recomputation."""
    return (
        config.pp,
        config.tp,
        config.recompute != "none",
        config.schedule != "1f1b",
        config.micro_batch,
    )


def _simulate(costs: CostModel, ready: list[Prepared], num: int) -> tuple[list[Candidate], int]:
    """The `num` fastest, fastest first, and how many were simulated."""
    best: list[Candidate] = []
    simulated = 0
    for prepared in sorted(ready, key=lambda p: (p.bound_s, _order(p.config))):
        # A bound and a simulated time that are equal in theory may differ in their last bits.
        if len(best) == num and prepared.bound_s > best[-1].cost.step_s * (1 + 1e-9):
            break
        simulated += 1
        best.append(estimate(costs, prepared))
        best.sort(key=lambda c: (c.cost.step_s, _order(c.config)))
        del best[num:]
    return best, simulated


def _nothing_fits(costs: CostModel, rejected: Counter[str]) -> UserError:
    """Names the closest miss in memory, or the rules that left nothing."""
    name, cluster = costs.model.name, costs.profile.cluster
    where = f"{cluster.num_devices} x {costs.node.device.name}"
    if not rejected[MEMORY_RULE]:
        rules = [f"{n} x {SENTENCES[rule]} ({rule})" for rule, n in rejected.most_common()]
        return UserError(
            f"no layout of `{name}` on {where} is possible",
            details=tuple(rules) or ("the global batch does not divide over any replicas",),
            hint="change `--global-batch` or `--seq-len`, or pin less",
            kind="infeasible",
        )
    closest, needed = _closest(costs)
    details = (
        f"closest: {closest.label} {closest.schedule} needs {needed / _GIB:.1f} GiB on its fullest "
        f"device (limit {costs.capacity_bytes / _GIB:.1f} GiB, "
        f"{costs.job.memory_reserve:.0%} of the device kept free)",
    )
    return UserError(
        f"no layout of `{name}` fits on {where}",
        details=details,
        hint="take more devices or ones with more memory; a smaller `--seq-len` saves activations",
        kind="infeasible",
    )


def _closest(costs: CostModel) -> tuple[ParallelConfig, int]:
    """The layout that needs least memory under a split for equal memory, though it does not fit."""
    facts = Facts(costs.model, costs.job, costs.table, SearchOptions(pin={}, forbid={}))
    best: tuple[int, ParallelConfig] | None = None
    for config in enumerate_layouts(costs.profile.cluster.num_devices, costs.job, costs.model):
        if first_broken(config, facts) is None:
            needed = costs.least_peak(config)
            if best is None or needed < best[0]:
                best = (needed, config)
    if best is None:
        raise ValueError("a layout was rejected for memory, yet none is valid")
    return best[1], best[0]
