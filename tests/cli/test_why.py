"""`why`, `why --not`, the parts of `show`, the split of `diff`: on plans made by hand."""

import json
import re

import pytest

from planner.space import SENTENCES
from profiler.codec import encode, replace
from profiler.errors import UserError
from tests import made


@pytest.fixture
def saved(tmp_path):
    """Write a plan; returns its name."""

    def save(plan, name="plan.json"):
        (tmp_path / name).write_text(encode(plan))
        return name

    return save


@pytest.fixture
def search(monkeypatch):
    """Answer searches from a function of the options; returns the options asked for."""
    asked = []

    def answer(found):
        def make_plan(model, job, profile, options):
            asked.append(options)
            if isinstance(found, UserError):
                raise found
            return made.plan(chosen=found, options=options)

        monkeypatch.setattr("planner.search.make_plan", make_plan)
        return asked

    return answer


def test_why_is_frozen_and_fits(meshwright, saved, golden):
    result = meshwright("why", saved(made.plan()))
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    golden("why.txt", result.out)


def test_why_of_a_bare_plan_says_less(meshwright, saved):
    result = meshwright("why", saved(made.bare()))
    assert result.code == 0
    assert "instead" not in result.out


def test_why_as_json(meshwright, saved):
    document = json.loads(meshwright("why", saved(made.plan()), "--json").out)
    assert document["kind"] == "why"
    first = document["reasons"][0]
    assert (first["axis"], first["value"]) == ("tp", "8")
    assert first["others"][0] == {
        "value": "4",
        "cost": pytest.approx(0.0257, abs=1e-4),
        "why": "",
    }
    assert set(document["limits"]) == {"memory", "time", "bubble", "link"}


def test_why_not_a_slower_layout(meshwright, saved, search, golden):
    asked = search(made.plan().alternatives[0])
    result = meshwright("why", saved(made.plan()), "--not", "tp=4,pp=4")
    assert (result.code, result.err) == (0, "")
    assert asked[0].pin == {"tp": ("4",), "pp": ("4",)}
    assert max(map(len, result.out.splitlines())) <= 80
    golden("why-not.txt", result.out)
    document = json.loads(
        meshwright("why", "plan.json", "--not", "tp=4", "--not", "pp=4", "--json").out
    )
    assert (document["kind"], document["outcome"]) == ("why-not", "slower")
    assert asked[1].pin == asked[0].pin
    assert document["terms"]["bubble"][1] > document["terms"]["bubble"][0]


def test_why_not_the_chosen_values(meshwright, saved, search):
    search(made.plan().chosen)
    result = meshwright("why", saved(made.plan()), "--not", "tp=8")
    assert result.code == 0
    assert result.out.startswith("The chosen layout has tp 8")


def test_why_not_a_faster_layout_outside_the_plans_search(meshwright, saved, search):
    asked = search(made.candidate(30.0, made.config(tp=4, dp_replicate=2), 60.0))
    plan = made.plan(
        options=replace(made.plan().options, pin={"tp": ("8",)}, forbid={"pp": ("4", "16")})
    )
    result = meshwright("why", saved(plan), "--not", "tp=4,pp=4")
    assert asked[0].pin == {"tp": ("4",), "pp": ("4",)}
    assert asked[0].forbid == {"pp": ("16",)}
    assert "Set aside: the plan's --pin tp=8, --forbid pp=4" in result.out
    assert "Faster by 14.3%" in result.out
    assert result.code == 0


def test_why_not_what_does_not_fit(meshwright, saved, search):
    search(
        UserError(
            "no layout of `llama3-70b` fits on 32 x h100",
            details=("closest: tp1 pp8 dp4 mbs1 1f1b needs 93.1 GiB on its fullest device",),
            hint="take more devices",
            kind="infeasible",
        )
    )
    result = meshwright("why", saved(made.plan()), "--not", "tp=1,pp=8,mbs=1")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("No layout with tp 1, pp 8, mbs 1: no layout of `llama3-70b` fits")
    assert "closest: tp1 pp8 dp4 mbs1 1f1b needs 93.1 GiB" in result.out
    assert "such layouts break no rule, and none fits" in result.out
    document = json.loads(meshwright("why", "plan.json", "--not", "tp=1", "--json").out)
    assert document["outcome"] == "impossible"
    assert document["num_valid"] > 0


def test_why_not_what_a_rule_forbids(meshwright, saved, search):
    search(
        UserError(
            "no layout of `llama3-70b` on 32 x h100 is possible",
            details=(f"405 layouts: {SENTENCES['kv-heads-tp']} (kv-heads-tp)",),
            kind="infeasible",
        )
    )
    result = meshwright("why", saved(made.plan()), "--not", "tp=16")
    assert result.code == 0
    assert "405  kv-heads-tp" in result.out
    assert "405 layouts" not in result.out  # which would say it twice
    assert SENTENCES["kv-heads-tp"] in result.out


def test_why_not_counts_by_rule_where_the_search_names_none(meshwright, saved, search):
    search(UserError("no layout of `llama3-70b` on 32 x h100 is possible", kind="infeasible"))
    document = json.loads(meshwright("why", saved(made.plan()), "--not", "tp=16", "--json").out)
    assert document["rejected"].keys() == {"kv-heads-tp"}
    assert document["num_valid"] == 0


def test_why_not_a_degree_that_does_not_divide(meshwright, saved, search):
    said = "tp 3 does not divide the 32 devices"
    search(UserError("no layout is possible", details=(said,), kind="infeasible"))
    result = meshwright("why", saved(made.plan()), "--not", "tp=3")
    assert result.out.splitlines()[-1].strip() == said


def test_wrong_axes_are_the_errors_of_plan(meshwright, saved):
    name = saved(made.plan())
    result = meshwright("why", name, "--not", "tp")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: `--not tp` is not of the form")
    result = meshwright("why", name, "--not", "xx=2")
    pinned = meshwright("plan", "-m", "llama3-8b", "-c", "h100-1x8", "--pin", "xx=2")
    assert (result.code, result.err) == (1, pinned.err.replace("--pin", "--not"))


def test_a_plan_without_an_estimate_has_no_reasons(meshwright, saved, search):
    name = saved(made.plan(chosen=replace(made.plan().chosen, estimate=None)))
    for command in (("why",), ("show", "--timeline"), ("show", "--report", "x.html")):
        result = meshwright(*command, name)
        assert result.code == 1
        assert "the cost model does not cover it" in result.err
    search(made.plan().alternatives[0])
    answered = meshwright("why", name, "--not", "tp=4")
    assert answered.code == 0
    assert "tp4 pp4 dp2" in answered.out


def test_parts_of_show_are_frozen_and_fit(meshwright, saved, golden, monkeypatch):
    monkeypatch.setattr("planner.explain.timeline_of", lambda plan: made.timeline())
    result = meshwright("show", saved(made.plan()), "--timeline", "--memory", "--pareto")
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    golden("show-parts.txt", result.out)
    monkeypatch.setenv("COLUMNS", "120")
    wide = meshwright("show", "plan.json", "--timeline").out
    assert 110 < max(map(len, wide.splitlines())) <= 120


def test_show_json_is_the_plan_whatever_part_is_asked_for(meshwright, saved):
    name = saved(made.plan())
    assert meshwright("show", name, "--memory", "--json").out == encode(made.plan())


def test_diff_splits_time_and_memory(meshwright, saved, golden):
    plan = made.plan()
    other = made.plan(chosen=plan.alternatives[0])
    result = meshwright("diff", saved(plan), saved(other, "other.json"))
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    golden("diff.txt", re.sub(r"p-\w{12}", "p-ID", result.out))
    document = json.loads(meshwright("diff", "plan.json", "other.json", "--json").out)
    assert document["terms"]["bubble"][1] > document["terms"]["bubble"][0]
    assert document["memory"]["weight"] == [5 * made.GIB, 5 * made.GIB]
    assert meshwright("diff", "plan.json", "other.json", "--exit-code").code == 4
    saved(made.bare(), "bare.json")
    bare = json.loads(meshwright("diff", "plan.json", "bare.json", "--json").out)
    assert bare["terms"] == {}


def test_help_is_frozen(meshwright, golden):
    result = meshwright("why", "--help")
    assert max(map(len, result.out.splitlines())) <= 80
    golden("help-why.txt", result.out)
