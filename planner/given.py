"""A plan for a layout that the user gives, instead of one that the search finds.

Its cost is estimated where the cost model covers the layout; elsewhere the plan says that there is
no estimate. The file (YAML or JSON) holds the fields of `ParallelConfig` and `Placement`; degrees
left out are 1, and stages left out share the blocks evenly.
"""

from itertools import pairwise
from typing import Annotated

from annotated_types import Gt, Le

from planner.config import (
    CpMethod,
    ExpertSlots,
    Offload,
    ParallelConfig,
    Placement,
    Recompute,
    ScheduleName,
    ZeroStage,
)
from planner.cost import cost_model, prepare_placed
from planner.estimate import estimate
from planner.layout import check_layout
from planner.plan import Candidate, Plan, SearchCounts, SearchOptions, plan_id
from planner.prepared import Costs
from planner.search import check_profile
from profiler.codec import record, replace
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec, NotNegative
from profiler.profile import Profile

Degree = Annotated[int, Gt(0), Le(10**5)]


@record
class LayoutFile:
    """Content of a layout file."""

    pp: Degree = 1
    vpp: Annotated[int, Gt(0), Le(64)] = 1
    dp_replicate: Degree = 1
    dp_shard: Degree = 1
    zero: ZeroStage = 0
    cp: Degree = 1
    cp_method: CpMethod = "ring"
    cp_heads: Degree = 1
    tp: Degree = 1
    ep: Degree = 1
    etp: Degree = 1
    ep_overlap: Annotated[int, Gt(0), Le(64)] = 1
    micro_batch: Degree = 1
    recompute: Recompute = "none"
    schedule: ScheduleName = "1f1b"
    offload: Offload = "none"
    stages: tuple[tuple[NotNegative, NotNegative], ...] = ()
    ranks: tuple[NotNegative, ...] = ()
    interfaces: tuple[str, ...] = ()
    recompute_layers: tuple[Recompute, ...] = ()
    experts: tuple[ExpertSlots, ...] = ()
    table: tuple[str, ...] = ()

    @property
    def config(self) -> ParallelConfig:
        """Its degrees and choices."""
        names = ParallelConfig.__dataclass_fields__
        return ParallelConfig(**{name: getattr(self, name) for name in names})

    def placement(self, model: ModelSpec) -> Placement:
        """Its assignments."""
        return Placement(
            stages=self.stages or even_blocks(len(model.blocks), self.config.num_stages),
            ranks=self.ranks,
            interfaces=self.interfaces,
            recompute=self.recompute_layers,
            experts=self.experts,
            table=self.table,
        )


def even_blocks(num_blocks: int, num_stages: int) -> tuple[tuple[int, int], ...]:
    """Blocks dealt out evenly, the first stages taking one more."""
    each, more = divmod(num_blocks, num_stages)
    ends = [0]
    for stage in range(num_stages):
        ends.append(ends[-1] + each + (stage < more))
    return tuple(pairwise(ends))


def candidate_of(costs: Costs, config: ParallelConfig, placement: Placement) -> Candidate:
    """The layout with its cost, where the cost model and the profile reach it."""
    if not costs.covers(config, placement):
        return Candidate(config=config, placement=placement, estimate=None)
    prepared = prepare_placed(costs.model, costs.job, costs.profile, config, placement)
    if prepared.peak_bytes > costs.capacity_bytes:
        raise UserError(
            f"layout `{config.label}` needs {prepared.peak_bytes / 2**30:.1f} GiB on its fullest "
            f"device (limit {costs.capacity_bytes / 2**30:.1f} GiB)",
            hint="`meshwright plan` without `--layout` looks for one that fits",
            kind="infeasible",
        )
    found = estimate(costs, prepared)
    # What costs the same anywhere is still asked for: ranks on alike nodes, interfaces, experts.
    return replace(found, placement=replace(placement, stages=found.placement.stages))


def plan_for(
    model: ModelSpec, job: JobSpec, profile: Profile, layout: LayoutFile, place: str
) -> Plan:
    """The plan of one given layout, which errors call `place`. Pure: equal inputs, equal plan.

    Raises `UserError` for a layout that cannot be, needs other devices than there are, or more
    memory than they have.
    """
    check_profile(model, job, profile)
    if len(profile.cluster.groups) > 1:
        raise UserError(
            f"cluster `{profile.cluster.name}` mixes {len(profile.cluster.groups)} kinds of node, "
            "for which no layout can be given",
            hint="leave `--layout` out, or give one node group in the cluster file",
            place=place,
        )
    config = layout.config
    if config.num_devices != profile.cluster.num_devices:
        raise UserError(
            f"layout `{config.label}` needs {config.num_devices} devices, "
            f"cluster `{profile.cluster.name}` has {profile.cluster.num_devices}",
            hint="pp * dp_replicate * dp_shard * cp * tp is the number of devices",
            place=place,
        )
    placement = layout.placement(model)
    try:
        check_layout(model, job, config, placement, place)
    except UserError as e:  # a table that cannot be read does not know its file
        raise UserError(e.message, hint=e.hint, place=e.place or place) from None
    chosen = candidate_of(cost_model(model, job, profile), config, placement)
    plan = Plan(
        id="",
        model=model,
        job=job,
        cluster=profile.cluster,
        profile=profile,
        options=SearchOptions(pin={}, forbid={}, top=0),
        chosen=chosen,
        alternatives=(),
        counts=SearchCounts(enumerated=0, rejected={}, pruned=0, simulated=0),
    )
    return replace(plan, id=plan_id(plan))
