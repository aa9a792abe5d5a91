"""Scoring against figures worked out by hand, and what must hold for any rows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.choice import choice
from planner.scoring import dominant_term, score
from planner.stats import MIN_ROWS, bias, geomean, quantile, ranges, ranks, spearman
from profiler.codec import encode
from tests.unit.scored_rows import failed_row, left_out, row


def scored(rows, unmodelled=(), **given):
    return score(rows, unmodelled, **{"resamples": 50, **given})


def array(*values):
    return np.array(values, dtype=float)


# --- figures ---------------------------------------------------------------------------------


def test_errors_are_relative_to_the_measurement():
    # errors: 10 %, 20 %, 50 %, 0 % and 100 %; ratios 1.1, 0.8, 1.5, 1, 2
    rows = [
        row("a", 1.1, 1.0), row("b", 1.6, 2.0), row("c", 3.0, 2.0), row("d", 7.0, 7.0),
        row("e", 2.0, 1.0),
    ]  # fmt: skip
    step = scored(rows).step_time
    assert step.rows == 5
    assert step.median_ape == pytest.approx(0.2)
    # sorted 0, .1, .2, .5, 1: position 4 x 0.9 = 3.6 lies 0.6 of the way from .5 to 1
    assert step.p90_ape == pytest.approx(0.8)
    assert step.bias == pytest.approx(0.1)
    assert step.median_ape_range[0] <= 0.2 <= step.median_ape_range[1]


def test_quantile_of_one_and_of_none():
    assert quantile(array(3), 0.9) == 3
    assert quantile(array(), 0.9) is None


def test_twice_and_half_as_long_have_no_bias():
    assert bias(array(2, 0.5), array(1, 1)) == pytest.approx(0)
    assert bias(array(2, 2), array(1, 1)) == pytest.approx(1)
    assert bias(array(), array()) is None


def test_geometric_mean():
    assert geomean(array(1, 4)) == pytest.approx(2)
    assert geomean(array()) is None


def test_ties_share_the_mean_of_their_ranks():
    assert ranks(array(10, 20, 20, 5)).tolist() == [2, 3.5, 3.5, 1]


def test_spearman_without_ties_is_the_textbook_formula():
    a, b = array(1, 2, 3, 4, 5), array(2, 1, 4, 3, 5)
    squares = 1 + 1 + 1 + 1 + 0
    assert spearman(a, b) == pytest.approx(1 - 6 * squares / (5 * 24))


def test_spearman_with_ties_worked_out():
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: deviations -1.5 0 0 1.5 and -1.5 -.5 .5 1.5
    assert spearman(array(1, 2, 2, 3), array(1, 2, 3, 4)) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5.0)
    )


def test_spearman_of_a_constant_or_nothing_is_none():
    assert spearman(array(1, 1, 1), array(1, 2, 3)) is None
    assert spearman(array(), array()) is None


pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12)


@given(pairs)
def test_spearman_is_pearson_of_counted_ranks(values):
    def counted(xs):
        return [sum(y < x for y in xs) + (sum(y == x for y in xs) + 1) / 2 for x in xs]

    a, b = (list(x) for x in zip(*values, strict=True))
    found = spearman(array(*a), array(*b))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
        return
    assert found == pytest.approx(float(np.corrcoef(counted(a), counted(b))[0, 1]))
    cubed = array(*[x**3 for x in a])  # any growing function keeps the order
    assert spearman(cubed, array(*b)) == pytest.approx(found)


def test_range_of_the_mean_is_near_what_theory_says():
    values = np.arange(400, dtype=float)
    ((low, high),) = ranges(400, (lambda i: float(values[i].mean()),), seed=3)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, rel=0.02)
    assert high == pytest.approx(values.mean() + half, rel=0.02)


def test_few_rows_have_no_range():
    assert ranges(MIN_ROWS - 1, (lambda i: 1.0,), seed=0) == (None,)
    assert ranges(MIN_ROWS, (lambda i: None,), seed=0) == (None,)
    assert ranges(MIN_ROWS, (lambda i: 1.0,), seed=0) == ((1.0, 1.0),)


# --- choice ----------------------------------------------------------------------------------


def test_regret_by_hand():
    rows = [
        # ranked first: a, which takes 3 where c takes 2
        row("a", 1.0, 3.0), row("b", 2.0, 2.5), row("c", 3.0, 2.0),
        # right: regret 1
        row("d", 1.0, 1.0, num_gpus=16), row("e", 2.0, 4.0, num_gpus=16),
        # alone: no choice
        row("f", 9.0, 1.0, num_gpus=32),
    ]  # fmt: skip
    found = scored(rows).choice
    assert (found.groups, found.layouts) == (2, 5)
    assert found.regret_geomean == pytest.approx(math.sqrt(1.5))
    assert found.regret_median == pytest.approx(1.25)
    assert found.regret_max == pytest.approx(1.5)
    assert found.spearman_median == pytest.approx(-1)  # of the one group of three


def test_equal_predictions_cost_their_mean():
    rows = [row("a", 1.0, 2.0), row("b", 1.0, 4.0), row("c", 3.0, 1.0)]
    assert choice(rows).regret_max == pytest.approx(3)


def test_repeats_of_a_layout_are_one_with_the_median():
    same = [row(f"a{n}", 1.0, t, label="tp8") for n, t in enumerate((1.0, 2.0, 9.0))]
    assert choice(same).groups == 0
    found = choice([*same, row("b", 2.0, 1.0)])
    assert (found.layouts, found.regret_max) == (2, 2.0)


@pytest.mark.parametrize(
    "other", [{"source": "x"}, {"gpu": "A100"}, {"model": "n"}, {"num_gpus": 4},
              {"global_batch": 32}, {"seq_len": 8}, {"precision": "fp8"}, {"group": ("y",)}]
)  # fmt: skip
def test_layouts_compete_only_where_all_else_is_equal(other):
    assert choice([row("a", 1.0, 2.0), row("b", 2.0, 1.0, **other)]).groups == 0


def test_choice_among_what_fits():
    rows = [row("a", 1.0, 4.0), row("b", 2.0, 2.0, fits=False), row("c", 3.0, 3.0)]
    swapped = [row("a", 1.0, 4.0, fits=False), *rows[1:]]
    assert choice(rows).regret_fitting_geomean == pytest.approx(2)
    assert choice(swapped).regret_fitting_geomean == pytest.approx(1.5)
    assert choice(swapped).regret_geomean == pytest.approx(2)
    nothing = [row("a", 1.0, 4.0, fits=False), row("b", 2.0, 2.0, fits=False)]
    assert choice(nothing).regret_fitting_geomean is None


# --- the document ----------------------------------------------------------------------------


def test_memory_by_hand():
    def peak(name, predicted, measured):
        return row(name, None, None, predicted_peak_gib=predicted, measured_peak_gib=measured)

    rows = [peak("a", 95, 100), peak("b", 94, 100), peak("c", 120, 100), peak("d", 50, None)]
    found = scored(rows)
    assert found.memory.rows == 3
    assert found.memory.median_ape == pytest.approx(0.06)
    assert found.memory.underestimates_over_5pct == pytest.approx(1 / 3)  # 95 is just 5 % below
    assert found.step_time.rows == 0
    assert found.step_time.median_ape is None
    assert found.modelled == 4


def test_what_fits_against_what_ran_and_failed():
    rows = [
        row("a", 1, 1), row("b", 1, 1, fits=False), row("c", 1, 1, fits=False, trusted=False),
        failed_row("x", fits=True), failed_row("y", fits=False), failed_row("z", fits=True),
    ]  # fmt: skip
    found = scored(rows)
    oom, feasible = found.fit_errors.feasible_called_oom, found.fit_errors.failed_called_feasible
    assert (oom.count, oom.of, oom.share) == (1, 2, 0.5)
    assert (feasible.count, feasible.of) == (2, 3)
    assert found.untrusted.fit_errors.feasible_called_oom.count == 1
    assert found.untrusted.fit_errors.failed_called_feasible.share is None
    assert (found.failed, found.modelled, found.rows) == (3, 3, 3)


def test_main_figures_are_of_trusted_rows():
    rows = [row("a", 1.1, 1.0), row("b", 3.0, 1.0, trusted=False, source="other")]
    found = scored(rows)
    assert (found.step_time.rows, found.trusted) == (1, 1)
    assert found.untrusted.step_time.median_ape == pytest.approx(2)
    assert list(found.per_source) == ["lab"]
    assert [w.row_id for w in found.worst] == ["a"]


def test_unmodelled_are_counted_and_named():
    out = [
        left_out("b", "no tp"), left_out("a", "no tp"), left_out("c", "odd: 3", complete=True)
    ]  # fmt: skip
    found = scored([row("r", 1, 1)], out)
    assert found.unmodelled == {"no tp": 2, "odd: 3": 1}
    assert found.unmodelled_rows == {"no tp": ("a", "b"), "odd: 3": ("c",)}
    assert (found.rows, found.modelled, found.complete) == (4, 1, 2)
    assert found.modelled_share == 0.5


def test_worst_rows_and_their_terms():
    slow = row("slow", 3.0, 1.0, parts={"matrix": 1.0, "tp": 2.0})
    fast = row("fast", 0.25, 1.0, parts={"dp": 0.1, "a": 0.1})
    found = scored([row("ok", 1.0, 1.0), slow, fast])
    assert [w.row_id for w in found.worst] == ["fast", "slow", "ok"]  # 4 x too fast, 3 x too slow
    assert (found.worst[0].term, found.worst[0].error) == ("a", -0.75)
    assert (found.worst[1].term, found.worst[1].term_share) == ("tp", pytest.approx(2 / 3))
    assert {t: s.rows for t, s in found.per_term.items()} == {"a": 1, "not told": 1, "tp": 1}
    assert dominant_term({}) == ("", None)


def test_groups_in_order():
    rows = [
        row("a", 1, 1, group=("b", "8")), row("b", 2, 1, group=("a", "8")),
        row("c", 1, 2, group=("a", "8")),
    ]  # fmt: skip
    found = scored(rows).per_group
    assert [(g.group, g.step_time.rows, g.choice.groups) for g in found] == [
        (("a", "8"), 2, 1), (("b", "8"), 1, 0),
    ]  # fmt: skip
    assert found[0].choice.regret_max == 2.0


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_number_without_a_ratio_is_refused(value):
    with pytest.raises(ValueError, match="measured_step_s of row a"):
        scored([row("a", 1.0, value)])


def test_nothing_scores_as_nothing():
    found = scored([])
    assert (found.rows, found.modelled_share, found.choice.regret_max) == (0, None, None)
    assert encode(found)


times = st.floats(0.01, 100)
rows_of_any_kind = st.lists(
    st.builds(
        row, st.sampled_from("abcdef"), times, times,
        source=st.sampled_from(["s", "t"]), num_gpus=st.sampled_from([8, 16]),
        trusted=st.booleans(), fits=st.booleans(), failed=st.booleans(),
        parts=st.dictionaries(st.sampled_from(["matrix", "tp"]), times, max_size=2),
    ),
    max_size=20,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(rows_of_any_kind, st.randoms(use_true_random=False))
def test_the_document_does_not_depend_on_the_order_of_rows(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert encode(scored(rows, resamples=5)) == encode(scored(shuffled, resamples=5))


@settings(max_examples=40, deadline=None)
@given(rows_of_any_kind)
def test_what_holds_for_any_rows(rows):
    found = scored(rows, resamples=0)
    assert found.modelled + found.failed == len(rows)
    assert sum(f.step_time.rows for f in found.per_source.values()) == found.step_time.rows
    assert sum(g.step_time.rows for g in found.per_group) == found.step_time.rows
    assert sum(s.rows for s in found.per_term.values()) == found.step_time.rows
    if found.choice.groups:
        assert 1 <= found.choice.regret_geomean <= found.choice.regret_max + 1e-12
    if found.step_time.rows:
        assert found.step_time.median_ape <= found.step_time.p90_ape


# Times that differ in more than their last digits, which the factor may round away.
@given(
    st.lists(times, min_size=2, max_size=8, unique_by=lambda t: float(f"{t:.6g}")),
    st.floats(0.1, 10),
)
def test_a_prediction_right_but_for_a_factor_has_no_regret(measured, factor):
    rows = [row(str(n), t * factor, t) for n, t in enumerate(measured)]
    found = scored(rows, resamples=0)
    assert found.choice.regret_max == pytest.approx(1)
    assert found.step_time.bias == pytest.approx(factor - 1)
    assert found.step_time.spearman == pytest.approx(1)


def test_the_seed_moves_ranges_only():
    rows = [row(str(n), 1 + n / 7, 1 + (n * 3 % 11) / 5) for n in range(30)]
    one, two = scored(rows, seed=1).step_time, scored(rows, seed=2).step_time
    assert one.median_ape == two.median_ape
    assert one.median_ape_range != two.median_ape_range
