"""Rows of predictions for tests, with everything defaulted that a test does not speak of."""

from typing import Any

from planner.scoring import Scored, Unmodelled

DEFAULTS: dict[str, Any] = {
    "source": "lab", "model": "m", "gpu": "H100", "num_gpus": 8, "global_batch": 64,
    "seq_len": 2048, "precision": "bf16", "trusted": True, "group": ("m", "8"),
    "measured_peak_gib": None, "predicted_peak_gib": None, "fits": True, "failed": False,
    "parts": {},
}  # fmt: skip


def row(row_id: str, predicted: float | None, measured: float | None, **given: Any) -> Scored:
    """A row; its label is its name unless given."""
    times = {"predicted_step_s": predicted, "measured_step_s": measured}
    return Scored(**{**DEFAULTS, "row_id": row_id, "label": row_id, **times, **given})


def failed_row(row_id: str, *, fits: bool, **given: Any) -> Scored:
    """A run that failed."""
    return row(row_id, 1.0, None, failed=True, fits=fits, **given)


def left_out(row_id: str, reason: str, *, complete: bool = False) -> Unmodelled:
    """A row that was not predicted."""
    return Unmodelled(row_id=row_id, source="lab", reason=reason, complete=complete)
