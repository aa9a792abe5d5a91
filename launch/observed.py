"""What a run measured: `observed.json`.

Components are those of the plan (`planner.plan`): compute, p2p, collective and idle add up to the
period of a rank, from the end of its last step to the end of this one. The time of a step is the
distance between the moments at which the slowest rank finished it and the step before, so that
steps which overlap between ranks are not counted twice.

1.1 adds what has a default here, so that files of 1.0 are still read; 1.2 adds `moves`.
"""

import dataclasses
from typing import Literal

from planner.plan import Ratio
from profiler.codec import record
from profiler.model import NotNegative
from profiler.profile import Seconds

FORMAT_VERSION = "1.2"
State = Literal["complete", "interrupted", "failed"]


@record
class Split:
    """One rank, one step."""

    compute_s: Seconds
    p2p_s: Seconds
    collective_s: Seconds
    idle_s: Seconds


@record
class MemoryObservation:
    """Peak of one rank by tensor bytes; `definition` says how it was taken."""

    weight_bytes: NotNegative
    grad_bytes: NotNegative
    optimizer_bytes: NotNegative
    buffer_bytes: NotNegative
    """Receive buffers of the pipeline."""
    activation_and_workspace_bytes: int
    """The rest of the peak; below 0 where the peak came before all gradients were there."""
    peak_bytes: NotNegative
    definition: str


@record
class RankObservation:
    """One rank: where it sat, what it held, and its split of every timed step."""

    rank: NotNegative
    coordinate: dict[str, NotNegative]
    host: str
    memory: MemoryObservation | None
    steps: tuple[Split, ...]
    collective_by_axis: dict[str, Seconds] = dataclasses.field(default_factory=dict)
    """Axis of the mesh -> its part of `collective_s`, mean over the timed steps; an axis without
    any is left out."""


@record
class StepObservation:
    """One step over all ranks; splits are means over ranks. Only timed steps, warm-up left out."""

    step: NotNegative
    step_s: Seconds
    split: Split


@record
class MoveObservation:
    """Experts that were moved between two steps."""

    step: NotNegative
    """Before which."""
    num_bytes: NotNegative
    """Of weights and optimizer state sent, over all ranks."""
    predicted_s: Seconds
    seconds: Seconds
    """Of the rank that took longest."""
    predicted_gain_s: float
    """Per step; what the move was decided by."""
    gain_s: float | None
    """Per step: medians of the timed steps since the look before and up to the next move; None
    where there are none on one side."""


@record
class Observed:
    """Content of `observed.json`."""

    format_version: str = FORMAT_VERSION
    kind: Literal["observed"] = "observed"
    plan_id: str
    state: State
    torch: str
    device: str
    num_warmup: NotNegative
    losses: tuple[float, ...]
    """Mean loss of every step from `first_step`, warm-up included, up to `diverged_at`."""
    steps: tuple[StepObservation, ...]
    ranks: tuple[RankObservation, ...]
    first_step: NotNegative = 0
    """Above 0 where the run went on from the checkpoint of another."""
    steps_done: NotNegative = 0
    """Steps of the whole training that all ranks have finished, `first_step` of them elsewhere."""
    diverged_at: NotNegative | None = None
    """First step whose loss or gradient norm is no finite number; None where all are."""
    grad_norms: tuple[float, ...] = ()
    """Norm of the whole gradient before clipping, of the same steps; empty where none is taken."""
    restarts: NotNegative = 0
    """How often all ranks were started again after a fault."""
    tokens_per_s: Ratio | None = None
    """Tokens of a step over the median of `step_s`; None without a timed step."""
    moves: tuple[MoveObservation, ...] = ()
    """Of experts, where the run looked at their routing."""
    mfu: Ratio | None = None
    """Model FLOP/s over the peak of the devices used, as in the plan; None on a host, whose cores
    have no peak of their own."""
