"""Routing as JSON, whole or a value per line.

A whole file is counts: [layers, experts] or [windows, layers, experts], alone or as `weight` (the
argument of EPLB's `rebalance_experts`, github.com/deepseek-ai/EPLB) or `logical_count` (SGLang's
`--init-expert-location`); or it is one of the lines below. A line is

    [layers][k]                 a token
    [tokens][layers][k]         a sequence
    {"routed_experts": ...}     either of both, also as `experts`, `ids`, `expert_ids`
    {"choices": [{"routed_experts": ...}], "prompt_routed_experts": ...}
                                a response of vLLM's server with `--enable-return-routed-experts`
                                (docs.vllm.ai, "Routed Experts Replay"); tokens that a prefix cache
                                gave, -1 throughout, are left out
    {"step", "layer", "rank", "top_indices": [tokens][k]}
                                a record of Megatron-LM's `--moe-routing-trace-path`
                                (megatron.core.transformer.moe.router_trace): a layer of a step
"""

from typing import Any

import numpy as np

from profiler.codec import parse_json
from profiler.errors import UserError
from profiler.routing.arrays import Array
from profiler.routing.checks import counts_of, trace_of
from profiler.routing.readers.megatron import is_record, trace_of_records
from profiler.routing.trace import Routing

_COUNTS = ("weight", "logical_count", "counts")
_IDS = ("routed_experts", "experts", "ids", "expert_ids")
_PROMPT = "prompt_routed_experts"
Row = tuple[int, Any]
"""Line and value."""


def routing_of_text(text: str, place: str, num_experts: int | None) -> Routing:
    """Routing of a JSON text; `UserError` with the line where there is one."""
    rows = _rows(text, place)
    if len(rows) == 1:
        counts = _counts(rows[0][1], place)
        if counts is not None:
            return counts_of(counts, place, num_experts=num_experts)
    if is_record(rows[0][1]):
        return trace_of_records(rows, place, num_experts)
    parts = [part for line, value in rows for part in _tokens(value, f"{place}:{line}")]
    parts = [part[(part >= 0).any(axis=(1, 2))] for part in parts]  # cached ones are -1 throughout
    if not any(len(part) for part in parts):
        raise UserError("there are no tokens", place=place)
    shape = parts[0].shape[1:]
    if any(part.shape[1:] != shape for part in parts):
        other = next(part for part in parts if part.shape[1:] != shape)
        raise UserError(
            f"tokens have {other.shape[1]} layers of {other.shape[2]} experts here, "
            f"{shape[0]} of {shape[1]} there",
            place=place,
        )
    return trace_of(np.concatenate(parts), place, num_experts=num_experts)


def _rows(text: str, place: str) -> list[Row]:
    """The whole text as one value, or a value per line that is not empty."""
    try:
        return [(1, parse_json(text, place, constants=True))]
    except UserError as whole:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        try:
            first = parse_json(lines[0][1], place, constants=True)
        except UserError:
            raise whole from None
        rest = [(n, _line(line, f"{place}:{n}")) for n, line in lines[1:]]
        return [(lines[0][0], first), *rest]


def _line(line: str, place: str) -> Any:
    try:
        return parse_json(line, place, constants=True)
    except UserError as e:
        raise UserError(e.message, hint=e.hint, place=place) from None


def _counts(value: Any, place: str) -> Array | None:
    """Counts, where a whole file holds them."""
    if isinstance(value, dict):
        name = next((name for name in _COUNTS if name in value), None)
        return None if name is None else _array(value[name], place)
    found = _array(value, place)
    return found if found.ndim == 2 else None


def _tokens(value: Any, place: str) -> list[Array]:
    """Ids [tokens, layers, k] of a line, in parts."""
    if isinstance(value, dict):
        choices = value.get("choices")
        if isinstance(choices, list):
            own = [c.get(_IDS[0]) for c in choices if isinstance(c, dict)]
            found = [x for x in (value.get(_PROMPT), *own) if x]
        else:
            found = [value[name] for name in (_PROMPT, *_IDS) if value.get(name)]
        if not found:
            known = ", ".join(f"`{name}`" for name in _IDS)
            raise UserError("there are no expert ids", hint=f"keys are {known}", place=place)
    else:
        found = [value]
    parts = []
    for values in found:
        if isinstance(values, str):
            raise UserError(
                "expert ids are encoded as text, without their shape",
                hint="decode them to [tokens, layers, k] first",
                place=place,
            )
        part = _array(values, place)
        part = part[None] if part.ndim == 2 else part
        if part.ndim != 3 or 0 in part.shape:
            raise UserError("neither a token [layers][k] nor a sequence of them", place=place)
        parts.append(part)
    return parts


def _array(values: Any, place: str) -> Array:
    """Nested lists as an array."""
    try:
        found = np.array(values)
    except ValueError:
        raise UserError("the lists are ragged: not all have the same length", place=place) from None
    except (OverflowError, RecursionError):
        raise UserError("a number is out of range", place=place) from None
    if found.dtype.kind not in "iuf":
        raise UserError("there is something that is no number", place=place)
    return found
