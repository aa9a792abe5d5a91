"""The simulator against closed forms and against one written from the definition."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner import dependencies, wavefront
from planner.bounds import lower_bound
from planner.loop_levels import levels_of
from planner.schedules import Action, in_flight, parse_table, table_of
from planner.simulate import Batch, Program, Structure, simulate, simulate_many
from tests.unit.steps import SHAPES, USERS, actions_of, program, programs, reference


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@given(p=st.integers(1, 6), m=st.integers(1, 12), f=st.floats(0.1, 9), b=st.floats(0.1, 9))
def test_equal_stages_follow_the_closed_form(name, p, m, f, b):
    step_s = simulate(program(name, p, m, f, b)).step_s
    assert step_s == pytest.approx((m + p - 1) * (f + b))


@given(
    p=st.integers(1, 8), more=st.integers(0, 12), vpp=st.integers(1, 4), f=st.floats(0.1, 9),
    i=st.floats(0.1, 9), w=st.floats(0.1, 9),
)  # fmt: skip
def test_bubbles_of_loop_schedules(p, more, vpp, f, i, w):
    """From m = p on; see the schedules' own modules."""
    m = p + more
    bubble = {"interleaved": f + i + w, "zero_bubble": max(f, i, f + i - w)}
    for name, each in bubble.items():
        step_s = simulate(program(name, p, m, f, i + w, w, vpp=vpp)).step_s
        assert step_s == pytest.approx(m * vpp * (f + i + w) + (p - 1) * each)


@given(p=st.integers(1, 7), more=st.integers(0, 12), f=st.floats(0.1, 9))
def test_v_schedules_wait_for_the_first_forward_alone(p, more, f):
    m = 2 * p + more
    for name in ("zbv", "dualpipev"):
        step_s = simulate(program(name, p, m, f, 2 * f, f, vpp=2)).step_s
        assert step_s == pytest.approx(2 * m * 3 * f + (p - 1) * f)


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


@settings(max_examples=300, deadline=None)
@given(prog=programs())
def test_any_program_takes_as_long_as_by_definition(prog):
    spans, ends = reference(prog)
    timeline = simulate(prog)
    assert timeline.table == actions_of(prog)
    for row, start, end in zip(timeline.table, timeline.start, timeline.end, strict=True):
        expected = np.array([spans[action] for action in row])
        assert np.array_equal(start, expected[:, 0])
        assert np.array_equal(end, expected[:, 1])
    assert timeline.optimizer_end == pytest.approx(np.array(ends))
    assert timeline.step_s == pytest.approx(max(ends))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.sampled_from([*SHAPES, ("table", 2)]), p=st.integers(1, 6))
def test_a_batch_takes_as_long_as_each_alone(data, shape, p):
    m, kind = data.draw(st.integers(1, 12)), programs(shapes=[shape], max_p=1, max_m=1)
    same = [_resized(data.draw(kind), p, m) for _ in range(data.draw(st.integers(1, 4)))]
    same = [x for x in same if x.overlap_sync == same[0].overlap_sync]
    alone = np.array([simulate(x).step_s for x in same])
    assert np.array_equal(simulate_many(same), alone)


def _resized(prog, p, m):
    """The same kind of program, with other times, for p ranks and m micro-batches."""
    if prog.schedule == "table":
        return prog
    values = np.random.default_rng(int(1e6 * sum(prog.sync_s))).uniform(0, 3, 9 * p * prog.vpp)
    rows = iter(values.reshape(9, -1).tolist())
    stages = {
        name: tuple(next(rows))
        for name in (
            "forward_s", "input_s", "weight_s", "send_forward_s", "send_backward_s", "sync_s",
        )
    }  # fmt: skip
    ranks = {n: tuple(next(rows)[:p]) for n in ("head_s", "bucket_s", "optimizer_s")}
    return Program(
        schedule=prog.schedule, num_microbatches=m, vpp=prog.vpp, overlap_sync=prog.overlap_sync,
        **stages, **ranks,
    )  # fmt: skip


def test_numpy_and_python_agree_to_the_bit(monkeypatch):
    """Also where a batch is run in parts."""
    prog = _resized(program("interleaved", 2, 1, vpp=2, sync=1.5), 6, 40)
    alone = wavefront.ends_of(prog)
    monkeypatch.setattr(wavefront, "_ACTION_S", math.inf)
    assert np.array_equal(wavefront.ends_of(prog), alone)
    many = simulate_many([prog] * 5)
    monkeypatch.setattr(wavefront, "_MOST_CELLS", 2 * len(alone))
    assert np.array_equal(simulate_many([prog] * 5), many)


@settings(deadline=None)
@given(
    name=st.sampled_from(["gpipe", "1f1b", "interleaved", "zero_bubble"]), p=st.integers(1, 12),
    m=st.integers(1, 40), vpp=st.integers(1, 4),
)  # fmt: skip
def test_levels_in_closed_form_grow_along_every_wait(name, p, m, vpp):
    vpp = 1 if name in ("gpipe", "1f1b") else vpp
    structure = Structure(schedule=name, pp=p, num_microbatches=m, vpp=vpp)
    assert levels_of(structure) is not None or (vpp > 1 and m < p)
    graph = dependencies.graph_of(structure)
    level = np.repeat(np.arange(len(graph.levels) - 1), np.diff(graph.levels))
    level = np.concatenate((np.full(graph.first, -1), level))
    own = level[graph.first :]
    assert (level[graph.before] < own).all()
    assert (level[graph.needs] < own).all()
    rows = table_of(name, p, m, vpp)
    for row, at in zip(rows, graph.rows, strict=True):
        op, stage = np.divmod(graph.kind[at], p * vpp)
        found = zip(stage, (dependencies.OPS[x] for x in op), graph.micro_batch[at], strict=True)
        assert tuple(Action(int(s), o, int(k)) for s, o, k in found) == row
    by_hand = dependencies._sorted(dependencies._run(rows, m), p, p * vpp)
    prog = _resized(program(name, p, m, vpp=vpp, sync=1.5), p, m)
    assert (simulate(prog).end[0] == _ends_by(by_hand, prog)).all()


def _ends_by(graph, prog):
    """Of the first row."""
    return wavefront._run_levels(graph, Batch.of([prog]))[graph.first :, 0][graph.rows[0]]


def test_tail_starts_when_a_stage_is_done():
    timeline = simulate(program("1f1b", 4, 8, bucket=0.25, sync=5.0, optimizer=0.5))
    assert timeline.step_s == pytest.approx((8 + 3) * 3 + 5.75)
    assert timeline.sync_end[3] < timeline.sync_end[0]


def test_reductions_hide_behind_what_a_rank_still_computes():
    """Rank 0 of interleaved 1F1B ends with backwards of stage 0, so stage 2 is reduced first."""
    late, early = (
        simulate(program("interleaved", 2, 2, sync=1.5, vpp=2, overlap_sync=overlap))
        for overlap in (False, True)
    )
    end = late.end[0][-1]
    assert late.step_s == end + 2 * 1.5
    assert late.sync_start[2] == end == late.sync_start[0] - 1.5
    assert early.step_s == end + 1.5  # that of stage 0 alone is exposed
    assert early.stage_sync_end[2] == early.sync_start[2] + 1.5 <= end


def test_a_lane_reduces_one_stage_at_a_time():
    timeline = simulate(program("interleaved", 1, 1, sync=50.0, vpp=3, overlap_sync=True))
    assert timeline.sync_start.tolist() == [105.0, 55.0, 5.0]
    assert timeline.step_s == 155.0


def test_heads_delay_their_rank_alone():
    heads = (0.5, 4.0)
    timeline = simulate(program("gpipe", 2, 1, head_s=heads))
    assert [row[0] for row in timeline.start] == [0.5, 4.0]
    assert simulate(program("gpipe", 1, 3, head_s=(2.0,))).step_s == 2.0 + 3 * 3.0


@settings(max_examples=300, deadline=None)
@given(prog=programs())
def test_lower_bound_holds(prog):
    assert lower_bound(prog, None) <= simulate(prog).step_s * (1 + 1e-9)


@given(p=st.integers(1, 6), more=st.integers(0, 8), shape=st.sampled_from(SHAPES))
def test_lower_bound_is_reached_where_stages_are_equal(p, more, shape):
    """But by zero bubble, whose order leaves some of the bubble, and where nothing is filled."""
    name, vpp = shape
    assume(name != "zero_bubble")
    prog = program(name, p, 2 * p + more, 1.0, 2.0, 1.0, vpp=vpp, optimizer=0.5)
    assert lower_bound(prog, None) == pytest.approx(simulate(prog).step_s)


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


@pytest.mark.parametrize(
    ("rows", "stuck"),
    [
        (("0B0 0F0", "1F0 1B0"), "0B0, 1F0"),
        (("0F0 0W0 0I0", "1F0 1B0"), "0W0"),
        (("0F0 0B0", "1B0 1F0"), "0B0, 1B0"),
        (("0F0 0B0", "1F0"), "0B0"),
    ],
)
def test_a_schedule_that_waits_for_itself_is_an_error(rows, stuck):
    prog = program("table", 2, 1, table=parse_table(rows))
    with pytest.raises(ValueError, match=f"schedule can never run: {stuck} wait"):
        simulate(prog)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forward": (1.0,)}, "one number is needed"),
        ({"head_s": (1.0,)}, "one number is needed"),
        ({"vpp": 2, "forward": (1.0,) * 4, "table": USERS}, "comes with a table"),
    ],
)
def test_programs_that_are_not_one(changes, message):
    with pytest.raises(ValueError, match=message):
        program("1f1b", 2, 1, **changes)
    with pytest.raises(ValueError, match="one structure"):
        simulate_many([program("1f1b", 2, 1), program("1f1b", 2, 2)])


def test_graphs_are_forgotten_when_they_grow_too_many(monkeypatch):
    dependencies.forget_graphs()
    monkeypatch.setattr(dependencies, "_CACHED_ACTIONS", 100)
    structures = [Structure(schedule="1f1b", pp=2, num_microbatches=m) for m in (10, 11, 12)]
    graphs = [dependencies.graph_of(s) for s in structures]
    assert dependencies.graph_of(structures[2]) is graphs[2]
    assert dependencies.graph_of(structures[1]) is graphs[1]
    assert dependencies.graph_of(structures[0]) is not graphs[0]


def test_overlapping_steps_never_end_before_they_start():
    timeline = simulate(program("1f1b", 4, 8, send=0.1, sync=1.0))
    for start, end in zip(timeline.start, timeline.end, strict=True):
        assert (end >= start).all()
        assert (start[1:] >= end[:-1]).all()
        assert math.isfinite(timeline.step_s)
