"""Why no layout has the pinned values, where that can be said of the pins alone.

The space (`planner.axes`) holds only layouts whose degrees multiply to the number of devices, whose
replicas and micro-batch divide the global batch, and whose axes have values that the model, the
schedule and the sharding can have. Pins that leave nothing of it break no rule: there is no layout
to ask a rule about.
"""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import cast

from planner.axes import OVERLAPS, TABLELESS
from planner.config import ScheduleName
from planner.plan import SearchOptions
from planner.schedules import allows_vpp
from profiler.job import JobSpec
from profiler.model import ModelSpec

_DEGREES = ("tp", "pp", "cp", "ep", "etp", "dp", "dp_replicate", "dp_shard")
_SHARES = ("tp", "pp", "cp", "dp", "dp_replicate", "dp_shard")
"""Degrees whose product divides the devices; dp is the product of the two after it."""


def impossible_pins(
    model: ModelSpec, job: JobSpec, options: SearchOptions, sizes: Sequence[int]
) -> tuple[str, ...]:
    """Sentences about pins that no layout on `sizes` devices can have; empty where each could."""
    pins = {axis: values for axis, values in options.pin.items() if axis != "split"}
    found = [
        *_experts(model, pins),
        *_devices(pins, sizes),
        *_batch(job, pins),
        *_schedule(pins),
        *_sharding(pins),
    ]
    return tuple(found)


def _words(axis: str, values: Sequence[object]) -> str:
    return f"{axis} {' or '.join(map(str, values))}"


def _numbers(pins: dict[str, tuple[str, ...]], axis: str) -> list[int]:
    return [int(v) for v in pins.get(axis, ())]


def _experts(model: ModelSpec, pins: dict[str, tuple[str, ...]]) -> list[str]:
    experts = model.num_experts if model.num_moe_layers else 0
    found = []
    for axis in ("ep", "etp"):
        values = _numbers(pins, axis)
        if values and not experts and min(values) > 1:
            found.append(f"{_words(axis, values)}: `{model.name}` has no experts")
    values = _numbers(pins, "ep")
    if experts and values and min(values) > experts:
        found.append(f"{_words('ep', values)} is more than the {experts} experts")
    return found + _overlap(model, pins)


def _overlap(model: ModelSpec, pins: dict[str, tuple[str, ...]]) -> list[str]:
    chunks = _numbers(pins, "ep_overlap")
    if not chunks:
        return []
    words = _words("ep_overlap", chunks)
    if not set(chunks) & set(OVERLAPS):
        return [f"{words} is none of {', '.join(map(str, OVERLAPS))}"]
    if 1 in chunks:
        return []
    if not model.num_moe_layers:
        return [f"{words}: `{model.name}` has no experts"]
    return [f"{words} needs ep above 1"] if _numbers(pins, "ep") == [1] else []


def _devices(pins: dict[str, tuple[str, ...]], sizes: Sequence[int]) -> list[str]:
    words = " or ".join(map(str, sizes)) if len(sizes) < 4 else f"{sizes[0]} to {sizes[-1]}"
    alone = [
        f"{_words(axis, _numbers(pins, axis))} does not divide the {words} devices"
        for axis in _DEGREES
        if axis in pins and all(n % v for v in _numbers(pins, axis) for n in sizes)
    ]
    parts = {"dp_replicate", "dp_shard"} & set(pins)
    shares = [a for a in _SHARES if a in pins and not (a == "dp" and parts)]
    if alone or len(shares) < 2:
        return alone
    products = [prod(values) for values in product(*(_numbers(pins, a) for a in shares))]
    if all(n % each for each in products for n in sizes):
        named = " x ".join(_words(a, _numbers(pins, a)) for a in shares)
        return [f"{named} does not divide the {words} devices"]
    return []


def _batch(job: JobSpec, pins: dict[str, tuple[str, ...]]) -> list[str]:
    return [
        f"{_words(axis, _numbers(pins, axis))} does not divide the global batch of "
        f"{job.global_batch:,}"
        for axis in ("dp", "dp_replicate", "dp_shard", "mbs")
        if axis in pins and all(job.global_batch % v for v in _numbers(pins, axis))
    ]


def _schedule(pins: dict[str, tuple[str, ...]]) -> list[str]:
    names, depths = pins.get("schedule", TABLELESS), _numbers(pins, "vpp")
    found = []
    if pins.get("pp") == ("1",):
        if not {"gpipe", "1f1b"} & set(names):
            found.append(f"{_words('schedule', names)} needs pp above 1")
        if depths and min(depths) > 1:
            found.append(f"{_words('vpp', depths)} needs pp above 1")
    if not found and depths and not any(_can_have(n, v) for n, v in product(names, depths)):
        which = _words("schedule", names) if "schedule" in pins else "no schedule"
        verb = "cannot have" if "schedule" in pins else "has"
        found.append(f"{which} {verb} {_words('vpp', depths)}")
    return found


def _can_have(schedule: str, vpp: int) -> bool:
    """In the search, where an interleaved schedule of one stage per rank is 1f1b."""
    least = 2 if schedule == "interleaved" else 1
    return vpp >= least and allows_vpp(cast(ScheduleName, schedule), vpp)


def _sharding(pins: dict[str, tuple[str, ...]]) -> list[str]:
    stages, shards = _numbers(pins, "zero"), _numbers(pins, "dp_shard")
    if not stages or not shards:
        return []
    if min(stages) > 0 and max(shards) == 1:
        return [f"{_words('zero', stages)} needs dp_shard above 1"]
    if max(stages) == 0 and min(shards) > 1:
        return [f"zero 0 shards nothing, so dp_shard is 1, not {' or '.join(map(str, shards))}"]
    return []
