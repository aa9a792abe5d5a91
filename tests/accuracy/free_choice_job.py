"""Published jobs and what the planner would choose for them, with nothing or little pinned.

A job is a model, nodes of devices, a global batch, a sequence length, a precision and a training
software; its layouts are those that were run. Both sides are predicted by the same model with the
same assumptions about the software (`plan_software`: no CUDA graphs, no fused exchange), so that
what differs is the layout, and the split of the layers, which the planner levels.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from launch.published.runs import PublishedRun
from planner.axes import Axes, Coverage
from planner.config import ParallelConfig
from planner.cost import cost_model
from planner.layouts import Layouts
from planner.plan import Candidate, SearchOptions
from planner.predict import Run, predict_steps
from planner.search import make_plan
from planner.space import MEMORY_RULE, RULES
from planner.timing.inputs import plan_software
from profiler.analytic import analytic_profile
from profiler.cluster import ClusterSpec
from profiler.codec import replace
from profiler.errors import UserError
from profiler.profile import Profile

NOTHING = SearchOptions(pin={}, forbid={}, top=0)
SPACE, SOFTWARE, SEEN = "the whole space", "what the software has", "values seen in runs"
"""Narrowings of the choice, each inside the one before."""
COMPARED = ("tp", "pp", "vpp", "cp", "ep", "etp", "mbs", "zero", "recompute", "schedule")
"""Axes on which two layouts of a job differ; dp follows, and how far ZeRO shards is left out."""


@dataclass(frozen=True, slots=True)
class Published:
    """A layout that was run, as the planner sees it."""

    run: PublishedRun
    step_s: float
    terms: dict[str, float]
    refused: tuple[str, ...] = ()
    """Why the space does not contain it: ids of rules, `axis mbs`, memory."""

    @property
    def config(self) -> ParallelConfig:
        """Its layout."""
        return self.run.run.config

    @property
    def measured_s(self) -> float:
        """Seconds of a step."""
        return self.run.step_s or float("inf")


@dataclass(frozen=True, slots=True)
class Job:
    """Runs of one job and its profile."""

    runs: tuple[PublishedRun, ...]
    profile: Profile

    @property
    def run(self) -> Run:
        """Any of them: they differ in layout alone."""
        return self.runs[0].run

    @property
    def software(self) -> str:
        """Name of the training software."""
        return self.runs[0].software

    @property
    def whole_nodes(self) -> bool:
        """The runs fill the nodes that the planner lays out."""
        return self.profile.cluster.num_devices == self.run.num_devices


@dataclass(frozen=True, slots=True)
class Answer:
    """A job with its published layouts and the planner's choice by name of narrowing."""

    job: Job
    published: tuple[Published, ...]
    chosen: dict[str, Candidate] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def fastest(self) -> Published:
        """The layout that was measured fastest."""
        return min(self.published, key=lambda p: p.measured_s)

    def gain(self, name: str) -> float:
        """Predicted time of the fastest published layout over that of the choice, less 1."""
        return self.fastest.step_s / self.chosen[name].cost.step_s - 1


def jobs_of(runs: Iterable[PublishedRun]) -> list[Job]:
    """Runs by job, in the order of their first run."""
    found: dict[str, list[PublishedRun]] = {}
    for each in runs:
        run = each.run
        key = repr((run.model, run.group, run.num_devices, run.job, each.software))
        found.setdefault(key, []).append(each)
    jobs = []
    for same in found.values():
        run = same[0].run
        cluster = ClusterSpec(name=run.group.device.name, groups=(run.group,))
        profile = analytic_profile(run.model, run.job, cluster, same[0].software)
        jobs.append(Job(tuple(same), profile))
    return jobs


def published_of(job: Job) -> tuple[Published, ...]:
    """The job's layouts, predicted with the planner's assumptions, one for each distinct layout:
    its fastest run."""
    software = job.profile.software
    if software is None:
        raise ValueError("the profile has no constants")
    plain = plan_software(software, job.profile.cluster.uniform.device)
    best: dict[ParallelConfig, PublishedRun] = {}
    for each in sorted(job.runs, key=lambda r: r.step_s or float("inf")):
        best.setdefault(each.run.config, each)
    runs = [
        dataclasses.replace(
            r.run, software=dataclasses.replace(plain, balanced=r.run.software.balanced)
        )
        for r in best.values()
    ]
    return tuple(
        Published(run, seconds, terms, _stated(run, refusals(job, run.run.config)))
        for run, (seconds, terms) in zip(best.values(), predict_steps(runs), strict=True)
    )


def _stated(run: PublishedRun, refused: tuple[str, ...]) -> tuple[str, ...]:
    """The refusal, which may be none where the row does not say what it recomputes."""
    if refused == (MEMORY_RULE,) and not run.cells.get("recompute"):
        return ("memory, recomputation not stated",)
    return refused


def refusals(job: Job, config: ParallelConfig) -> tuple[str, ...]:
    """Why the search has not this layout: rules that it breaks, axes whose usual values lack its
    own, else memory."""
    run = job.run
    layouts = Layouts.from_configs([config])
    broken = [rule.id for rule in RULES if rule.mask(layouts, run.model, run.job)[0]]
    if run.job.global_batch % config.num_replicas and "batch" not in broken:
        broken.append("batch")
    if broken:
        return tuple(broken)
    axes = Axes(run.model, run.job, NOTHING, Coverage(), run.group.devices_per_node)
    unusual = tuple(f"unusual {axis}" for axis in unusual_axes(axes, config, run.num_devices))
    if unusual:
        return unusual
    costs = cost_model(run.model, run.job, job.profile)
    needed = costs.least_memory(config).total_bytes
    return (MEMORY_RULE,) if needed > costs.capacity_bytes else ()


def unusual_axes(axes: Axes, c: ParallelConfig, num_devices: int) -> list[str]:
    """Axes on which the search does not look at the layout's value of itself."""
    has = {
        "tp": c.tp in axes.tensor(num_devices),
        "pp": c.pp in axes.pipeline(num_devices // c.tp),
        "cp": c.cp in axes.context(num_devices // (c.tp * c.pp)),
        "cp_method": c.cp == 1 or (c.cp_method, c.cp_heads) in axes.methods(c.cp),
        "sharding": (c.dp_replicate, c.dp_shard, c.zero)
        in axes.replicas(c.num_replicas, c.cp * c.tp),
        "ep": (c.ep, c.etp, c.ep_overlap) in axes.experts(c.stage_ranks, c.tp),
        "mbs": c.micro_batch in axes.micro_batches(c.num_replicas, c.cp),
        "vpp": (c.schedule, c.vpp) in axes.schedules(c.pp),
        "recompute": c.recompute in axes.recomputes(),
        "offload": c.offload in axes.offloads(),
    }
    return [axis for axis, known in has.items() if not known]


def axes_of(config: ParallelConfig) -> dict[str, str]:
    """Axis -> value, of `COMPARED`."""
    values = {axis: getattr(config, {"mbs": "micro_batch"}.get(axis, axis)) for axis in COMPARED}
    return {axis: str(value) for axis, value in values.items()}


def differing(one: ParallelConfig, other: ParallelConfig) -> tuple[str, ...]:
    """Axes on which the layouts differ."""
    mine, theirs = axes_of(one), axes_of(other)
    return tuple(axis for axis in COMPARED if mine[axis] != theirs[axis])


def seen_values(runs: Iterable[PublishedRun]) -> dict[str, dict[str, set[str]]]:
    """Software -> axis -> the values that its published runs have."""
    seen: dict[str, dict[str, set[str]]] = {}
    for each in runs:
        table = seen.setdefault(each.software, {})
        for axis, value in axes_of(each.run.config).items():
            table.setdefault(axis, set()).add(value)
    return seen


def unseen(config: ParallelConfig, seen: dict[str, set[str]]) -> list[str]:
    """Axes on which the runs have another value than the layout, with the value where it is a
    name."""
    found = []
    for axis, value in axes_of(config).items():
        if value not in seen.get(axis, set()):
            found.append(axis if value.isdigit() else f"{axis} {value}")
    if config.cp > 1 and config.cp_method != "ring":  # rows do not say; ring is assumed
        found.append(f"cp_method {config.cp_method}")
    return found


def answer(job: Job, seen: dict[str, set[str]]) -> Answer:
    """The planner's choices for a job beside its published layouts."""
    found = Answer(job, published_of(job))
    software = job.profile.software
    if software is None:
        raise ValueError("the profile has no constants")
    free = replace(job.profile, software=replace(software, only={}))
    pins = {axis: tuple(sorted(values)) for axis, values in seen.items()}
    narrow = SearchOptions(pin={**pins, "cp_method": ("ring",)}, forbid={}, top=0)
    for name, profile, options in (
        (SPACE, free, NOTHING),
        (SOFTWARE, job.profile, NOTHING),
        (SEEN, free, narrow),
    ):
        try:
            plan = make_plan(job.run.model, job.run.job, profile, options)
        except UserError as e:
            found.errors[name] = e.message
        else:
            found.chosen[name] = plan.chosen
    return found
