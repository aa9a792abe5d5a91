"""One optimizer step as the simulator takes it: which actions there are, and how long each takes.

A `Structure` names the actions and their order, a `Program` adds seconds. A `Batch` is many
programs of one structure, as arrays with one row per program. Times are per virtual stage (the
chain's order, see `planner.schedules.shape`) or per pipeline rank, as each field says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from planner.config import ScheduleName
from planner.schedules import Table, owners, stage_owner, table_of

Floats = NDArray[np.float64]
Seconds = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A pipeline and its schedule."""

    schedule: ScheduleName
    pp: int
    num_microbatches: int
    vpp: int = 1
    table: Table | None = None
    """Of schedule `table`: the user's."""

    @property
    def actions(self) -> Table:
        """Each pipeline rank's actions in order."""
        if self.table is not None:
            return self.table
        return table_of(self.schedule, self.pp, self.num_microbatches, self.vpp)

    @property
    def owners(self) -> tuple[int, ...]:
        """Virtual stage -> pipeline rank."""
        if self.table is not None:
            return owners(self.table)
        return stage_owner(self.schedule, self.pp, self.vpp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One step: its schedule and the seconds of each piece; finite and not negative."""

    schedule: ScheduleName
    num_microbatches: int
    vpp: int = 1
    table: Table | None = None
    """Of schedule `table`: the user's, one row per pipeline rank."""
    forward_s: Seconds
    """Per virtual stage, a micro-batch's forward (F)."""
    input_s: Seconds
    """Per virtual stage, backward for the input (I), with what is recomputed. B takes I + W."""
    weight_s: Seconds
    """Per virtual stage, backward for the weights (W)."""
    send_forward_s: Seconds
    """From virtual stage s to s + 1; the last is unused. 0 where one rank holds both."""
    send_backward_s: Seconds
    """From virtual stage s to s - 1; the first is unused."""
    head_s: Seconds = ()
    """Per rank, before its first forward (as of parameters to gather); empty: none."""
    bucket_s: Seconds
    """Per rank, copy of the gradients into flat buckets, after its last action."""
    sync_s: Seconds
    """Per virtual stage, reduction of its gradients over the replicas."""
    optimizer_s: Seconds
    """Per rank, the update, after all reductions of the rank."""
    overlap_sync: bool = False
    """A reduction starts when its stage's last backward is over, beside what the rank still
    computes and copies; else after the copy. A rank reduces one stage at a time."""

    def __post_init__(self) -> None:
        stages = {len(x) for x in self._per_stage}
        ranks = {len(x) for x in (self.bucket_s, self.optimizer_s, self.head_s or self.bucket_s)}
        if len(stages) != 1 or len(ranks) != 1:
            raise ValueError(f"{stages} virtual stages and {ranks} ranks: one number is needed")
        if (self.schedule == "table") != (self.table is not None):
            raise ValueError("schedule `table`, and no other, comes with a table")
        pp = len(self.bucket_s)
        rows = pp if self.table is None else len(self.table)
        if rows != pp or (self.table is None and self.num_stages != pp * self.vpp):
            raise ValueError(f"{self.num_stages} stages on {pp} ranks do not fit the schedule")

    @property
    def num_stages(self) -> int:
        """Virtual stages."""
        return len(self.forward_s)

    @property
    def backward_s(self) -> Seconds:
        """Per virtual stage, a micro-batch's whole backward (B)."""
        return tuple(i + w for i, w in zip(self.input_s, self.weight_s, strict=True))

    @property
    def structure(self) -> Structure:
        """What the program shares with others of its kind."""
        return Structure(
            schedule=self.schedule,
            pp=len(self.bucket_s),
            num_microbatches=self.num_microbatches,
            vpp=self.vpp,
            table=self.table,
        )

    @property
    def heads(self) -> Seconds:
        """`head_s` with what its default means."""
        return self.head_s or (0.0,) * len(self.bucket_s)

    @property
    def _per_stage(self) -> tuple[Seconds, ...]:
        sends = (self.send_forward_s, self.send_backward_s)
        return (self.forward_s, self.input_s, self.weight_s, *sends, self.sync_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Programs of one structure: the fields of `Program`, [program, virtual stage or rank]."""

    structure: Structure
    forward_s: Floats
    input_s: Floats
    weight_s: Floats
    send_forward_s: Floats
    send_backward_s: Floats
    head_s: Floats
    bucket_s: Floats
    sync_s: Floats
    optimizer_s: Floats
    overlap_sync: bool = False

    @classmethod
    def of(cls, programs: Sequence[Program]) -> Self:
        """One or more programs, which must have one structure and one `overlap_sync`."""
        first = programs[0]
        if any(
            (p.structure, p.overlap_sync) != (first.structure, first.overlap_sync)
            for p in programs[1:]
        ):
            raise ValueError("programs of one batch have one structure and one `overlap_sync`")
        return cls(
            structure=first.structure,
            forward_s=np.array([p.forward_s for p in programs]),
            input_s=np.array([p.input_s for p in programs]),
            weight_s=np.array([p.weight_s for p in programs]),
            send_forward_s=np.array([p.send_forward_s for p in programs]),
            send_backward_s=np.array([p.send_backward_s for p in programs]),
            head_s=np.array([p.heads for p in programs]),
            bucket_s=np.array([p.bucket_s for p in programs]),
            sync_s=np.array([p.sync_s for p in programs]),
            optimizer_s=np.array([p.optimizer_s for p in programs]),
            overlap_sync=first.overlap_sync,
        )

    def part(self, programs: slice) -> "Batch":
        """Some of the programs."""
        arrays = {
            f.name: getattr(self, f.name)[programs]
            for f in fields(self)
            if isinstance(getattr(self, f.name), np.ndarray)
        }
        return replace(self, **arrays)
