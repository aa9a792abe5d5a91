"""The end of a step: copy and reduce the gradients, update the weights.

A rank has one lane to its network, which reduces the gradients of its virtual stages one at a time,
in the order of the stages' last backwards: from then on where reductions overlap, after the rank's
copy into buckets where they do not. The update starts when the copy and the last reduction are
over.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.program import Batch, Floats
from planner.wavefront import LastEnds

Ints = NDArray[np.intp]


class Tail(NamedTuple):
    """[program, rank]; single reductions [program, virtual stage]."""

    bucket_end: Floats
    sync_start: Floats
    sync_end: Floats
    lane_end: Floats
    """Of the rank's last reduction."""
    optimizer_end: Floats


def tail_of(batch: Batch, last: LastEnds) -> Tail:
    """The tail after the actions of a step."""
    bucket_end = last.rank + batch.bucket_s
    owner, lanes = _lanes(batch.structure.owners, batch.structure.pp)
    ready = last.stage if batch.overlap_sync else bucket_end[:, owner]
    if lanes.shape[1] == 1:
        start, end = ready, ready + batch.sync_s
        lane_end = end[:, lanes[:, 0]]
    else:
        start, end, lane_end = _queue(lanes, last.stage, ready, batch.sync_s)
    optimizer_end = np.maximum(lane_end, bucket_end) + batch.optimizer_s
    return Tail(bucket_end, start, end, lane_end, optimizer_end)


@functools.lru_cache(maxsize=256)
def _lanes(owners: tuple[int, ...], pp: int) -> tuple[Ints, Ints]:
    """Owners, and the virtual stages of each rank from last to first, filled up with one stage more
    than there are.
    """
    of_rank: list[list[int]] = [[] for _ in range(pp)]
    for stage in reversed(range(len(owners))):
        of_rank[owners[stage]].append(stage)
    lanes = np.full((pp, max(map(len, of_rank))), len(owners))
    for rank, stages in enumerate(of_rank):
        lanes[rank, : len(stages)] = stages
    return np.array(owners), lanes


def _queue(lanes: Ints, done: Floats, ready: Floats, sync: Floats) -> tuple[Floats, Floats, Floats]:
    """Start and end of each stage's reduction, in the order of `done`; end of each lane's last."""
    none = np.zeros((len(ready), 1))  # a missing stage takes no time, wherever it is in the queue
    done, ready, sync = (np.concatenate((x, none), axis=1) for x in (done, ready, sync))
    order = np.argsort(done[:, lanes], axis=2, kind="stable")
    queue = np.take_along_axis(np.broadcast_to(lanes, order.shape), order, axis=2)
    start, end = np.empty((2, *ready.shape))
    programs, free = np.arange(len(ready))[:, None], np.zeros(order.shape[:2])
    for place in range(lanes.shape[1]):
        stage = queue[:, :, place]
        begin = np.maximum(free, ready[programs, stage])
        free = begin + sync[programs, stage]
        start[programs, stage], end[programs, stage] = begin, free
    return start[:, :-1], end[:, :-1], free
