"""Which form a file of routing has: npz or npy, JSON, JSON lines; our own among the first.

Files say neither how many experts there are (the largest id tells, unless the caller knows) nor
which model routed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from profiler.errors import UserError
from profiler.routing.arrays import ZIP, Array, is_arrays, read_arrays, read_bytes
from profiler.routing.checks import counts_of, trace_of
from profiler.routing.readers.json_text import routing_of_text
from profiler.routing.store import is_own, routing_of_arrays
from profiler.routing.trace import Routing

HINT = (
    "understood are npz and npy with ids [tokens, layers, k] or counts [layers, experts]; JSON and "
    "JSON lines of the same; what vLLM, SGLang and Megatron record"
)
COUNT_NAMES = frozenset(("weight", "counts", "logical_count", "expert_load", "windows"))
"""Arrays of these names are counts, however many axes they have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the caller knows of a file, or wants of it."""

    num_experts: int | None = None
    keys: tuple[str, ...] = ()
    """Arrays to join; none: all."""


def read_routing(
    path: Path, *, num_experts: int | None = None, keys: tuple[str, ...] = ()
) -> Routing:
    """Routing of a file; `UserError` with the file where it is not whole.

    `num_experts` of a model, where it is known: else ids say it. `keys`: arrays of an npz to join;
    none: all of them, in their order.
    """
    wanted = Wanted(num_experts=num_experts, keys=keys)
    return routing_of_bytes(read_bytes(path), str(path), wanted)


def is_torch_file(data: bytes) -> bool:
    """Whether `torch.save` wrote it: a zip with a pickle, or (before torch 1.6) a bare pickle."""
    return (data.startswith(ZIP) and b"data.pkl" in data[:4096]) or data[:2] == b"\x80\x02"


def routing_of_bytes(data: bytes, place: str, wanted: Wanted) -> Routing:
    """Routing of a file's content; `place` is what errors call it."""
    if not data.strip():
        raise UserError("the file is empty", place=place)
    if is_torch_file(data):
        raise UserError(
            "this is a file of `torch.save`",
            hint=f"`meshwright experts import {place} -o trace.npz` reads it, with torch",
            place=place,
        )
    if is_arrays(data):
        arrays = read_arrays(data, place)
        if not is_own(arrays):
            return _joined(arrays, place, wanted)
        if wanted.keys:
            raise UserError("our own file has no keys to choose", place=place)
        return _of_model(routing_of_arrays(arrays, place), wanted.num_experts, place)
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise UserError("this is no record of routing", hint=HINT, place=place) from None
    if text.lstrip()[:1] not in ("{", "["):
        raise UserError("this is no record of routing", hint=HINT, place=place)
    return routing_of_text(text, place, wanted.num_experts)


def _of_model(routing: Routing, num_experts: int | None, place: str) -> Routing:
    """Unchanged; `UserError` where the file says another number of experts."""
    if num_experts not in (None, routing.num_experts):
        raise UserError(
            f"the routing is of {routing.num_experts} experts, not of {num_experts}", place=place
        )
    return routing


def _joined(arrays: dict[str, Array], place: str, wanted: Wanted) -> Routing:
    """Arrays of one shape but for the tokens, one after the other."""
    for key in wanted.keys:
        if key not in arrays:
            hint = f"it has {', '.join(f'`{name[:40]}`' for name in list(arrays)[:8])}"
            raise UserError(f"there is no array `{key[:40]}`", hint=hint, place=place)
    names = wanted.keys or tuple(arrays)
    first = arrays[names[0]]
    for name in names:
        here = arrays[name]
        if here.dtype.kind not in "iuf":
            raise UserError(f"array `{name[:40]}` is not of numbers", hint=HINT, place=place)
        if here.ndim != first.ndim or here.shape[1:] != first.shape[1:]:
            raise UserError(
                f"array `{name[:40]}` has the shape {list(here.shape)}, `{names[0][:40]}` "
                f"{list(first.shape)}",
                hint="choose arrays of one shape with `--keys`",
                place=place,
            )
    if first.ndim == 2 or names[0] in COUNT_NAMES:
        if len(names) > 1:
            raise UserError("there are several arrays of counts", hint="`--keys` one", place=place)
        return counts_of(first, place, num_experts=wanted.num_experts)
    if first.ndim != 3:
        raise UserError(f"array `{names[0][:40]}` has {first.ndim} axes", hint=HINT, place=place)
    ids = np.concatenate([arrays[name] for name in names])
    return trace_of(ids, place, num_experts=wanted.num_experts)
