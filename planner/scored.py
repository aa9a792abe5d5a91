"""What scoring is of: rows that were predicted, and rows that were not."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A row that was predicted. A failed run has no measurements."""

    row_id: str
    source: str
    model: str
    gpu: str
    num_gpus: int
    global_batch: int
    """Sequences per step. A layout is chosen at one global batch, length and precision."""
    seq_len: int
    precision: str
    trusted: bool
    group: tuple[str, ...]
    """Values of the columns to group by."""
    label: str
    """Short text of the layout; rows of one label and one prediction are repeats of a layout."""
    measured_step_s: float | None
    predicted_step_s: float | None
    measured_peak_gib: float | None
    predicted_peak_gib: float | None
    fits: bool
    """The model says that it fits the device's memory."""
    failed: bool
    """The run crashed or ran out of memory."""
    parts: dict[str, float]
    """Seconds of the predicted step by term; they add up to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmodelled:
    """A row that was not predicted, and why."""

    row_id: str
    source: str
    reason: str
    """`WHAT` or `WHAT: DETAILS OF THE ROW`."""
    complete: bool
    """The row states all that a prediction needs, so that leaving it out is our lack."""
