"""Records of Megatron-LM's `--moe-routing-trace-path`, a JSON object per step and layer.

    {"step", "stage", "block", "layer", "rank", "num_tokens", "topk", "top_indices": [tokens][k]}

Form as in megatron.core.transformer.moe.router_trace (NVIDIA's developer guide, nightly). A file is
of one rank; records of `mtp` blocks, which have `mtp_idx`, are left out, as layers are counted
without them.
"""

from typing import Any

import numpy as np

from profiler.errors import UserError
from profiler.routing.arrays import Array
from profiler.routing.checks import trace_of
from profiler.routing.trace import RoutingTrace

KEY = "top_indices"


def is_record(value: Any) -> bool:
    """Whether a line is one."""
    return isinstance(value, dict) and KEY in value and "layer" in value


def trace_of_records(
    rows: list[tuple[int, Any]], place: str, num_experts: int | None
) -> RoutingTrace:
    """Trace of (line, record) pairs; `UserError` where a step lacks a layer or its tokens."""
    found: dict[tuple[int, int], dict[int, Array]] = {}
    for line, value in rows:
        at = f"{place}:{line}"
        if not is_record(value):
            raise UserError(f"this is no record with `{KEY}` and `layer`", place=at)
        if value.get("mtp_idx") is not None:
            continue
        step, rank = _number(value, "step", at), _number(value, "rank", at)
        layer = _number(value, "layer", at)
        layers = found.setdefault((step, rank), {})
        if layer in layers:
            raise UserError(f"layer {layer} of step {step} is there twice", place=at)
        layers[layer] = _indices(value[KEY], at)
    if not found:
        raise UserError("there are no tokens", place=place)
    every = sorted({layer for layers in found.values() for layer in layers})
    parts, steps = [], []
    for (step, _), layers in sorted(found.items()):
        for layer in every:
            if layer not in layers:
                raise UserError(f"step {step} has no layer {layer}", place=place)
            if layers[layer].shape != layers[every[0]].shape:
                raise UserError(
                    f"step {step} has {len(layers[layer])} tokens in layer {layer}, "
                    f"{len(layers[every[0]])} in layer {every[0]}",
                    place=place,
                )
        parts.append(np.stack([layers[layer] for layer in every], axis=1))
        steps.append(np.full(len(parts[-1]), step))
    if len({part.shape[2] for part in parts}) > 1:
        raise UserError("tokens choose now more experts, now fewer", place=place)
    return trace_of(
        np.concatenate(parts), place, num_experts=num_experts, step=np.concatenate(steps)
    )


def _number(value: dict[str, Any], key: str, place: str) -> int:
    found = value.get(key, 0)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 2**48:
        raise UserError(f"`{key}` is no number from 0", place=place)
    return found


def _indices(value: Any, place: str) -> Array:
    try:
        found = np.array(value)
    except (ValueError, OverflowError):
        found = np.zeros(0)
    if found.ndim != 2 or found.dtype.kind not in "iu":
        raise UserError(f"`{KEY}` is not a list [tokens][k] of ids", place=place)
    return found
