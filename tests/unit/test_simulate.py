"""The simulator against closed forms and against itself."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.bounds import lower_bound
from planner.schedules import Action, in_flight, table_of
from planner.simulate import Program, Sharing, simulate


def program(name, p, m, f=1.0, b=2.0, send=0.0, bucket=0.0, sync=0.0, optimizer=0.0, forward=None):
    return Program(
        schedule=name,
        num_microbatches=m,
        forward_s=forward or (f,) * p,
        backward_s=(b,) * p,
        send_forward_s=(send,) * p,
        send_backward_s=(send,) * p,
        bucket_s=(bucket,) * p,
        sync_s=(sync,) * p,
        optimizer_s=(optimizer,) * p,
    )


def cores(p, num_cores, per_stage=1, **more):
    """A host whose ranks run at full speed up to `num_cores`."""
    curve = tuple(max(1.0, k / num_cores) for k in range(1, p * per_stage + 1))
    return Sharing(
        slowdown=curve,
        sync_slowdown=curve,
        ranks_on_host=((per_stage,),) * p,
        **more,
    )


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@given(p=st.integers(1, 6), m=st.integers(1, 12), f=st.floats(0.1, 9), b=st.floats(0.1, 9))
def test_equal_stages_follow_the_closed_form(name, p, m, f, b):
    step_s = simulate(program(name, p, m, f, b)).step_s
    assert step_s == pytest.approx((m + p - 1) * (f + b))


@given(p=st.integers(2, 5), m=st.integers(1, 9), send=st.floats(0, 3))
def test_gpipe_with_messages_follows_the_closed_form(p, m, send):
    """Messages only fill the pipeline: sends do not hold up the sender."""
    step_s = simulate(program("gpipe", p, m, send=send)).step_s
    assert step_s == pytest.approx((m + p - 1) * 3.0 + 2 * (p - 1) * send)


@given(
    m=st.integers(1, 9),
    times=st.lists(st.floats(0.1, 5), min_size=2, max_size=5),
    slow=st.floats(5, 9),
)
def test_one_slow_stage_sets_the_pace_of_gpipe(m, times, slow):
    """Forward of unequal stages: fill + m times the slowest; backward is equal here."""
    forward = (*times, slow)
    p = len(forward)
    expected = sum(times) + m * slow + (m + p - 1) * 2.0
    assert simulate(program("gpipe", p, m, forward=forward)).step_s == pytest.approx(expected)


def test_tail_starts_when_a_stage_is_done():
    timeline = simulate(program("1f1b", 4, 8, bucket=0.25, sync=5.0, optimizer=0.5))
    assert timeline.step_s == pytest.approx((8 + 3) * 3 + 5.75)
    assert timeline.sync_end[3] < timeline.sync_end[0]


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@given(p=st.integers(1, 5), m=st.integers(1, 8), f=st.floats(0.1, 5), send=st.floats(0, 2))
def test_shared_host_with_a_core_for_each_rank_is_no_sharing(name, p, m, f, send):
    prog = program(name, p, m, f, send=send, bucket=0.1, sync=0.7, optimizer=0.2)
    alone, shared = simulate(prog), simulate(prog, cores(p, num_cores=p))
    assert shared.step_s == pytest.approx(alone.step_s)
    for a, b in zip(alone.start, shared.start, strict=True):
        assert a == pytest.approx(b)


@given(p=st.integers(1, 5), m=st.integers(1, 8))
def test_one_core_does_all_work_one_after_another(p, m):
    """Work is conserved: with one core no bubble remains, whatever the schedule."""
    for name in ("gpipe", "1f1b"):
        assert simulate(program(name, p, m), cores(p, 1)).step_s == pytest.approx(p * m * 3.0)


@given(p=st.integers(2, 5), m=st.integers(1, 8), n=st.integers(1, 4))
def test_more_cores_are_never_slower(p, m, n):
    few, more = (simulate(program("1f1b", p, m), cores(p, k)).step_s for k in (n, n + 1))
    assert more <= few * (1 + 1e-9)


@settings(max_examples=60)
@given(
    p=st.integers(1, 5), m=st.integers(1, 8), n=st.integers(1, 6), send=st.floats(0, 2),
    f=st.lists(st.floats(0.1, 5), min_size=5, max_size=5), sync=st.floats(0, 3),
    name=st.sampled_from(["gpipe", "1f1b"]),
)  # fmt: skip
def test_lower_bound_holds(p, m, n, send, f, sync, name):
    prog = program(
        name, p, m, send=send, bucket=0.2, sync=sync, optimizer=0.3, forward=tuple(f[:p])
    )
    for sharing in (None, cores(p, n)):
        assert lower_bound(prog, sharing) <= simulate(prog, sharing).step_s * (1 + 1e-9)


@given(p=st.integers(1, 6), m=st.integers(1, 12), name=st.sampled_from(["gpipe", "1f1b"]))
def test_tables_hold_each_action_once_in_causal_order(p, m, name):
    for stage, row in enumerate(table_of(name, p, m)):
        assert sorted(row) == sorted(Action(stage, op, k) for op in "FB" for k in range(m))
        for k in range(m):
            assert row.index(Action(stage, "F", k)) < row.index(Action(stage, "B", k))


def count_flights(row):
    """(most before the first backward, most from its end on), by walking the row."""
    now, before, after, begun = 0, 0, 0, False
    for action in row:
        now += 1 if action.op == "F" else -1
        begun = begun or action.op == "B"
        before, after = (before, max(after, now)) if begun else (max(before, now), after)
    return before, after


@given(p=st.integers(1, 6), m=st.integers(1, 12), name=st.sampled_from(["gpipe", "1f1b"]))
def test_flights_by_formula_are_those_of_the_table(p, m, name):
    assert in_flight(name, p, m) == tuple(count_flights(row) for row in table_of(name, p, m))


def test_a_schedule_that_waits_for_itself_is_an_error():
    prog = program("gpipe", 2, 1)
    stuck = ((Action(0, "B", 0), Action(0, "F", 0)), table_of("gpipe", 2, 1)[1])
    for sharing in (None, cores(2, 1)):
        with pytest.raises(ValueError, match="0B0, 1F0"):
            simulate(prog, sharing, stuck)


def test_overlapping_steps_never_end_before_they_start():
    timeline = simulate(program("1f1b", 4, 8, send=0.1, sync=1.0))
    for start, end in zip(timeline.start, timeline.end, strict=True):
        assert (end >= start).all()
        assert (start[1:] >= end[:-1] - 1e-12).all()
        assert math.isfinite(timeline.step_s)
