"""A layout: the parallel degrees, the micro-batch, the schedule, and where each block and rank
goes.

Rank of a coordinate is row-major over `axis_order`, outermost axis first: with (pp, dp_replicate,
tp) and sizes (P, D, T), `rank = (p * D + d) * T + t`. Tensor-parallel neighbours are adjacent
ranks, so they sit in one node where the node is large enough (Megatron-LM's default order
`tp-cp-ep-dp-pp`).
"""

from typing import Literal

from profiler.codec import record
from profiler.job import JobSpec
from profiler.model import NotNegative, Positive

Axis = Literal["pp", "dp_replicate", "tp"]
Recompute = Literal["none", "full"]
ScheduleName = Literal["gpipe", "1f1b"]
AXIS_ORDER: tuple[Axis, ...] = ("pp", "dp_replicate", "tp")


@record
class ParallelConfig:
    """Degrees and choices of one layout, before blocks are assigned to stages."""

    pp: Positive
    dp_replicate: Positive
    tp: Positive
    """Tensor parallel with sequence parallel and vocabulary-parallel loss."""
    micro_batch: Positive
    """Sequences per micro-batch of one replica."""
    recompute: Recompute
    """full: each layer keeps its input alone and runs forward again in backward."""
    schedule: ScheduleName

    @property
    def num_devices(self) -> int:
        """Devices the layout uses."""
        return self.pp * self.dp_replicate * self.tp

    def num_microbatches(self, job: JobSpec) -> int:
        """Micro-batches of one replica in a step."""
        return job.global_batch // (self.dp_replicate * self.micro_batch)

    @property
    def label(self) -> str:
        """Short form for people: `tp8 pp4 dp1 mbs1`, and what is unusual."""
        full = " full-recompute" if self.recompute == "full" else ""
        return f"tp{self.tp} pp{self.pp} dp{self.dp_replicate} mbs{self.micro_batch}{full}"


@record
class Placement:
    """Blocks to stages, coordinates to ranks."""

    stages: tuple[tuple[NotNegative, NotNegative], ...]
    """Per stage [first, end) over the model's chain of blocks (0 is the embedding)."""
    axis_order: tuple[Axis, ...] = AXIS_ORDER

    def layers_per_stage(self, num_layers: int) -> tuple[int, ...]:
        """Transformer layers of each stage, embedding and head left out."""
        return tuple(max(0, min(end, num_layers + 1) - max(first, 1)) for first, end in self.stages)
