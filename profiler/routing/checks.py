"""Routing of arrays that someone else made: whole, in range, and of the model that is asked for."""

import numpy as np

from profiler.errors import UserError
from profiler.model import ModelSpec
from profiler.routing.arrays import Array
from profiler.routing.trace import DROPPED, Counts, Ids, Routing, RoutingCounts, RoutingTrace

MAX_EXPERTS = 2**15 - 1
"""What an int16 counts."""
LARGEST = 2**48
"""No count is so large; sums of many that are not fit an int64."""


def trace_of(
    ids: Array,
    place: str,
    *,
    num_experts: int | None = None,
    model: str = "",
    step: Array | None = None,
) -> RoutingTrace:
    """A trace of ids [tokens, layers, k]; -1 is a dropped choice.

    `num_experts` None: as many as the largest id says. Raises `UserError` for ids out of range,
    one expert twice for a token, no tokens, or steps that fall.
    """
    whole = _whole(ids, "expert ids", place)
    if whole.ndim != 3 or 0 in whole.shape[1:]:
        raise UserError(
            f"expert ids have the shape {_shape(whole)}, not [tokens, layers, k]", place=place
        )
    if not len(whole):
        raise UserError("there are no tokens", place=place)
    high = int(whole.max())
    if high < 0:
        raise UserError("no token has an expert: all choices are dropped", place=place)
    num = num_experts or high + 1
    if num > MAX_EXPERTS:
        raise UserError(f"there are {num:,} experts, more than {MAX_EXPERTS:,}", place=place)
    _check_range(whole, num, place)
    narrow: Ids = whole.astype(np.int16)
    _check_distinct(narrow, place)
    return RoutingTrace(
        ids=narrow, num_experts=num, model=model, step=_steps(step, len(narrow), place)
    )


def counts_of(
    counts: Array, place: str, *, num_experts: int | None = None, model: str = ""
) -> RoutingCounts:
    """Counts [layers, experts], or [windows, layers, experts] of some windows of time.

    Windows in which nothing was routed are left out. Raises `UserError` for negative or missing
    numbers, or where nothing was routed at all.
    """
    whole: Counts = _whole(_in_millionths(counts), "counts", place)
    if whole.ndim == 2:
        whole = whole[None]
    if whole.ndim != 3 or 0 in whole.shape:
        raise UserError(
            f"counts have the shape {_shape(whole)}, not [layers, experts] or "
            "[windows, layers, experts]",
            place=place,
        )
    if (whole < 0).any():
        w, layer, e = (int(i) for i in np.argwhere(whole < 0)[0])
        raise UserError(
            f"the count of expert {e} of layer {layer} is negative: {whole[w, layer, e]}",
            place=place,
        )
    whole = whole[whole.any(axis=(1, 2))]
    if not len(whole):
        raise UserError("nothing was routed: all counts are 0", place=place)
    if num_experts is not None and whole.shape[2] != num_experts:
        raise UserError(
            f"there are counts of {whole.shape[2]} experts, not of {num_experts}", place=place
        )
    return RoutingCounts(windows=whole, model=model)


def check_model(routing: Routing, model: ModelSpec, place: str) -> None:
    """Raise `UserError` where the routing is of another model: by MoE layers, experts or top-k."""
    found = {"MoE layers": routing.num_layers, "experts": routing.num_experts}
    wanted = {"MoE layers": model.num_moe_layers, "experts": model.num_experts}
    if isinstance(routing, RoutingTrace):
        found["choices per token"] = int(routing.ids.shape[2])
        wanted["choices per token"] = model.num_experts_per_token
    if not model.num_moe_layers:
        raise UserError(f"{model.name} has no experts", hint="name a mixture of experts")
    for what, number in found.items():
        if number != wanted[what]:
            fewer = what == "experts" and number < wanted[what]
            raise UserError(
                f"the routing is of {number} {what}, {model.name} has {wanted[what]}",
                hint=f"if some were never chosen: `meshwright experts import {place} --experts "
                f"{wanted[what]}`" if fewer else "record the routing of this model",
                place=place,
                kind="stale",
            )  # fmt: skip


def without_idle_layers(ids: Array) -> Array:
    """Ids [tokens, layers, k] less the layers in which no token has a choice: dense ones."""
    return ids[:, (ids >= 0).any(axis=(0, 2))]


def _whole(values: Array, what: str, place: str) -> Array:
    """As integers; floats must be whole numbers."""
    if values.dtype.kind in "iu":
        if values.size and (int(values.max()) >= LARGEST or int(values.min()) <= -LARGEST):
            raise UserError(f"{what} are out of range", place=place)
        return values.astype(np.int64)
    if values.dtype.kind != "f":
        raise UserError(f"{what} are no numbers", place=place)
    if not np.isfinite(values).all():
        at = [int(i) for i in np.argwhere(~np.isfinite(values))[0]]
        raise UserError(f"{what} at {at} are no number", place=place)
    if np.abs(values).max(initial=0) >= LARGEST:
        raise UserError(f"{what} are out of range", place=place)
    rounded = np.rint(values)
    if (rounded != values).any():
        raise UserError(f"{what} are no whole numbers", place=place)
    return rounded.astype(np.int64)


def _in_millionths(counts: Array) -> Array:
    """Shares and means, which are no whole numbers, in millionths of the largest of them."""
    if (
        counts.dtype.kind != "f"
        or not np.isfinite(counts).all()
        or (counts == np.rint(counts)).all()
    ):
        return counts
    largest = float(np.abs(counts).max())
    return np.rint(counts / largest * 1e6)


def _check_range(ids: Array, num: int, place: str) -> None:
    wrong = (ids >= num) | (ids < DROPPED)
    if wrong.any():
        token, layer, k = (int(i) for i in np.argwhere(wrong)[0])
        raise UserError(
            f"expert {ids[token, layer, k]} of token {token} in layer {layer} is out of range",
            hint=f"ids go from 0 to {num - 1}; {DROPPED} is a dropped choice",
            place=place,
        )


def _check_distinct(ids: Ids, place: str) -> None:
    ordered = np.sort(ids, axis=2)
    twice = (ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] != DROPPED)
    if twice.any():
        token, layer, k = (int(i) for i in np.argwhere(twice)[0])
        raise UserError(
            f"token {token} chooses expert {ordered[token, layer, k]} twice in layer {layer}",
            place=place,
        )


def _steps(step: Array | None, tokens: int, place: str) -> Array | None:
    if step is None:
        return None
    whole = _whole(step, "steps", place)
    if whole.shape != (tokens,):
        raise UserError(f"there are {whole.size} steps for {tokens} tokens", place=place)
    if (np.diff(whole) < 0).any():
        raise UserError("steps fall: tokens are not in the order of time", place=place)
    return whole


def _shape(values: Array) -> str:
    return f"[{', '.join(str(n) for n in values.shape)}]"
