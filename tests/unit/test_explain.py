"""Reasons come from the plan's numbers alone, and a plan without some of them says less."""

import itertools

import numpy as np
import pytest

from launch.cli import sections, timeline_text, why_text
from planner.explain import compare, explain, shares, timeline_of
from planner.grounds import SEARCHED, ground
from planner.plan import TERMS, SearchOptions
from planner.reach import reach_of, talking_pairs
from planner.rules import CONFIG_RULES
from planner.spans import busy_share, spans_of, windows
from planner.whynot import why_not
from profiler.codec import replace
from profiler.errors import UserError
from tests import made
from tests.unit import facts


def reasons(plan):
    return {reason.axis: reason for reason in explain(plan).reasons}


def test_a_value_costs_what_its_fastest_simulated_layout_costs():
    base = made.plan().chosen.cost.step_s
    others = {other.value: other for other in reasons(made.plan())["tp"].others}
    assert others["4"].cost == pytest.approx(
        min(made.plan().by_axis["tp"]["4"], 36.1 * base / 35.0) / base - 1
    )
    assert others["2"].cost == pytest.approx(made.plan().by_axis["tp"]["2"] / base - 1)


def test_the_faster_of_search_and_shown_layouts_speaks_for_a_value():
    fast = made.candidate(35.2, made.config(tp=2, pp=8), 40.0)
    plan = made.plan(frontier=(made.plan().chosen, fast))
    others = {other.value: other for other in reasons(plan)["tp"].others}
    assert others["2"].cost == pytest.approx(35.2 / 35.0 - 1)


def test_neighbours_without_a_layout_say_why():
    plan = made.plan()
    tp = {other.value: other.why for other in reasons(plan)["tp"].others}
    sentences = {rule.id: rule.sentence for rule in CONFIG_RULES}
    assert tp["16"] == sentences["kv-heads-tp"]
    pp = {other.value: other.why for other in reasons(plan)["pp"].others}
    assert pp["2"] == "no layout searched fits"
    assert "8" in pp
    fewer = made.plan(by_axis={"pp": {"4": 34.8}}, alternatives=(), frontier=())
    assert [o.value for o in reasons(fewer)["pp"].others] == ["2", "8"]
    forbidden = replace(fewer, options=SearchOptions(pin={}, forbid={"pp": ("8",)}))
    assert {o.value: o.why for o in reasons(forbidden)["pp"].others}["8"] == "forbidden"


def test_a_pinned_axis_says_so():
    plan = made.plan(
        options=SearchOptions(pin={"tp": ("8",)}, forbid={}),
        by_axis={"tp": {"8": 34.8}}, alternatives=(), frontier=(),
    )  # fmt: skip
    reason = reasons(plan)["tp"]
    assert (reason.pinned, reason.others) == (True, ())
    assert "--pin" in why_text.others_words(reason)


def test_grounds_name_the_link():
    fills = reasons(made.plan())["tp"].text
    assert "fills the node" in fills
    assert "NVLink 4 (450 GB/s per device)" in fills
    assert "7.0% of the step" in fills
    wide = made.candidate(40.0, made.config(tp=16, pp=2), 60.0)
    assert "across 2 nodes, InfiniBand NDR (50 GB/s per device)" in ground(
        made.plan(chosen=wide), "tp"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"tp": 1, "dp_shard": 8, "zero": 1},
        {"tp": 1, "dp_shard": 8, "zero": 2, "pp": 4, "vpp": 1, "schedule": "1f1b"},
        {"tp": 1, "dp_shard": 32, "zero": 3, "pp": 1, "vpp": 1, "schedule": "1f1b"},
        {"tp": 4, "cp": 2, "cp_method": "ulysses"},
        {"tp": 2, "cp": 4, "cp_method": "hybrid", "cp_heads": 2},
        {"tp": 4, "cp": 2, "cp_method": "all_gather", "offload": "optimizer"},
        {"recompute": "selective"},
        {"recompute": "full", "micro_batch": 4},
        {"dp_replicate": 4, "tp": 2, "ep": 4, "etp": 2},
        {"dp_replicate": 4, "tp": 2, "ep": 4, "ep_overlap": 2},
    ],
)
def test_every_choice_has_a_ground(changes):
    plan = made.plan(chosen=made.candidate(40.0, made.config(**changes), 60.0))
    found = reasons(plan)
    assert set(found) <= set(SEARCHED)
    for axis in set(changes) - {"micro_batch", "cp_heads", "ep", "etp"}:
        if str(changes[axis]) not in ("1", "1f1b", "none"):
            assert axis in found, axis
    for reason in found.values():
        assert reason.text == reason.text.strip()
        assert "None" not in reason.text


def test_limits_and_proof():
    explained = explain(made.plan())
    assert explained.limits["memory"].startswith("stage 0 is fullest: 67.5 GiB of 79.2 GiB")
    assert explained.limits["time"].endswith("then bubble 11.0%, attention 9.0%, tensor 7.0%")
    assert explained.limits["link"].endswith("most of it tensor")
    assert explained.proof[0] == "the step is 3.1% above the lower bound of this layout"
    assert explained.proof[1] == "it is 5.4% above the lower bound of all layouts searched"
    assert explained.proof[-1].endswith("nothing was measured")


def test_a_peak_without_activations_is_no_amount_of_them():
    """As in the update, where layouts of small batches have theirs."""
    chosen = made.plan().chosen
    stages = tuple(
        replace(s, memory=replace(s.memory, activation_bytes=0)) for s in chosen.cost.stages
    )
    plan = made.plan(chosen=replace(chosen, estimate=replace(chosen.cost, stages=stages)))
    found = reasons(plan)
    assert found["schedule"].text.startswith("memory peaks in the update")
    assert all("0.0 GiB" not in reason.text for reason in found.values())
    assert "of activations" in reasons(made.plan())["schedule"].text


def test_what_is_only_rounding_has_no_share():
    chosen = made.plan().chosen
    terms = chosen.cost.terms | {"host": 1e-15}
    shown = shares(replace(chosen, estimate=replace(chosen.cost, terms=terms)))
    assert shown["host"] == 0.0
    assert sum(shown.values()) == pytest.approx(1)


def test_what_a_plan_does_not_hold_is_not_spoken_of():
    explained = explain(made.bare())
    assert set(explained.limits) == {"memory", "time"}
    assert len(explained.proof) == 3
    assert all(reason.others == () for reason in explained.reasons)
    assert "frontier" in sections.frontier_lines(made.bare())[0]
    assert "instead" not in "\n".join(why_text.reason_lines(explained))


def test_a_plan_without_an_estimate_is_refused():
    plan = made.plan(chosen=replace(made.plan().chosen, estimate=None))
    with pytest.raises(UserError, match="does not cover"):
        explain(plan)


def test_shares_and_comparisons_add_up():
    plan = made.plan()
    assert list(shares(plan.chosen)) == list(TERMS)
    assert sum(shares(plan.chosen).values()) == pytest.approx(1)
    pairs = compare(plan.chosen, plan.alternatives[0])
    assert sum(b - a for a, b in pairs.values()) == pytest.approx(36.1 - 35.0)
    assert next(iter(compare(made.bare().chosen, plan.chosen))) == "compute"


def test_text_fits_80_columns():
    lines = why_text.reason_lines(explain(made.plan()))
    lines += sections.memory_lines(made.plan()) + sections.frontier_lines(made.plan())
    lines += timeline_text.timeline_lines(made.timeline(), 80)
    assert max(map(len, lines)) <= 80


def test_reach_follows_the_rank_map():
    group, layout = made.CLUSTER.uniform, made.config()
    placement = made.plan().chosen.placement
    assert reach_of(layout, placement, group, "tp").nodes == 1
    assert reach_of(layout, placement, group, "pp").nodes == 4
    spread = replace(placement, ranks=tuple(np.arange(32).reshape(8, 4).T.ravel().tolist()))
    assert reach_of(layout, spread, group, "tp").nodes == 4
    assert reach_of(layout, spread, group, "pp").nodes == 1


def test_reach_of_experts_is_over_their_own_mesh():
    layout = made.config(dp_replicate=4, tp=2, ep=4, etp=2)
    groups = reach_of(layout, made.plan().chosen.placement, made.CLUSTER.uniform, "ep").groups
    assert groups.shape == (8, 4)
    assert groups[0].tolist() == [0, 2, 4, 6]
    assert groups[1].tolist() == [1, 3, 5, 7]


@pytest.mark.parametrize(
    ("axis", "changes", "number"),
    [
        ("tp", {}, 32),
        ("pp", {}, 64),
        ("pp", {"vpp": 1, "schedule": "1f1b"}, 48),
        ("ep", {"dp_replicate": 4, "tp": 2, "ep": 4}, 96),
        ("cp", {"cp": 4, "tp": 2}, 32),
        ("cp", {"cp": 4, "tp": 2, "cp_method": "ulysses"}, 96),
        ("dp", {}, 0),
    ],
)
def test_who_talks_to_whom(axis, changes, number):
    layout = made.config(**changes)
    reach = reach_of(layout, made.plan().chosen.placement, made.CLUSTER.uniform, axis)
    pairs = talking_pairs(reach, layout)
    assert len(pairs) == number
    assert all(a != b for a, b in pairs)


def test_spans_cover_the_step_without_overlap():
    timeline = made.timeline()
    for rank in range(4):
        spans = spans_of(timeline, rank)
        for before, after in itertools.pairwise(spans):
            assert after.start >= before.end - 1e-12
        assert {"gather", "F", "B", "copy", "reduce", "update"} == {s.kind for s in spans}
        assert spans[-1].end <= timeline.step_s + 1e-12
        assert 0.5 < busy_share(timeline, rank) < 1


def test_the_text_timeline_is_the_simulated_one():
    timeline = made.timeline(4)
    lines = timeline_text.timeline_lines(timeline, 115)
    rows = [line[9:109] for line in lines if line.startswith("rank")]
    assert len(rows) == 4
    for rank, row in enumerate(rows):
        at = [(k + 0.5) * timeline.step_s / 100 for k in range(100)]
        spans = spans_of(timeline, rank)
        for glyph, moment in zip(row, at, strict=True):
            inside = next((s for s in spans if s.start + 0.03 < moment < s.end - 0.03), None)
            if inside is not None and inside.kind in "FB":
                assert glyph in (str(inside.micro_batch), "▒")
    assert rows[0].count("·") > 0


def test_a_long_step_is_shown_whole_and_at_its_ends():
    assert [title for title, _, _ in windows(made.timeline(64), 30)] == [
        "whole step",
        "start",
        "end",
    ]
    lines = timeline_text.timeline_lines(made.timeline(64), 80)
    assert sum(line.startswith("rank 0 ") for line in lines) == 3
    assert len(timeline_text.timeline_lines(made.timeline(), 20)[1]) <= 40


def test_memory_in_numbers():
    lines = sections.memory_lines(made.plan())
    row = next(line for line in lines if line.startswith("stage 3 ") and "█" not in line)
    assert row.split() == ["stage", "3", "5.0", "9.0", "27.0", "9.0", "0.5", "2.0", "52.5", "26.7"]


def test_a_searched_plan_is_explained_by_its_own_step():
    from planner.search import make_plan

    options = SearchOptions(pin={}, forbid={})
    plan = make_plan(facts.model(), facts.job(), facts.profile(), options)
    assert timeline_of(plan).step_s == pytest.approx(plan.chosen.cost.step_s)
    assert explain(plan).reasons
    own = why_not(plan, {"tp": (str(plan.chosen.config.tp),)})
    assert own.best.cost.step_s == pytest.approx(plan.chosen.cost.step_s)
    for tp in {"1", "2", "4"} - {str(plan.chosen.config.tp)}:
        answer = why_not(plan, {"tp": (tp,)})
        if answer.best is None:
            assert answer.message
        else:
            assert answer.best.config.tp == int(tp)
            assert answer.best.cost.step_s >= plan.chosen.cost.step_s
