"""One step of a pipeline schedule, in PyTorch's letters: `2F0` is stage 2, forward, micro-batch 0.

F forward, B full backward, I input gradient, W weight gradient
(`torch.distributed.pipelining.schedules._Action`). A table holds one row of actions per pipeline
rank, in the order in which that rank computes; sends and receives follow from it.
"""

from typing import Literal, NamedTuple

Op = Literal["F", "B", "I", "W"]


class Action(NamedTuple):
    """Stage, operation and micro-batch of one computation."""

    stage: int
    op: Op
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.op}{self.micro_batch}"


Table = tuple[tuple[Action, ...], ...]
Flights = tuple[tuple[int, int], ...]
"""Per rank, the most micro-batches whose forward is done and whose backward is not: (up to the
rank's first backward, from its end on). Before the first backward a rank holds no gradients."""
