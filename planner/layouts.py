"""Many layouts at once: one numpy array per field of `ParallelConfig`.

A field with names holds their codes: positions in the tuple of its names (`NAMES`). All are int32,
so the devices of a layout and the sequences of its micro-batches must stay below 2**31.
Properties of the same name mean what they mean in `ParallelConfig`, so that a rule or a formula in
arithmetic and comparisons serves both; names are compared by `is_one_of`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from planner.config import CpMethod, Offload, ParallelConfig, Recompute, ScheduleName
from profiler.job import JobSpec

Ints: TypeAlias = NDArray[Any]
"""Integers, one per layout."""
Bools: TypeAlias = NDArray[np.bool_]

RECOMPUTES: tuple[Recompute, ...] = get_args(Recompute)
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)
CP_METHODS: tuple[CpMethod, ...] = get_args(CpMethod)
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
NAMES: dict[str, tuple[str, ...]] = {
    "recompute": RECOMPUTES,
    "schedule": SCHEDULES,
    "cp_method": CP_METHODS,
    "offload": OFFLOADS,
}
"""Field -> its names, in the order of their codes."""
MOST = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layouts:
    """Arrays of one length."""

    pp: Ints
    dp_replicate: Ints
    tp: Ints
    micro_batch: Ints
    recompute: Ints
    schedule: Ints
    vpp: Ints
    dp_shard: Ints
    zero: Ints
    cp: Ints
    cp_method: Ints
    cp_heads: Ints
    ep: Ints
    etp: Ints
    ep_overlap: Ints
    offload: Ints

    def __len__(self) -> int:
        return len(self.pp)

    @property
    def num_devices(self) -> Ints:
        """Devices each layout uses."""
        return self.pp * self.stage_ranks

    @property
    def stage_ranks(self) -> Ints:
        """Ranks of one pipeline rank's mesh."""
        return self.num_replicas * self.cp * self.tp

    @property
    def num_replicas(self) -> Ints:
        """Ways in which the global batch is divided."""
        return self.dp_replicate * self.dp_shard

    @property
    def edp(self) -> Ints:
        """Ranks that hold the same part of the same experts."""
        num: Ints = self.stage_ranks // (self.ep * self.etp)
        return num

    @property
    def num_stages(self) -> Ints:
        """Virtual stages of the pipeline."""
        return self.pp * self.vpp

    def num_microbatches(self, job: JobSpec) -> Ints:
        """Micro-batches of one replica in a step."""
        count: Ints = job.global_batch // (self.num_replicas * self.micro_batch)
        return count

    def take(self, chosen: Ints | Bools | slice) -> "Layouts":
        """The layouts at indices, where a mask is true, or of a slice (views)."""
        return Layouts(**{name: getattr(self, name)[chosen] for name in FIELDS})

    def config(self, index: int) -> ParallelConfig:
        """One of them."""
        values: dict[str, Any] = {}
        for name in FIELDS:
            value = int(getattr(self, name)[index])
            values[name] = NAMES[name][value] if name in NAMES else value
        return ParallelConfig(**values)

    def configs(self) -> Iterator[ParallelConfig]:
        """All of them, in order; for few."""
        return map(self.config, range(len(self)))

    @classmethod
    def from_configs(cls, configs: Sequence[ParallelConfig]) -> "Layouts":
        """The same layouts as arrays."""
        for c in configs:
            if max(c.num_devices, c.num_stages, c.num_replicas * c.micro_batch) > MOST:
                raise ValueError(f"layout `{c.label}` is too large")
        columns: dict[str, Ints] = {}
        for name in FIELDS:
            values = [getattr(c, name) for c in configs]
            if name in NAMES:
                values = [NAMES[name].index(value) for value in values]
            columns[name] = np.array(values, dtype=np.int32)
        return cls(**columns)

    @classmethod
    def concat(cls, parts: Sequence["Layouts"]) -> "Layouts":
        """One after another."""
        if not parts:
            return cls.from_configs(())
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in FIELDS})


FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Layouts))


@lru_cache(maxsize=256)
def _members(field: str, names: tuple[str, ...]) -> Bools:
    """Per code of the field, whether it is one of the names."""
    return np.array([name in names for name in NAMES[field]])


def is_one_of(layouts: ParallelConfig | Layouts, field: str, *names: str) -> Any:
    """Whether the field's value is one of `names`: a bool, or one per layout."""
    value = getattr(layouts, field)
    if isinstance(layouts, ParallelConfig):
        return value in names
    if len(names) == 1:
        return value == NAMES[field].index(names[0])
    return _members(field, names)[value]
