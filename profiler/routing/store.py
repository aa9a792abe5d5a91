"""Our own file of routing: an npz with a header in it.

format_version, kind   `1.0`, `routing`
model, num_experts     of the model that routed; the name may be empty
ids                    [tokens, layers, k] in the smallest integer type; equal tokens often take
                       equal ways through the layers, which deflate finds in this order
step                   [tokens] as differences; not there where it is not known
windows                [windows, layers, experts], instead of ids, where only counts are known
"""

from typing import Any

import numpy as np

from profiler.errors import UserError, other_kind
from profiler.routing.arrays import Array, npz_bytes, smallest
from profiler.routing.checks import counts_of, trace_of
from profiler.routing.trace import Routing, RoutingTrace

FORMAT_VERSION, KIND = "1.0", "routing"


def routing_bytes(routing: Routing) -> bytes:
    """The file's content; same routing, same bytes."""
    arrays: dict[str, Array] = {
        "format_version": np.array(FORMAT_VERSION),
        "kind": np.array(KIND),
        "model": np.array(routing.model),
        "num_experts": np.array(routing.num_experts),
    }
    if isinstance(routing, RoutingTrace):
        arrays["ids"] = smallest(routing.ids)
        if routing.step is not None:
            arrays["step"] = smallest(np.diff(routing.step, prepend=0))
    else:
        arrays["windows"] = smallest(routing.windows)
    return npz_bytes(arrays)


def is_own(arrays: dict[str, Array]) -> bool:
    """Whether the arrays have our header."""
    return "kind" in arrays and "format_version" in arrays


def routing_of_arrays(arrays: dict[str, Array], place: str) -> Routing:
    """Routing of the arrays of such a file; `UserError` where they are not whole."""
    kind, version = _text(arrays, "kind", place), _text(arrays, "format_version", place)
    if kind != KIND:
        raise other_kind(kind, KIND, place)
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise UserError(
            f"{KIND} format {version[:40]} is not one this version reads ({FORMAT_VERSION})",
            hint="upgrade Meshwright, or record the routing again",
            place=place,
        )
    model, num_experts = _text(arrays, "model", place), _number(arrays, "num_experts", place)
    if "windows" in arrays:
        return counts_of(arrays["windows"], place, num_experts=num_experts, model=model)
    ids = _get(arrays, "ids", place)
    step = arrays.get("step")
    if step is not None:
        if step.dtype.kind not in "iu":
            raise UserError("`step` holds no whole numbers", place=place)
        step = np.cumsum(step.astype(np.int64))
    return trace_of(ids, place, num_experts=num_experts, model=model, step=step)


def _get(arrays: dict[str, Array], name: str, place: str) -> Array:
    if name not in arrays:
        raise UserError(f"array `{name}` is missing", place=place)
    return arrays[name]


def _text(arrays: dict[str, Array], name: str, place: str) -> str:
    found: Any = _get(arrays, name, place)
    if found.ndim or found.dtype.kind != "U":
        raise UserError(f"`{name}` is no text", place=place)
    return str(found)


def _number(arrays: dict[str, Array], name: str, place: str) -> int:
    found: Any = _get(arrays, name, place)
    if found.ndim or found.dtype.kind not in "iu" or not 0 < int(found) < 2**31:
        raise UserError(f"`{name}` is no number above 0", place=place)
    return int(found)
