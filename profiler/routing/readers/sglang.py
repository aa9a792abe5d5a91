"""Recordings of SGLang's expert distribution recorder, as plain values (`torch.load` gives them).

Form as `sglang.srt.eplb.expert_distribution` writes it, by `--expert-distribution-recorder-mode`:

    stat, stat_approx   logical_count [steps, layers, experts], of all ranks; steps without any
                        are the unused part of its ring
    per_token           records: topk_ids_of_layer [layers, tokens, 8], -1 where there is none, and
                        last_physical_to_logical_map [layers, physical experts]
    per_pass            records: global_physical_count [layers, physical experts], and the same map

Layers are all of the model's; those in which nothing was routed are dense ones, and left out.
Experts are physical ones (replicas count apart) and become logical ones by the map, which is that
of the end: a recording over which experts were moved is wrong before the move.
"""

from typing import Any

import numpy as np

from profiler.errors import UserError
from profiler.routing.arrays import Array
from profiler.routing.checks import counts_of, trace_of, without_idle_layers
from profiler.routing.trace import Routing

_IDS, _COUNT, _MAP = "topk_ids_of_layer", "global_physical_count", "last_physical_to_logical_map"


def routing_of_recording(tree: Any, place: str, num_experts: int | None) -> Routing:
    """Routing of what the recorder dumped; tensors are numpy arrays by now."""
    if isinstance(tree, np.ndarray):  # a bare tensor: EPLB's weight
        return _counts(tree, place, num_experts)
    if isinstance(tree, dict):
        for key in ("logical_count", "weight"):
            if key in tree:
                return _counts(_array(tree, key, place), place, num_experts)
        if isinstance(tree.get("records"), list):
            return _records(tree["records"], _array(tree, _MAP, place), place, num_experts)
    raise UserError(
        "this is no recording of expert distribution",
        hint="read are dumps of SGLang's recorder, and tensors [layers, experts]",
        place=place,
    )


def _counts(counts: Array, place: str, num_experts: int | None) -> Routing:
    if counts.ndim not in (2, 3) or counts.dtype.kind not in "iuf":
        raise UserError(f"counts have {counts.ndim} axes", place=place)
    used = counts.any(axis=tuple(i for i in (0, 2) if counts.ndim == 3) or 1)
    some = counts[..., used, :] if used.any() else counts
    return counts_of(some, place, num_experts=num_experts)


def _records(records: list[Any], logical: Array, place: str, num_experts: int | None) -> Routing:
    if logical.ndim != 2 or logical.dtype.kind not in "iu":
        raise UserError(f"`{_MAP}` is not [layers, physical experts]", place=place)
    if logical.size and not 0 <= int(logical.min()) <= int(logical.max()) < 2**15:
        raise UserError(f"`{_MAP}` has experts out of range", place=place)
    num_experts = num_experts or int(logical.max(initial=0)) + 1
    if any(not isinstance(record, dict) for record in records) or not records:
        raise UserError("there are no records of passes", place=place)
    ordered = sorted(records, key=lambda r: _pass_of(r, place))
    if all(_IDS in record for record in ordered):
        parts = [_logical_ids(_array(record, _IDS, place), logical, place) for record in ordered]
        if len({part.shape[2] for part in parts}) > 1:
            raise UserError(f"`{_IDS}` has now more choices, now fewer", place=place)
        every = np.concatenate(parts)
        passes = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        there = (every >= 0).any(axis=(1, 2))
        ids = without_idle_layers(every[there])
        wide = (ids >= 0).any(axis=(0, 1))  # the recorder's k is 8, whatever the model's
        return trace_of(ids[..., wide], place, num_experts=num_experts, step=passes[there])
    windows = [_logical_counts(_array(r, _COUNT, place), logical, num_experts, place)
               for r in ordered]  # fmt: skip
    return _counts(np.stack(windows), place, num_experts)


def _pass_of(record: dict[str, Any], place: str) -> int:
    found = record.get("forward_pass_id", 0)
    if isinstance(found, bool) or not isinstance(found, int):
        raise UserError("`forward_pass_id` is no number", place=place)
    return found


def _logical_ids(ids: Array, logical: Array, place: str) -> Array:
    """[layers, tokens, k] of physical ids -> [tokens, layers, k] of logical ones."""
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or len(ids) != len(logical):
        raise UserError(f"`{_IDS}` is not [layers, tokens, k]", place=place)
    if ids.size and int(ids.max()) >= logical.shape[1]:
        raise UserError(f"`{_IDS}` has experts out of range", place=place)
    rows = np.arange(len(ids))[:, None, None]
    found = np.where(ids >= 0, logical[rows, np.maximum(ids, 0)], -1)
    return found.transpose(1, 0, 2)


def _logical_counts(counts: Array, logical: Array, num: int, place: str) -> Array:
    """[layers, physical experts] -> [layers, experts]."""
    if counts.shape != logical.shape or counts.dtype.kind not in "iu":
        raise UserError(f"`{_COUNT}` is not [layers, physical experts]", place=place)
    if int(logical.max(initial=0)) >= num:
        raise UserError(f"`{_MAP}` has experts out of range", place=place)
    found = np.zeros((len(counts), num), np.int64)
    np.add.at(found, (np.arange(len(counts))[:, None], logical), counts)
    return found


def _array(tree: dict[str, Any], key: str, place: str) -> Array:
    found = tree.get(key)
    if not isinstance(found, np.ndarray):
        raise UserError(f"`{key}` is missing, or no tensor", place=place)
    return found
