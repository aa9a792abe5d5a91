"""What a run measured: `observed.json`.

Components are those of the plan (`planner.plan`): compute, p2p, collective and idle add up to the
period of a rank, from the end of its last step to the end of this one. The time of a step is the
distance between the moments at which the slowest rank finished it and the step before, so that
steps which overlap between ranks are not counted twice.
"""

from typing import Literal

from profiler.codec import record
from profiler.model import NotNegative
from profiler.profile import Seconds

FORMAT_VERSION = "1.0"
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


@record
class StepObservation:
    """One step over all ranks; splits are means over ranks. Only timed steps, warm-up left out."""

    step: NotNegative
    step_s: Seconds
    split: Split


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
    """Mean loss of every step from the first, warm-up included."""
    steps: tuple[StepObservation, ...]
    ranks: tuple[RankObservation, ...]
