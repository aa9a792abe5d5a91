"""How far the training of a layout is off that of one process."""

import dataclasses
import math
from typing import Any

import torch
from fork import run_ranks
from grid import Case, Outcome, first_weights, reference, train_rank
from torch import Tensor

LOSS_TOLERANCE = NORM_TOLERANCE = 1e-12
WEIGHT_TOLERANCE = 1e-8
"""In float64; tests/parity/test_layouts.py says why."""


def assemble(results: list[Any]) -> dict[str, Tensor]:
    """Whole canonical tensors; ranks that hold the same box must hold the same bits."""
    whole: dict[str, Tensor] = {}
    for _, _, parts in results:
        for name, shape, offset, values in parts:
            full = whole.setdefault(name, torch.full(shape, torch.nan, dtype=values.dtype))
            box = full[tuple(slice(o, o + s) for o, s in zip(offset, values.shape, strict=True))]
            seen = ~box.isnan()
            assert torch.equal(box[seen], values[seen]), f"{name}: copies differ"
            box.copy_(values)
    return whole


def outcome(results: list[Any]) -> Outcome:
    """What all ranks together got; those that know a loss or norm must know the same."""
    curves = [losses for losses, _, _ in results if losses]
    norms = results[0][1]
    assert curves, "no rank has a loss"
    assert all(curve == curves[0] for curve in curves), "ranks have different losses"
    assert all(norm == norms for _, norm, _ in results), "ranks have different gradient norms"
    return curves[0], norms, assemble(results)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Errors:
    """How far a run is off one process."""

    loss: float
    """Largest relative error of a loss."""
    norm: float
    """Largest relative error of a gradient norm."""
    weight: float
    """Largest error of a weight, relative to how far its tensor moved."""
    where: str
    """The tensor with that."""

    @property
    def is_small(self) -> bool:
        """Within the tolerances of float64."""
        return (
            self.loss <= LOSS_TOLERANCE
            and self.norm <= NORM_TOLERANCE
            and self.weight <= WEIGHT_TOLERANCE
        )


def compare(got: Outcome, expected: Outcome) -> Errors:
    """Every loss, norm and weight; raises where any is missing or not finite."""
    losses, norms, weights = got
    true_losses, true_norms, true_weights = expected
    assert set(weights) == set(true_weights), set(weights) ^ set(true_weights)
    first = first_weights(true_weights)
    off = {}
    for name, true in true_weights.items():
        moved = (true - first[name]).abs().max()
        assert moved > 0, f"{name} has not moved"
        off[name] = ((weights[name].double() - true).abs().max() / moved).item()
    missing = [name for name, error in off.items() if not math.isfinite(error)]
    assert not missing, f"no or not finite values in {missing}"
    where = max(off, key=off.__getitem__)
    return Errors(
        loss=_relative(losses, true_losses),
        norm=_relative(norms, true_norms),
        weight=off[where],
        where=where,
    )


def _relative(got: list[float], expected: list[float]) -> float:
    pairs = list(zip(got, expected, strict=True))
    assert all(math.isfinite(value) for value in got), got
    return max(abs(value - true) / abs(true) for value, true in pairs)


def errors_of(case: Case, timeout_s: float = 90.0) -> Errors:
    """Train a case on its processes and compare it to one."""
    results = run_ranks(case.config.num_devices, train_rank, case, timeout_s=timeout_s)
    return compare(outcome(results), reference(case))
