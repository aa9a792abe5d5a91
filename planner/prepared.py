"""Layouts as a cost model prices them: many at once, roughly; few, ready to simulate."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.axes import Coverage
from planner.config import ParallelConfig, Placement
from planner.layouts import Layouts
from planner.plan import StageMemory
from planner.program import Program
from planner.rules import ConfigRule
from planner.shared_host import Sharing
from profiler.cluster import NodeGroup
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile
from solvers.partition import Stages

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """Layouts that may be among the best: positions in what was screened, and figures of each."""

    index: NDArray[np.intp]
    step_s: Floats
    """By closed form."""
    bound_s: Floats
    """No schedule of the layout is faster."""
    peak_bytes: Floats
    num_unfit: int
    """Of those screened, how many do not fit memory; among those cut by their bound, unknown."""
    num_cut: int
    """How many were cut by their bound alone."""
    least_cut_s: float
    """Least bound among these; inf where none was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A layout ready to simulate. Memory is per pipeline rank."""

    config: ParallelConfig
    placement: Placement
    program: Program
    sharing: Sharing | None
    forward_collective_s: tuple[float, ...]
    """Per virtual stage, of a micro-batch's forward."""
    backward_collective_s: tuple[float, ...]
    memory: tuple[StageMemory, ...]
    bound_s: float
    measured_share: float
    groups: tuple[NodeGroup, ...] = ()
    """Of each pipeline rank, where they differ; empty: all are of the cost model's `node`."""
    terms: dict[str, float] = field(default_factory=dict)
    """Seconds by term as in `planner.plan.Estimate`, the bubble left out; empty where unknown."""

    @property
    def peak_bytes(self) -> int:
        """Of the fullest rank."""
        return max(m.total_bytes for m in self.memory)


class Inputs(Protocol):
    """What costs are of."""

    model: ModelSpec
    job: JobSpec
    profile: Profile
    node: NodeGroup
    """The only kind of node, or the first."""


class Costs(Inputs, Protocol):
    """A cost model of one model and job on one profiled cluster."""

    capacity_bytes: float
    """Of a device, less the job's reserve."""

    @property
    def coverage(self) -> Coverage:
        """Values of the axes that can be priced."""

    @property
    def rules(self) -> tuple[ConfigRule, ...]:
        """Further rules that layouts must obey to be priced."""

    def screen(self, layouts: Layouts, cut_s: float) -> Screened:
        """Layouts that fit and whose bound is at most `cut_s`."""

    def prepare(self, config: ParallelConfig, stages: Stages | None = None) -> Prepared | None:
        """The layout with its best split, or the one given; None where none fits memory."""

    def least_memory(self, config: ParallelConfig) -> StageMemory:
        """Of the fullest rank when the layers are split for memory alone."""

    def least_peaks(self, layouts: Layouts) -> Floats:
        """Bytes of `least_memory` of each."""

    def covers(self, config: ParallelConfig, placement: Placement) -> bool:
        """The layout can be priced."""
