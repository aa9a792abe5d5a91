"""Which values each axis of the search has: usual ones, those that the user pins or forbids, and
those that the cost model covers.

An axis has the values that `SearchOptions` and `Coverage` leave of its *usual* ones, which are a
documented part of the possible (see the methods of `Axes`). A pin may name any possible value,
usual or not: that is how gpipe, hybrid context parallelism and offload are asked for. What is not
left is not enumerated and not counted.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

from planner.config import CpMethod, Offload, Recompute, ScheduleName
from planner.layouts import CP_METHODS, OFFLOADS, RECOMPUTES, SCHEDULES
from planner.plan import SearchOptions
from planner.schedules import allows_vpp
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.names import one_of

V = TypeVar("V", bound=int | str)

TABLELESS: tuple[ScheduleName, ...] = tuple(name for name in SCHEDULES if name != "table")
"""Schedules that the search can choose."""
NAME_AXES: dict[str, tuple[str, ...]] = {
    "cp_method": CP_METHODS,
    "recompute": RECOMPUTES,
    "schedule": TABLELESS,
    "offload": OFFLOADS,
}
AXES = (
    "tp", "pp", "vpp", "dp", "dp_replicate", "dp_shard", "zero", "cp", "cp_method", "cp_heads",
    "ep", "etp", "ep_overlap", "mbs", "recompute", "schedule", "offload", "split",
)  # fmt: skip
"""What `--pin` and `--forbid` speak of. `dp` is the number of replicas, dp_replicate * dp_shard.
`split` (layers per stage) can be pinned only. Layouts with cp 1 have no method: no pin of
`cp_method` or `cp_heads` shuts them out. Those with pp 1 have schedule 1f1b."""

LEAST_TOKENS = 2**10
"""Of a sequence on one rank, or its attention takes less time than what it waits for."""
MOST_TOKENS = 2**16
"""Of a micro-batch on one cp rank, beyond which GEMMs gain no efficiency from more rows."""

OVERLAPS, USUAL_OVERLAP = (1, 2, 4, 8), 4
"""Chunks of `ep_overlap` that a pin may name, and the most that a search tries without one (Tutel
tries the same four)."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Values that the cost model and the profile can price, by axis; an axis left out: all."""

    values: Mapping[str, frozenset[int | str]] = field(default_factory=dict)

    def has(self, axis: str, value: int | str) -> bool:
        """Whether layouts with the value can be priced, as far as this axis says."""
        return axis not in self.values or value in self.values[axis]


class Axes:
    """Open values of each axis, given those of the axes before it. All lists ascend."""

    def __init__(
        self,
        model: ModelSpec,
        job: JobSpec,
        options: SearchOptions,
        coverage: Coverage,
        devices_per_node: int,
    ) -> None:
        self._model, self._job, self._node = model, job, devices_per_node
        self._options, self._coverage = options, coverage
        split = options.pin.get("split")
        self._num_stages = None if split is None else len(split)

    def open(
        self, axis: str, possible: Iterable[V], usual: Callable[[V], bool] = lambda value: True
    ) -> list[V]:
        """What is left of the possible values."""
        pinned, forbidden = self._options.pin.get(axis), self._options.forbid.get(axis, ())
        return [
            value
            for value in possible
            if (usual(value) if pinned is None else str(value) in pinned)
            and str(value) not in forbidden
            and self._coverage.has(axis, value)
        ]

    def tensor(self, num_devices: int) -> list[int]:
        """tp: any divisor."""
        return self.open("tp", divisors(num_devices))

    def pipeline(self, num_devices: int) -> list[int]:
        """pp: any divisor."""
        stages = self._num_stages
        return [
            pp for pp in self.open("pp", divisors(num_devices)) if not stages or stages % pp == 0
        ]

    def context(self, num_devices: int) -> list[int]:
        """cp: divisors that leave each rank `LEAST_TOKENS` of a sequence."""
        room = max(1, self._job.seq_len // LEAST_TOKENS)
        return self.open("cp", divisors(num_devices), lambda cp: cp <= room)

    def methods(self, cp: int) -> list[tuple[CpMethod, int]]:
        """cp_method and cp_heads: ring, all_gather, ulysses; hybrid where it is asked for, with
        any proper divisor."""
        if cp == 1:
            return [("ring", 1)]
        found: list[tuple[CpMethod, int]] = []
        for method in self.open("cp_method", CP_METHODS, lambda name: name != "hybrid"):
            proper = divisors(cp)[1:-1]
            heads = self.open("cp_heads", proper) if method == "hybrid" else [1]
            found += [(method, each) for each in heads]
        return found

    def replicas(self, num: int, ranks: int) -> list[tuple[int, int, int]]:
        """dp_replicate, dp_shard and zero of `num` replicas of `ranks` = cp * tp ranks each.

        dp_shard is 1 (zero 0), all replicas, or (hybrid sharding, Zhao et al. 2023,
        arXiv:2304.11277) as many as make a sharing group of dp_shard * cp * tp ranks fill 1, 2, 4,
        8, ... times the fewest whole nodes. Zero is 1, 2 or 3.
        """
        if not self.open("dp", [num]):
            return []
        any_shard = "dp_replicate" in self._options.pin
        fill = self._node // math.gcd(self._node, ranks)

        def usual(shard: int) -> bool:
            times = shard // fill
            fills = shard % fill == 0 and times & (times - 1) == 0
            return any_shard or shard in (1, num) or fills

        return [
            (num // shard, shard, zero)
            for shard in self.open("dp_shard", divisors(num), usual)
            if self.open("dp_replicate", [num // shard])
            for zero in self.open("zero", (1, 2, 3) if shard > 1 else (0,))
        ]

    def experts(self, stage_ranks: int, tp: int) -> list[tuple[int, int, int]]:
        """ep, etp and ep_overlap: etp divides tp, ep is any divisor of the rest up to the number of
        experts, and where ep is above 1, tokens go in 1, 2 or 4 chunks."""
        most = self._model.num_experts if self._model.num_moe_layers else 1
        widths = divisors(stage_ranks) if most > 1 else [1]
        chunks = self.open("ep_overlap", OVERLAPS, lambda num: num <= USUAL_OVERLAP)
        return [
            (ep, etp, overlap)
            for etp in self.open("etp", widths, lambda width: tp % width == 0)
            for ep in self.open("ep", (d for d in divisors(stage_ranks // etp) if d <= most))
            for overlap in chunks
            if ep > 1 or overlap == 1
        ]

    def micro_batches(self, num_replicas: int, cp: int) -> list[int]:
        """mbs: divisors of a replica's share, one sequence or up to `MOST_TOKENS` per cp rank."""
        most = max(1, MOST_TOKENS * cp // self._job.seq_len)
        share = self._job.global_batch // num_replicas
        return self.open("mbs", divisors(share), lambda size: size <= most)

    def schedules(self, pp: int) -> list[tuple[ScheduleName, int]]:
        """schedule and vpp: all but gpipe and tables. Of several vpp with equally many layers in
        the longest stage (layers / (pp * vpp), rounded up) the least: the others pay for more
        messages with no shorter bubble."""
        names = self.open("schedule", TABLELESS, lambda name: name != "gpipe")
        return [
            (name, vpp)
            for name in names
            if pp > 1 or name in ("gpipe", "1f1b")
            for vpp in self.open("vpp", self._depths(name, pp), lambda v: self._is_new(pp, v))
            if self._num_stages in (None, pp * vpp)
        ]

    def _depths(self, name: ScheduleName, pp: int) -> list[int]:
        """Possible vpp of a schedule."""
        if not allows_vpp(name, 3):
            return [vpp for vpp in (1, 2) if allows_vpp(name, vpp)]
        most = self._model.num_layers // pp
        return list(range(2 if name == "interleaved" else 1, max(1, most) + 1))

    def _is_new(self, pp: int, vpp: int) -> bool:
        layers = self._model.num_layers
        return vpp <= 2 or -(-layers // (pp * vpp)) < -(-layers // (pp * (vpp - 1)))

    def recomputes(self) -> list[Recompute]:
        """recompute: all."""
        return self.open("recompute", RECOMPUTES)

    def offloads(self) -> list[Offload]:
        """offload: none, unless it is asked for."""
        return self.open("offload", OFFLOADS, lambda name: name == "none")


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    return list(_divisors(n))


@lru_cache(maxsize=4096)
def _divisors(n: int) -> tuple[int, ...]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return tuple(small + [n // d for d in reversed(small) if d * d != n])


def check_options(options: SearchOptions, model: ModelSpec) -> None:
    """Raise `UserError` for an axis or a value that does not exist, or a split that does not add
    up."""
    check_axes("--pin", options.pin)
    check_axes("--forbid", options.forbid)
    if "split" in options.forbid:
        raise UserError(
            "`--forbid` cannot take `split`", hint="pin another one with `--pin split=...`"
        )
    split = options.pin.get("split")
    if split is not None:
        _check_split(split, model)


def check_axes(flag: str, chosen: Mapping[str, tuple[str, ...]]) -> None:
    """Raise `UserError`, which names the flag, for an axis or a value that does not exist."""
    for axis, values in chosen.items():
        if axis not in AXES:
            raise UserError(
                f"`{flag}` does not know axis `{axis[:40]}`", hint=one_of(axis, AXES, "axes")
            )
        _check_values(flag, axis, values)


def _check_values(flag: str, axis: str, values: tuple[str, ...]) -> None:
    names = NAME_AXES.get(axis)
    for value in values if axis != "split" else ():
        if names is not None and value not in names:
            raise UserError(
                f"`{flag}` does not know {axis} `{value[:40]}`", hint=one_of(value, names)
            )
        digits = value.isascii() and value.isdigit() and value == value[:9]
        least = 0 if axis == "zero" else 1
        if names is None and not (digits and int(value) >= least):
            raise UserError(
                f"`{flag} {axis}={value[:40]}` is no whole number from {least} on",
                hint=f"like `{axis}=2`",
            )


def _check_split(split: tuple[str, ...], model: ModelSpec) -> None:
    if not all(x.isdigit() and len(x) < 6 and int(x) > 0 for x in split):
        given = ",".join(split)
        raise UserError(f"`split={given}` is not a list of layer counts", hint="like `split=3,2,3`")
    total = sum(int(x) for x in split)
    if total != model.num_layers:
        raise UserError(
            f"`split={','.join(split)}` has {total} layers, the model {model.num_layers}",
            hint="give each stage's layers; embedding and head are not counted",
        )


def pinned_stages(options: SearchOptions) -> tuple[tuple[int, int], ...] | None:
    """Stages of a pinned split: embedding with the first layers, head with the last."""
    split = options.pin.get("split")
    if split is None:
        return None
    ends = [1]
    for count in split:
        ends.append(ends[-1] + int(count))
    ends[0], ends[-1] = 0, ends[-1] + 1
    return tuple(pairwise(ends))
