"""Every schedule's table against the papers' closed forms, and broken tables against the check."""

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedules import (
    SPLIT_BACKWARD,
    Action,
    allows_vpp,
    check_table,
    format_table,
    in_flight,
    owners,
    parse_table,
    peak_in_flight,
    stage_owner,
    table_of,
)
from profiler.errors import UserError

NAMES = ("gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipev")
SHAPES = [(name, vpp) for name, vpp in product(NAMES, (1, 2, 3)) if allows_vpp(name, vpp)]
RANKS, COUNTS = range(1, 7), range(1, 18)


def step_length(table, f=1, i=1, w=1):
    """Longest path: every action as soon as its row is free and what it needs is done."""
    num_stages = 1 + max(action.stage for row in table for action in row)
    seconds = {"F": f, "B": i + w, "I": i, "W": w}
    done, free, rows = {}, [0] * len(table), [list(row) for row in table]
    while any(rows):
        moved = False
        for rank, row in enumerate(rows):
            if not row:
                continue
            stage, op, k = row[0]
            way = "forward" if op == "F" else op if op == "W" else "backward"
            needs = {
                "forward": (stage - 1, "forward", k) if stage else None,
                "backward": (stage + 1, way, k)
                if stage + 1 < num_stages
                else (stage, "forward", k),
                "W": (stage, "backward", k),
            }[way]
            if needs is None or needs in done:
                free[rank] = max(free[rank], done.get(needs, 0)) + seconds[op]
                done[stage, way, k] = free[rank]
                row.pop(0)
                moved = True
        assert moved, f"stuck at {rows}"
    return max(free)


def bubble(name, p, m, vpp=1, f=1, i=1, w=1):
    """Time of the step beyond each rank's own work."""
    return step_length(table_of(name, p, m, vpp), f, i, w) - m * vpp * (f + i + w)


@pytest.mark.parametrize(("name", "vpp"), SHAPES)
def test_every_count_has_a_table_that_can_run(name, vpp):
    for p, m in product(RANKS, COUNTS):
        table = table_of(name, p, m, vpp)
        assert check_table(table, p * vpp, m) is None, (p, m)
        assert len(table) == p
        assert owners(table) == stage_owner(name, p, vpp)
        ops = {action.op for row in table for action in row}
        assert ops <= (set("FBIW") if name in SPLIT_BACKWARD else set("FB"))
        assert parse_table(format_table(table)) == table
        step_length(table)


@pytest.mark.parametrize("name", ["interleaved", "zero_bubble"])
@settings(deadline=None)
@given(p=st.integers(1, 12), m=st.integers(1, 40), vpp=st.integers(1, 5))
def test_uneven_rounds_do_not_wait_for_each_other(name, p, m, vpp):
    assert check_table(table_of(name, p, m, vpp), p * vpp, m) is None


def test_shapes():
    assert stage_owner("interleaved", 3, 2) == (0, 1, 2, 0, 1, 2)
    assert stage_owner("zero_bubble", 2, 1) == (0, 1)
    assert stage_owner("zbv", 3, 2) == stage_owner("dualpipev", 3, 2) == (0, 1, 2, 2, 1, 0)


@pytest.mark.parametrize(
    ("name", "vpp"), [("gpipe", 2), ("1f1b", 2), ("zbv", 1), ("dualpipev", 3), ("interleaved", 0)]
)
def test_stages_per_rank_that_a_schedule_cannot_have(name, vpp):
    assert not allows_vpp(name, vpp)
    for function in (table_of, in_flight):
        with pytest.raises(ValueError, match=f"{name} cannot have {vpp} stages"):
            function(name, 2, 4, vpp)
    with pytest.raises(ValueError, match="no shape"):
        stage_owner(name, 2, vpp)


def test_a_table_of_the_users_is_not_made_here():
    for function in (table_of, in_flight):
        with pytest.raises(ValueError, match="user's table"):
            function("table", 2, 4)
    with pytest.raises(ValueError, match="no shape"):
        stage_owner("table", 2, 1)


def test_small_tables_by_hand():
    """Written out from the papers' rules."""
    assert format_table(table_of("zero_bubble", 2, 3)) == (
        "0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2",
        "1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2",
    )
    assert format_table(table_of("interleaved", 2, 2, 2)) == (
        "0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1",
        "1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1",
    )
    assert format_table(table_of("zbv", 2, 1, 2)) == (
        "0F0 3F0 3I0 3W0 0I0 0W0",
        "1F0 2F0 2I0 2W0 1I0 1W0",
    )


# --- time


@given(p=st.integers(1, 6), m=st.integers(1, 12), f=st.integers(1, 9), i=st.integers(1, 9))
def test_one_stage_per_rank_follows_the_closed_form(p, m, f, i):
    for name in ("gpipe", "1f1b"):
        assert bubble(name, p, m, 1, f, i, 2) == (p - 1) * (f + i + 2)


@settings(deadline=None)
@given(
    p=st.integers(1, 6), m=st.integers(1, 20), vpp=st.integers(1, 4), f=st.integers(1, 9),
    b=st.integers(2, 9),
)  # fmt: skip
def test_interleaving_divides_the_bubble(p, m, vpp, f, b):
    """In times of a rank's whole work, (p - 1) * (f + b) / vpp; for counts beyond the paper's too,
    as long as the pipeline is filled."""
    found = bubble("interleaved", p, m, vpp, f, 1, b - 1)
    assert found == (p - 1) * (f + b) if m >= p else found >= (p - 1) * (f + b)


@settings(deadline=None)
@given(
    p=st.integers(1, 6), m=st.integers(1, 20), vpp=st.integers(1, 4), f=st.integers(1, 9),
    i=st.integers(1, 9), w=st.integers(1, 9),
)  # fmt: skip
def test_split_backward_shrinks_the_bubble(p, m, vpp, f, i, w):
    """Qi et al.'s ZB-H1: (p - 1) * (f + i - w), where w is the shortest."""
    found = bubble("zero_bubble", p, m, vpp, f, i, w)
    expected = (p - 1) * max(f, i, f + i - w)
    assert found == expected if m >= p else found >= expected
    assert found <= bubble("interleaved", p, m, vpp, f, i, w)


@pytest.mark.parametrize("name", ["zbv", "dualpipev"])
def test_v_schedules_fill_the_bubble(name):
    """A rank waits for its first forward alone; 1F1B with stages twice as long waits six times
    that."""
    for p, m in product(RANKS, COUNTS):
        found = bubble(name, p, m, 2)
        if m >= (2 * p - 1 if name == "zbv" else 2 * p):
            assert found == p - 1
            assert bubble("1f1b", p, m, 1, 2, 2, 2) == 6 * found
        assert p - 1 <= found <= bubble("1f1b", p, m, 1, 2, 2, 2)


# --- memory


@pytest.mark.parametrize(("name", "vpp"), SHAPES)
def test_flights_by_formula_are_those_of_the_table(name, vpp):
    for p, m in product(RANKS, COUNTS):
        assert in_flight(name, p, m, vpp) == peak_in_flight(table_of(name, p, m, vpp)), (p, m)


def test_peaks_of_the_papers():
    """Stage-micro-batches of each rank where the pipeline is full (m = 12, p = 3)."""
    peaks = {
        (name, vpp): [max(flights) for flights in in_flight(name, 3, 12, vpp)]
        for name, vpp in SHAPES
    }
    assert peaks["gpipe", 1] == [12, 12, 12]
    assert peaks["1f1b", 1] == [3, 2, 1]
    assert peaks["zero_bubble", 1] == [3, 3, 3]  # ZB-H1: 1F1B's peak, on every rank
    assert peaks["interleaved", 2] == [3 + 4 + 1, 3 + 2 + 1, 3 + 0 + 1]  # warm-up and one
    assert peaks["interleaved", 3] == [6 + 4 + 1, 6 + 2 + 1, 6 + 0 + 1]
    assert peaks["zbv", 2] == [6, 6, 6]  # 2 * p, each half a stage of 1F1B's
    assert peaks["dualpipev", 2] == [7, 7, 7]  # 2 * p + 1


@pytest.mark.parametrize(
    ("name", "most"), [("zbv", lambda p: 2 * p), ("dualpipev", lambda p: 2 * p + 1)]
)
def test_v_schedules_bound_memory_for_every_count(name, most):
    for p, m in product(RANKS, COUNTS):
        peaks = [max(flights) for flights in in_flight(name, p, m, 2)]
        assert max(peaks) <= min(most(p), 2 * m)


def test_activations_are_in_flight_until_their_weight_gradient():
    table = parse_table(["0F0 0F1 0I0 0F2 0I1 0W0 0W1 0F3 0F4 0B2 0B3 0B4"])
    assert peak_in_flight(table) == ((3, 3),)
    assert peak_in_flight(parse_table(["0F0 0B0"])) == ((1, 0),)


# --- broken tables


GOOD = ("0F0 0F1 0B0 0B1", "1F0 1I0 1F1 1I1 1W0 1W1")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (GOOD, None),
        (("0F0 0F1 0B0 0B1", ""), "row 1 of the table has no actions"),
        (("0F0 0F1 0B0 0B1 2F0", GOOD[1]), "`2F0` in row 0: stages are 0 to 1"),
        (("0F0 0F1 0F2 0B0 0B1", GOOD[1]), "`0F2` in row 0: micro-batches are 0 to 1"),
        (("0F0 0F1 0B0", GOOD[1] + " 0B1"), "stage 0 is in row 0 and in row 1"),
        (("0F0 0F1 0F0 0B0 0B1", GOOD[1]), "`0F0` is in the table 2 times"),
        (("0F0 0B0 0B1", GOOD[1]), "`0F1` is missing"),
        (("0F0 0F1 0B0", GOOD[1]), "`0B1` is missing (or `0I1` and `0W1`)"),
        (
            ("0F0 0F1 0B0 0B1 0I1 0W1", GOOD[1]),
            "`0B1` and `0I1` are both there: backward is B, or I and W",
        ),
        (("0F0 0F1 0B0 0I1", GOOD[1]), "`0I1` is there without `0W1`"),
        (("0F0 0F1 0B0 0B1 0W1", GOOD[1]), "`0W1` is there without `0I1`"),
        (("0F0 0B1 0F1 0B0", GOOD[1]), "`0B1` is before `0F1` in row 0"),
        ((GOOD[0], "1F0 1W0 1I0 1F1 1I1 1W1"), "`1W0` is before `1I0` in row 1"),
        ((GOOD[0], "1F0 1I0 1I1 1F1 1W0 1W1"), "`1I1` is before `1F1` in row 1"),
        (
            ("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"),
            "actions wait for each other: `0B0` (row 0), `1F1` (row 1)",
        ),
        (
            ("0F0 0B0 0F1 0B1", "1F0 1F1 1I0 1W0 1I1 1W1"),
            "actions wait for each other: `0B0` (row 0), `1F1` (row 1)",
        ),
        (
            ("0F0 0I0 0W0 0F1 0B1", "1F0 1F1 1B0 1B1"),
            "actions wait for each other: `0I0` (row 0), `1F1` (row 1)",
        ),
        (("1F0 0F0 1F1 0F1 1B0 0B0 1B1 0B1",), "`1F0` is before `0F0` in row 0"),
        (("0F0 1F0 0F1 1F1 0B0 1B0 1B1 0B1",), "`0B0` is before `1B0` in row 0"),
    ],
)
def test_broken_tables_are_refused_with_the_reason(rows, sentence):
    table = tuple(tuple(parse_table([row])[0]) for row in rows)
    assert check_table(table, 2, 2) == sentence


def test_a_deadlock_names_only_the_rows_of_its_circle():
    """Row 0 waits too, for the circle of rows 1 and 2."""
    table = parse_table(["0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1", "2F0 2F1 2B0 2B1"])
    assert check_table(table, 3, 2) == "actions wait for each other: `1B0` (row 1), `2F1` (row 2)"


@given(
    shape=st.sampled_from(SHAPES), p=st.integers(1, 4), m=st.integers(1, 6),
    how=st.sampled_from(["drop", "repeat", "move"]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_a_changed_table_is_refused(shape, p, m, how, seed):
    name, vpp = shape
    pick = random.Random(seed)
    rows = [list(row) for row in table_of(name, p, m, vpp)]
    action = pick.choice(pick.choice(rows))
    source = next(row for row in rows if action in row)
    if how == "repeat":
        pick.choice(rows).append(action)
    else:
        source.remove(action)
    if how == "move":
        rows.append([action])  # the rest of its stage stays
    assert check_table(tuple(map(tuple, rows)), p * vpp, m) is not None


@given(
    shape=st.sampled_from(SHAPES), p=st.integers(1, 4), m=st.integers(1, 5),
    seed=st.integers(0, 10**6), swaps=st.integers(1, 4),
)  # fmt: skip
def test_the_check_accepts_exactly_what_can_run(shape, p, m, seed, swaps):
    """Rows in another order, against the longest path's own verdict."""
    name, vpp = shape
    pick = random.Random(seed)
    rows = [list(row) for row in table_of(name, p, m, vpp)]
    for _ in range(swaps):
        row = pick.choice(rows)
        a, b = pick.randrange(len(row)), pick.randrange(len(row))
        row[a], row[b] = row[b], row[a]
    table = tuple(map(tuple, rows))
    try:
        step_length(table)
    except AssertionError:
        assert check_table(table, p * vpp, m) is not None
    else:
        assert check_table(table, p * vpp, m) is None


# --- text


def test_rows_are_read_with_any_space_between():
    assert parse_table(["  0F0\t0B0 ", "1F10 1I10 1W10"]) == (
        (Action(0, "F", 0), Action(0, "B", 0)),
        (Action(1, "F", 10), Action(1, "I", 10), Action(1, "W", 10)),
    )


@pytest.mark.parametrize(
    "word",
    ["0G0", "F0", "0F", "0f0", "0F0,0B0", "-1F0", "0F-1", "0F1.5", "\u0663F0", "0" * 9 + "F0"],
)
def test_what_is_no_action_is_the_users_error(word):
    with pytest.raises(UserError, match="in row 1 of the table is not an action") as caught:
        parse_table(["0F0 0B0", f"1F0 {word} 1B0"])
    assert f"`{word}`" in caught.value.message or "\\u0663" in caught.value.message
    assert caught.value.hint is not None
    assert "2F0" in caught.value.hint


def test_no_rows_are_the_users_error():
    with pytest.raises(UserError, match="no rows"):
        parse_table([])


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_text_is_a_table_or_an_error(rows):
    try:
        table = parse_table(rows)
    except UserError:
        return
    assert parse_table(format_table(table)) == table
