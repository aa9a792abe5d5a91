"""The plan: what was asked, what was chosen, what it should cost, and what else there was.

`plan.json` is canonical: no clock, no host name of the planning machine, and `id` is the hash of
all the rest, so that equal questions give equal files and a file can be checked by itself.

Components of a step are means over ranks and add up to it: `compute_s` (blocks, recomputation,
optimizer), `p2p_s` (waiting for a message that was already sent), `collective_s` (waiting in a
collective that every member had entered), `idle_s` (waiting for work that was not there yet).
"""

from dataclasses import field
from typing import Annotated, Literal, get_args

from annotated_types import Ge

from planner.config import ParallelConfig, Placement
from profiler.cluster import ClusterSpec
from profiler.codec import content_id, record, to_plain
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec, NotNegative, Positive
from profiler.profile import Profile, Seconds

FORMAT_VERSION = "1.4"
TERMS = (
    "matrix", "attention", "stream", "host", "recompute", "tensor", "context", "expert",
    "messages", "bubble", "reduction", "update", "base",
)  # fmt: skip
"""matrix: products with weights. attention: scores and values. stream: element-wise passes. host:
waiting for kernels to be started. recompute: forward run again. tensor, context, expert: exposed
communication of those axes. messages: between stages. bubble: waiting in the pipeline. reduction:
of gradients and gathering of weights, exposed. update: the optimizer. base: per step, once."""
Ratio = Annotated[float, Ge(0)]
Objective = Literal["step", "cost", "devices"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@record
class StageMemory:
    """Peak bytes of one rank of a stage, by what they hold."""

    weight_bytes: NotNegative
    grad_bytes: NotNegative
    """Those that exist at the peak: none before the first backward."""
    optimizer_bytes: NotNegative
    activation_bytes: NotNegative
    """Kept activations of all micro-batches in flight at the peak."""
    buffer_bytes: NotNegative
    """Receive buffers of the pipeline, which live from step to step."""
    workspace_bytes: NotNegative
    """What one block needs while it runs, beyond what it keeps."""

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return (
            self.weight_bytes + self.grad_bytes + self.optimizer_bytes
            + self.activation_bytes + self.buffer_bytes + self.workspace_bytes
        )  # fmt: skip


@record
class StageEstimate:
    """One rank of one stage over a step; the four components add up to the step."""

    compute_s: Seconds
    p2p_s: Seconds
    collective_s: Seconds
    idle_s: Seconds
    memory: StageMemory


@record
class Estimate:
    """Predicted cost of one layout."""

    step_s: Seconds
    compute_s: Seconds
    p2p_s: Seconds
    collective_s: Seconds
    idle_s: Seconds
    bound_s: Seconds
    """No schedule of this layout can be faster."""
    peak_bytes: NotNegative
    """Of the fullest rank."""
    tokens_per_s: Ratio
    mfu: Ratio
    """Model FLOP/s over the devices' peak."""
    measured_share: Ratio
    """Share of the busy time that rests on measured entries."""
    price_per_hour: Ratio = 0.0
    """Of all devices that the layout uses, in the currency of the cluster's prices; 0: unknown."""
    terms: dict[str, Seconds] = field(default_factory=dict)
    """Where the step goes, by term (`TERMS`): on the mean rank, or of ranks on unlike devices, on
    the one with most work. They add up to the step. Empty where entries were measured."""
    stages: tuple[StageEstimate, ...]


@record
class Candidate:
    """One layout with its cost."""

    config: ParallelConfig
    placement: Placement
    estimate: Estimate | None
    """None for a given layout that the cost model does not cover."""

    @property
    def cost(self) -> Estimate:
        """The estimate; raises `UserError` where there is none."""
        if self.estimate is None:
            raise UserError(
                f"layout `{self.config.label}` was given, and the cost model does not cover it: "
                "the plan predicts nothing",
                hint="`meshwright plan` without `--layout` chooses among the layouts it covers",
            )
        return self.estimate


@record
class SearchOptions:
    """What is sought, and what the user narrowed: `axis -> allowed values` and `axis -> forbidden
    values`."""

    pin: dict[str, tuple[str, ...]]
    forbid: dict[str, tuple[str, ...]]
    top: NotNegative = 5
    objective: Objective = "step"
    """What is to be least: see `planner.objective`."""
    devices: tuple[Positive, ...] = ()
    """Numbers of devices that may be used; empty: see `planner.objective.numbers_of_devices`."""


@record
class SearchCounts:
    """What happened to the enumerated layouts; rejected + pruned + simulated = enumerated."""

    enumerated: NotNegative
    rejected: dict[str, NotNegative]
    """By the id of the rule."""
    pruned: NotNegative
    """Left unsimulated: their lower bound exceeds the worst of the layouts shown."""
    simulated: NotNegative


@record
class Plan:
    """Content of `plan.json`."""

    format_version: str = FORMAT_VERSION
    kind: Literal["plan"] = "plan"
    id: str
    model: ModelSpec
    job: JobSpec
    cluster: ClusterSpec
    profile: Profile
    options: SearchOptions
    chosen: Candidate
    alternatives: tuple[Candidate, ...]
    counts: SearchCounts
    frontier: tuple[Candidate, ...] = ()
    """Layouts that no other beats in both time and memory, the fastest first; `chosen` is one."""
    by_axis: dict[str, dict[str, Seconds]] = field(default_factory=dict)
    """Axis -> value -> simulated step of the layout with that value that the closed form ranks
    first. Values whose layouts do not fit, or are far slower, are left out."""
    bound_s: Seconds = 0.0
    """No layout of the searched space is faster; 0 where nothing was searched."""
    default_order_s: Seconds = 0.0
    """Step of the chosen layout with its ranks in the order of the hosts; 0 where nothing is known
    of single links."""


def plan_id(plan: Plan) -> str:
    """Name that the plan's content gives it."""
    plain = to_plain(plan)
    del plain["id"]
    return content_id(plain, "p")


def check_plan(plan: Plan, name: str) -> None:
    """Raise `UserError` (stale) where the file was edited after planning, or is of a version whose
    fields are not all ours, so that nobody can tell."""
    if plan.id != plan_id(plan):
        if plan.format_version != FORMAT_VERSION:
            raise UserError(
                f"plan `{plan.id[:40]}` has format {plan.format_version}, and its content cannot "
                f"be checked by this version ({FORMAT_VERSION})",
                hint="run `meshwright plan` again",
                place=name,
                kind="stale",
            )
        raise UserError(
            f"plan `{plan.id[:40]}` was changed after planning: its content no longer gives its id",
            hint="run `meshwright plan` again with `--pin` for what you want otherwise",
            place=name,
            kind="stale",
        )
