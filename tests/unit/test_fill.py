"""Bounds of pipelines of any split against the simulator."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.chain import BlockTimes, program_of
from planner.fill import Work, end_bound_s, fill_bound_s
from planner.schedules import SPLIT_BACKWARD
from planner.simulate import simulate

SECONDS = st.floats(0.1, 3.0)


def work_of(times, num_dense, num_moe):
    """Of layers alone."""
    kinds = [(n, t) for n, t in ((num_dense, times.dense), (num_moe, times.moe)) if n]
    sums = (sum(n * t[i] for n, t in kinds) for i in range(3))
    return Work(
        *sums,
        least_forward_s=min(t[0] for _, t in kinds),
        least_s=min(sum(t) for _, t in kinds),
        least_share=min(t[0] / sum(t) for _, t in kinds),
    )


@st.composite
def pipelines(draw):
    """A program of any split of a few layers, and what the bounds are told of it."""
    schedule = draw(
        st.sampled_from(["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipev"])
    )
    pp = draw(st.integers(2, 5))
    vpp = {"gpipe": 1, "1f1b": 1, "zbv": 2, "dualpipev": 2}.get(schedule)
    vpp = draw(st.integers(2 if schedule == "interleaved" else 1, 3)) if vpp is None else vpp
    sizes = draw(st.lists(st.integers(1, 5), min_size=pp * vpp, max_size=pp * vpp))
    num = sum(sizes)
    first_dense = draw(st.integers(0, num))
    dense, moe, head = (draw(st.tuples(SECONDS, SECONDS, SECONDS)) for _ in range(3))
    head = (head[0] + head[1] + head[2], head[1], head[2])  # at least a third is forward
    times = BlockTimes(dense=dense, moe=moe, head=head)
    blocks = ("embed", *["dense"] * first_dense, *["moe"] * (num - first_dense), "head")
    ends = np.cumsum([0, *sizes])
    ends[1:] += 1
    ends[-1] += 1
    stages = tuple(pairwise(ends.tolist()))
    m = draw(st.integers(1, 12))
    least = 2 * pp if schedule == "dualpipev" else pp if schedule in ("interleaved", "zbv") else 1
    m = max(m, least)
    send, exposed, end = draw(st.tuples(st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 30)))
    program = program_of(
        blocks=blocks, stages=stages, times=times, schedule=schedule, pp=pp, vpp=vpp,
        num_microbatches=m, send_s=send, exposed_send=exposed, late=1.0, sync_s=end / 2,
        update_s=end / 2, base_s=0.0,
    )  # fmt: skip
    work = work_of(times, first_dense, num - first_dense).with_head(sum(head))
    splits = np.array(schedule in SPLIT_BACKWARD)
    held = exposed * send / vpp**0.5
    return (
        program,
        fill_bound_s(work, pp, vpp, m, splits, held, send),
        end_bound_s(work, pp, vpp, m, len(blocks), end),
    )


@settings(max_examples=300, deadline=None)
@given(pipelines())
def test_no_split_is_faster(pipeline):
    program, fill, end = pipeline
    step = simulate(program).step_s
    assert fill <= step * (1 + 1e-9)
    assert end <= step * (1 + 1e-9)


def test_one_micro_batch_passes_all_stages():
    work = Work(1.0, 2.0, 3.0, 0.1, 0.6, 1 / 6)
    assert fill_bound_s(work, 4, 1, 1, np.array(False)) == pytest.approx(6)
    assert fill_bound_s(work, 4, 2, 1, np.array(True)) == pytest.approx(3)


def test_it_grows_from_the_mean_work_to_the_chain():
    work = Work(10.0, 10.0, 10.0, 1.0, 3.0, 1 / 3)
    pp, m = 8, np.array([1, 2, 8, 64, 10**6])
    bound = fill_bound_s(work, pp, 1, m, np.zeros(5, dtype=bool))
    assert np.all(bound >= m * 30 / pp)
    assert bound[0] == pytest.approx(30)
    assert bound[-1] == pytest.approx(10**6 * 30 / pp, rel=1e-5)
