"""Comparison of free choices with published layouts, and the page of planning's speed."""

import dataclasses
from types import SimpleNamespace

import pytest

from launch.published.runs import run_of
from planner.axes import Axes, Coverage
from planner.config import ParallelConfig
from profiler.codec import replace
from tests.accuracy import bench
from tests.accuracy.bench_page import Answer as Planned
from tests.accuracy.bench_page import Bar, Case, Command, SimulatorRow, page, slope
from tests.accuracy.free_choice_job import (
    NOTHING,
    SEEN,
    SOFTWARE,
    SPACE,
    answer,
    differing,
    jobs_of,
    published_of,
    refusals,
    seen_values,
    unseen,
    unusual_axes,
)
from tests.accuracy.free_choice_page import assumptions, quantiles, saved
from tests.accuracy.free_choice_page import page as choice_page
from tests.unit.published import PLAIN

ONE = ParallelConfig(
    pp=2, dp_replicate=2, tp=2, micro_batch=2, recompute="none", schedule="1f1b"
)  # fmt: skip


def runs(*changes):
    return [run_of({**PLAIN, **change}) for change in changes]


def test_a_job_is_all_but_the_layout():
    same = runs({}, {"tp": "4"}, {"mbs": "1", "step_s": "1.2"})
    other = runs({"gbs": "128"}, {"framework": "nanotron"}, {"n_gpus": "16"})
    jobs = jobs_of([*same, *other])
    assert [len(job.runs) for job in jobs] == [3, 1, 1, 1]
    assert jobs[0].whole_nodes


def test_a_repeated_layout_counts_once_by_its_fastest_run():
    (job,) = jobs_of(runs({"step_s": "1.5"}, {"step_s": "1.1"}, {"tp": "4"}))
    published = published_of(job)
    assert len(published) == 2
    assert published[0].measured_s == 1.1
    assert sum(published[0].terms.values()) == pytest.approx(published[0].step_s)


def test_differing_names_axes():
    assert differing(ONE, ONE) == ()
    other = replace(ONE, tp=4, dp_replicate=1, micro_batch=4, recompute="full")
    assert differing(ONE, other) == ("tp", "mbs", "recompute")


def test_refusals_are_rules_then_unusual_values_then_memory():
    (job,) = jobs_of(runs({}))
    config = job.run.config
    assert refusals(job, config) == ()
    assert refusals(job, replace(config, micro_batch=3)) == ("batch",)
    assert refusals(job, replace(config, offload="activations")) == ("unusual offload",)
    small = run_of({**PLAIN, "layers": "80", "hidden": "8192", "heads": "64"})
    assert refusals(jobs_of([small])[0], small.run.config) == ("memory",)


def test_unusual_axes_are_those_the_search_leaves_out():
    run = runs({})[0].run
    axes = Axes(run.model, run.job, NOTHING, Coverage(), 8)
    assert unusual_axes(axes, ONE, 8) == []
    gpipe = replace(ONE, schedule="gpipe", micro_batch=5)
    assert unusual_axes(axes, gpipe, 8) == ["mbs", "vpp"]


def test_values_that_runs_have():
    seen = seen_values(runs({}, {"tp": "4"}))["megatron"]
    assert seen["tp"] == {"2", "4"}
    other = replace(ONE, tp=8, pp=1, dp_replicate=1, recompute="full")
    assert unseen(other, seen) == ["tp", "pp", "recompute full"]
    context = replace(ONE, cp=2, dp_replicate=1, cp_method="ulysses")
    assert "cp_method ulysses" in unseen(context, seen)


def test_the_choice_is_no_slower_than_a_layout_it_may_take():
    given = runs({}, {"tp": "4", "step_s": "1.7"})
    (job,) = jobs_of(given)
    found = answer(job, seen_values(given)["megatron"])
    assert set(found.chosen) == {SPACE, SOFTWARE, SEEN}
    steps = [found.chosen[name].cost.step_s for name in (SPACE, SOFTWARE, SEEN)]
    assert steps == sorted(steps)
    assert steps[-1] <= min(p.step_s for p in found.published) * (1 + 1e-9)
    gained = saved(found, found.chosen[SEEN])
    assert sum(gained.values()) == pytest.approx(1 - steps[-1] / found.fastest.step_s)
    text = choice_page([found])
    assert "2 rows are 1 jobs with 2 layouts" in text


def test_doubtful_choices_are_marked():
    (job,) = jobs_of(runs({"seq_len": "65536"}))
    config = replace(ONE, cp=2, dp_replicate=1, pp=2, dp_shard=1)
    cost = SimpleNamespace(step_s=1.0, terms={"context": 0.0, "reduction": 0.1})
    choice = SimpleNamespace(config=config, cost=cost)
    marks = assumptions(SimpleNamespace(job=job), choice)
    assert marks == ["context parallel at no cost", "over 32,768 tokens in a micro-batch"]


def test_quantiles_of_nothing():
    assert quantiles([]) == [""] * 5
    assert quantiles([0.1])[2] == "+10.0%"


def planned(seconds, considered):
    return Planned(
        seconds=seconds, screening_s=seconds / 2, considered=considered, screened=considered // 2,
        simulated=7, gap=0.125, layout="tp8 pp1 dp1 mbs1 1f1b", peak_bytes=2**30,
        parts={"memory": 0.5, "the rest": 0.1},
    )  # fmt: skip


def test_bench_page_says_which_bars_are_kept():
    case = Case("gpt", "h100-8x8", 64, 2048, Bar(seconds=5.0, rate=1e6, bytes=2**30))
    text = page(
        where="here",
        cases=[(case, planned(2.0, 3_000_000), Command(seconds=6.0, cpu_s=4.0, peak_bytes=2**29))],
        growth=[(case, planned(1.0, 1000)), (case, planned(4.0, 4000))],
        simulator=[SimulatorRow(label="1f1b", first_s=0.1, again_s=0.01, one_of_many_s=0.001)],
    )
    assert "5 s: MISSED" in text
    assert "1 GiB: kept" in text
    assert "3.00 M, bar 1 M: kept" in text
    assert "| 1f1b | 100.00 | 10.00 | 1.00 |" in text
    assert "4.0 times the layouts take 4.0 times the screening." in text


def test_slope_compares_the_ends():
    case = Case("gpt", "h100-8x8", 64, 2048)
    growth = [(case, planned(s, n)) for s, n in ((1.0, 100), (9.0, 150), (3.0, 200))]
    assert slope(growth) == "2.0 times the layouts take 3.0 times the screening."


def test_timers_leave_out_the_parts_inside():
    timers = bench.Timers()
    inner = timers.around("inner", lambda: sum(range(200_000)))
    outer = timers.around("outer", lambda: [inner(), inner()])
    outer()
    assert timers.whole["outer"] >= timers.whole["inner"]
    assert timers.own["outer"] + timers.own["inner"] == pytest.approx(timers.whole["outer"])
    each = timers.around("values", lambda: iter((1, 2, 3)))
    assert list(each()) == [1, 2, 3]
    assert "values" in timers.own


def test_timed_parts_are_there():
    timers = bench.Timers()
    case = dataclasses.replace(bench.CASES[0], model="llama3-8b", cluster="h100-1x8", batch=16)
    with bench.timed_parts(timers):
        pass
    found = bench.answer_here(case)
    assert found.considered > found.screened > found.simulated > 0
    assert {"enumeration", "memory", "preparing", "the rest"} <= set(found.parts)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
