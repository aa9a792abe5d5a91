"""Our tables are PyTorch's, for every count of micro-batches that PyTorch's schedules accept.

PyTorch refuses counts that the rounds of the two looped schedules do not divide, and DualPipeV's
below the number of stages; ours have tables there (tests/unit/test_schedules.py). DualPipeV's
overlapped pairs are compared as F and then B, in the order of PyTorch's pair.
"""

from itertools import product
from types import SimpleNamespace

import pytest
from torch.distributed.pipelining.schedules import (
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from planner.schedules import Action, format_table, stage_owner, table_of

pytestmark = pytest.mark.distributed

SCHEDULES = {
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}
RANKS, COUNTS = range(1, 7), range(1, 25)


def torch_schedule(name, pp, num_microbatches, vpp):
    """The schedule object of rank 0; orders need no more of a stage than its place."""
    stages = [
        SimpleNamespace(
            group_size=pp, group_rank=0, num_stages=pp * vpp, stage_index=chunk * pp,
            is_first=chunk == 0, is_last=chunk == vpp - 1, has_backward=True, submod=None,
        )
        for chunk in range(vpp)
    ]  # fmt: skip
    return SCHEDULES[name](stages, num_microbatches)


def torch_table(schedule):
    """Its order of all ranks as a table; waits left out."""
    return tuple(
        tuple(
            Action(a.stage_index, a.computation_type.value, a.microbatch_index)
            for step in schedule.pipeline_order[rank]
            if step is not None
            for a in (step.sub_actions or (step,))
        )
        for rank in sorted(schedule.pipeline_order)
    )


def accepts(name, pp, num_microbatches):
    """PyTorch's own conditions."""
    if name == "dualpipev":
        return num_microbatches >= 2 * pp
    return name == "zbv" or num_microbatches % max(1, num_microbatches // pp) == 0


@pytest.mark.parametrize(
    ("name", "vpp"),
    [
        *product(["interleaved", "zero_bubble"], [1, 2, 3, 4]),
        ("zbv", 2),
        ("dualpipev", 2),
    ],
)
def test_tables_are_those_of_pytorch(name, vpp):
    for pp, m in product(RANKS, COUNTS):
        if not accepts(name, pp, m):
            with pytest.raises(ValueError, match="requires"):
                torch_schedule(name, pp, m, vpp)
            continue
        schedule = torch_schedule(name, pp, m, vpp)
        ours, theirs = table_of(name, pp, m, vpp), torch_table(schedule)
        assert format_table(ours) == format_table(theirs), (pp, m)
        owner = schedule.stage_index_to_group_rank
        assert stage_owner(name, pp, vpp) == tuple(owner[s] for s in range(pp * vpp))
