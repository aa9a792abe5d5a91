"""Ranks that share the cores of their host."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.bounds import lower_bound
from planner.schedules import parse_table
from planner.simulate import Program, Sharing, simulate
from tests.unit.steps import SHAPES, actions_of, cores, program, programs, reference


@settings(max_examples=100, deadline=None)
@given(prog=programs(max_p=4, max_m=6))
def test_a_host_with_a_core_for_each_rank_is_no_sharing(prog):
    alone, shared = simulate(prog), simulate(prog, cores(len(prog.bucket_s), 99))
    assert shared.table == alone.table
    for a, b in zip((*alone.start, *alone.end), (*shared.start, *shared.end), strict=True):
        assert a == pytest.approx(b)
    for name in ("bucket_end", "sync_end", "optimizer_end"):
        assert getattr(shared, name) == pytest.approx(getattr(alone, name)), name
    assert shared.step_s == pytest.approx(alone.step_s) == pytest.approx(max(reference(prog)[1]))


@settings(max_examples=60, deadline=None)
@given(p=st.integers(1, 4), m=st.integers(1, 8), shape=st.sampled_from(SHAPES))
def test_one_core_does_all_work_one_after_another(p, m, shape):
    """Work is conserved: with one core no bubble remains, whatever the schedule."""
    name, vpp = shape
    step_s = simulate(program(name, p, m, 1.0, 2.0, 0.75, vpp=vpp), cores(p, 1)).step_s
    assert step_s == pytest.approx(p * vpp * m * 3.0)


@settings(max_examples=40, deadline=None)
@given(p=st.integers(2, 5), m=st.integers(1, 8), n=st.integers(1, 4))
def test_more_cores_are_never_slower(p, m, n):
    few, more = (simulate(program("1f1b", p, m), cores(p, k)).step_s for k in (n, n + 1))
    assert more <= few * (1 + 1e-9)


@settings(max_examples=150, deadline=None)
@given(prog=programs(max_p=4, max_m=6), n=st.integers(1, 5), per_stage=st.integers(1, 2))
def test_lower_bound_holds(prog, n, per_stage):
    sharing = cores(len(prog.bucket_s), n, per_stage)
    assert lower_bound(prog, sharing) <= simulate(prog, sharing).step_s * (1 + 1e-9)


@pytest.mark.parametrize(
    ("name", "shared", "step_s", "ends", "starts"),
    [
        ("gpipe", False, 30.0, [30.0, 25.75, 21.625], 304.375),
        ("gpipe", True, 47.1125, [47.1125, 41.40714285714286, 35.1875], 463.6196428571428),
        ("1f1b", False, 28.875, [28.875, 24.625, 23.5], 316.5),
        (
            "1f1b", True, 47.10357142857143,
            [47.10357142857143, 41.53214285714286, 40.10714285714286], 509.11428571428576,
        ),
    ],
)  # fmt: skip
def test_as_before_virtual_stages(name, shared, step_s, ends, starts):
    """Numbers of the simulator that knew one stage per rank and whole backwards alone."""
    prog = Program(
        schedule=name, num_microbatches=5, forward_s=(1.0, 1.5, 0.75), input_s=(2.0, 2.5, 1.75),
        weight_s=(0.0,) * 3, send_forward_s=(0.125, 0.25, 0.0), send_backward_s=(0.0, 0.25, 0.125),
        bucket_s=(0.5, 0.25, 0.5), sync_s=(3.0, 1.0, 2.0), optimizer_s=(0.25, 0.5, 0.75),
    )  # fmt: skip
    sharing = Sharing(
        slowdown=(1.0, 1.25, 1.75, 2.5),
        sync_slowdown=(1.0, 1.5),
        ranks_on_host=((2, 0), (1, 1), (0, 2)),
    )
    timeline = simulate(prog, sharing if shared else None)
    assert timeline.step_s == pytest.approx(step_s, rel=1e-14)
    assert timeline.optimizer_end.tolist() == pytest.approx(ends, rel=1e-14)
    assert sum(x.sum() for x in timeline.start) == pytest.approx(starts, rel=1e-14)


def test_a_lane_takes_cores_from_its_rank():
    """One core: the reduction of stage 1 (4 s) beside stage 0's backward (2 s)."""
    prog = program("interleaved", 1, 1, vpp=2, sync=4.0, overlap_sync=True)
    one, two = (simulate(prog, Sharing(**_curve(n), ranks_on_host=((1,),))) for n in (1, 2))
    assert two.end[0].tolist() == [1.0, 2.0, 4.0, 6.0]
    assert one.end[0].tolist() == [1.0, 2.0, 4.0, 8.0]
    assert two.stage_sync_end.tolist() == [12.0, 8.0]
    assert one.stage_sync_end.tolist() == [14.0, 10.0]


@pytest.mark.parametrize("overlap", [False, True])
def test_reductions_go_in_the_same_order_without_sharing(overlap):
    prog = program("interleaved", 3, 7, vpp=3, send=0.1, sync=4.0, overlap_sync=overlap)
    alone, shared = simulate(prog), simulate(prog, cores(3, 99))
    assert shared.sync_start == pytest.approx(alone.sync_start)
    assert shared.stage_sync_end == pytest.approx(alone.stage_sync_end)


def _curve(num_cores):
    curve = tuple(max(1.0, k / num_cores) for k in (1, 2))
    return {"slowdown": curve, "sync_slowdown": curve}


def test_a_schedule_that_waits_for_itself_is_an_error():
    prog = program("table", 2, 1, table=parse_table(["0B0 0F0", "1F0 1B0"]))
    with pytest.raises(ValueError, match="0B0, 1F0"):
        simulate(prog, cores(2, 1))


def test_rows_have_the_order_of_the_table():
    prog = program("zbv", 3, 7, 1.0, 2.0, 1.0, vpp=2)
    timeline = simulate(prog, cores(3, 2))
    assert timeline.table == actions_of(prog)
    for row, start, end in zip(timeline.table, timeline.start, timeline.end, strict=True):
        assert len(row) == len(start) == len(end)
        assert (np.diff(end) > 0).all()


def test_messages_of_a_slow_link_follow_each_other():
    """Two ranks, and a link that takes longer than all the work: it is the step, there and back."""
    m, send = 6, 10.0
    prog = program("gpipe", 2, m, 1.0, 1.0, send=send)
    in_turn = simulate(prog, replace(cores(2, 9), in_turn=True)).step_s
    assert in_turn == pytest.approx(1 + m * send + 1 + 1 + m * send + 1)
    assert simulate(prog, cores(2, 9)).step_s < in_turn / 2


@settings(max_examples=60, deadline=None)
@given(prog=programs(max_p=4, max_m=6))
def test_messages_in_turn_are_never_earlier(prog):
    every = cores(len(prog.bucket_s), 99)
    assert (
        simulate(prog, replace(every, in_turn=True)).step_s >= simulate(prog, every).step_s - 1e-9
    )
