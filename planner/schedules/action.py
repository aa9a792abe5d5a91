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
