"""What the pipeline executor adds to the blocks: the gaps between actions that wait for nobody.

Two ranks run a GPipe pipeline of the embedding and the head, which take next to no time. The first
rank's forwards wait for nobody and send; the second rank's forwards receive messages that are there
already, since the head takes longer than the embedding, and send nothing. The median gap of each
is the cost of a message at either end.
"""

from itertools import pairwise

import torch
import torch.distributed as dist

from launch.runtime.model import Stage
from launch.runtime.pipeline import Pipeline
from launch.runtime.record import Recorder
from launch.runtime.tensor import token_loss
from planner.schedules import table_of
from profiler.measure.cases import ProfileInputs
from profiler.measure.timer import no_garbage_collection, summarise
from profiler.profile import ExecutorEntry

NUM_MICROBATCHES = 16
NUM_STEPS = 6


def measure_executor(
    micro_batch: int, inputs: ProfileInputs, group: dist.ProcessGroup, device: torch.device
) -> ExecutorEntry | None:
    """Called by both ranks of `group`; the first returns the entry, the second None."""
    model, seq = inputs.model, inputs.seq_len
    index, last = dist.get_rank(group), len(model.blocks) - 1
    first = 0 if index == 0 else last
    stage = Stage(model, first, first + 1, loss=token_loss).to(device)
    recorder = Recorder()
    pipeline = Pipeline(
        {index: stage},
        table_of("gpipe", 2, NUM_MICROBATCHES),
        recorder,
        zero=0,
        after_backward=lambda: None,
        group=group,
        tokens=torch.zeros(micro_batch, seq, dtype=torch.long, device=device),
        activation=torch.zeros(micro_batch, seq, model.hidden_size, device=device),
    )
    tokens = torch.zeros(NUM_MICROBATCHES * micro_batch, seq, dtype=torch.long, device=device)
    gaps: list[float] = []
    with recorder.active(), no_garbage_collection():
        for step in range(NUM_STEPS):
            pipeline.step(tokens, tokens)
            forwards = [a for a in recorder.drain()["actions"] if a[0] == "F"]
            if step:  # the first one sets up
                gaps += [later[3] - earlier[4] for earlier, later in pairwise(forwards)]
    mine = summarise(gaps)
    both: list[object] = [None, None]
    dist.all_gather_object(both, mine, group=group)
    if index:
        return None
    return ExecutorEntry(send=mine, receive=both[1], source="measured")  # type: ignore[arg-type]
