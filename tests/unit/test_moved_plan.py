"""Where the experts of a run were, from its file, and what a step takes there."""

import json

import numpy as np
import pytest

from launch.checkpoints import STATE, checkpoint_root, complete_folder
from launch.expert_looks import (
    ExpertLook,
    append,
    cut,
    places_of_run,
    read_looks,
    stays_of,
)
from launch.observed import Observed, Split, StepObservation
from launch.records import LOOKS_NAME
from launch.verify import verify
from planner.config import ExpertSlots
from planner.expert_placement import parts_of
from planner.given import LayoutFile, plan_for
from planner.holdings import contiguous_slots
from planner.moved_plan import Stay, as_moved, as_run, exchanges_of
from planner.plan import Plan
from planner.routed_plan import with_layout
from profiler.analytic import analytic_profile
from profiler.codec import replace, to_plain
from profiler.errors import UserError
from profiler.routing.trace import RoutingCounts

from . import facts
from .layouts import MODELS

MOE = MODELS[2]
"""Two MoE layers of four experts."""
EVEN = (contiguous_slots(4, 2),) * 2
MOVED = (ExpertSlots(slots=((0, 3), (1, 2))), EVEN[1])
SKEWED = ((7000, 1000, 1000, 1000), (4000, 4000, 1000, 1000))


def moe_plan() -> Plan:
    job = facts.job()
    profile = analytic_profile(MOE, job, facts.cluster(1, 2))
    return plan_for(MOE, job, profile, LayoutFile(dp_replicate=2, ep=2), "layout")


PLAN = moe_plan()


def observed(first: int, end: int, step_s: float = 1.0) -> Observed:
    split = Split(compute_s=step_s, p2p_s=0.0, collective_s=0.0, idle_s=0.0)
    return Observed(
        plan_id=PLAN.id, state="complete", torch="2", device="cpu", num_warmup=0, losses=(),
        steps=tuple(
            StepObservation(step=step, step_s=step_s, split=split) for step in range(first, end)
        ),
        ranks=(), first_step=first, steps_done=end,
    )  # fmt: skip


def test_looks_are_read_as_written_and_cut_where_a_run_goes_on(tmp_path):
    looks = (
        ExpertLook(step=4, layers=MOVED, counts=SKEWED), ExpertLook(step=8, counts=SKEWED),
        ExpertLook(step=12, layers=EVEN, counts=SKEWED),
    )  # fmt: skip
    assert read_looks(tmp_path) == ()
    cut(tmp_path, 3)
    assert not (tmp_path / LOOKS_NAME).exists()
    for look in looks:
        append(tmp_path, look)
    assert read_looks(tmp_path) == looks
    with (tmp_path / LOOKS_NAME).open("a") as out:
        out.write('{"step": 16, "lay')  # torn
    assert read_looks(tmp_path) == looks
    cut(tmp_path, 12)
    assert read_looks(tmp_path) == looks[:2]
    (tmp_path / LOOKS_NAME).write_text('{"step": -1}\n')
    with pytest.raises(UserError, match="step"):
        read_looks(tmp_path)


def test_the_last_look_that_moved_says_where_experts_are(tmp_path):
    assert places_of_run(PLAN, tmp_path) == (EVEN, None)
    append(tmp_path, ExpertLook(step=4, layers=MOVED, counts=((1,) * 4,) * 2))
    append(tmp_path, ExpertLook(step=8, counts=SKEWED))
    places, counts = places_of_run(PLAN, tmp_path)
    assert places == MOVED
    assert counts.tolist() == [list(row) for row in SKEWED]


def test_where_no_look_says_a_checkpoint_of_the_layout_does(tmp_path):
    folder = complete_folder(checkpoint_root(tmp_path), 5)
    folder.mkdir(parents=True)
    config = PLAN.chosen.config
    state = {"step": 5, "layout": f"{config.label} {config.schedule}", "experts": to_plain(MOVED)}
    (folder / STATE).write_text(json.dumps(state))
    assert places_of_run(PLAN, tmp_path) == (MOVED, None)
    (folder / STATE).write_text(json.dumps(state | {"layout": "another"}))
    assert places_of_run(PLAN, tmp_path) == (EVEN, None)


def test_a_run_is_parted_at_its_looks(tmp_path):
    first, second = SKEWED, SKEWED[::-1]
    append(tmp_path, ExpertLook(step=14, layers=MOVED, counts=first))
    append(tmp_path, ExpertLook(step=18, counts=second))
    found = stays_of(PLAN, tmp_path, observed(12, 25))
    assert [(stay.experts, stay.num_steps) for stay in found] == [
        (EVEN, 2), (MOVED, 4), (MOVED, 7),
    ]  # fmt: skip
    assert [stay.counts.tolist()[0][0] for stay in found] == [7000, 4000, 4000]


def test_a_run_that_began_elsewhere_is_no_run_of_the_plans_places(tmp_path):
    append(tmp_path, ExpertLook(step=12, layers=MOVED))
    append(tmp_path, ExpertLook(step=16, counts=SKEWED))
    found = stays_of(PLAN, tmp_path, observed(12, 20))
    assert [(stay.experts, stay.num_steps) for stay in found] == [(MOVED, 4), (MOVED, 4)]


def test_where_nothing_moved_the_plan_is_what_ran(tmp_path):
    append(tmp_path, ExpertLook(step=4, counts=SKEWED))
    assert stays_of(PLAN, tmp_path, observed(0, 9)) == ()
    assert as_run(PLAN, ()) is None


def test_drawn_exchanges_have_the_counts_shares():
    counts = np.array(SKEWED) * 100
    drawn = exchanges_of(PLAN, counts)
    choices = PLAN.job.seq_len * 2 * MOE.num_experts_per_token
    assert (drawn.windows.sum(axis=2) == choices).all()
    total = drawn.counts()
    assert total / total.sum(1, keepdims=True) == pytest.approx(
        counts / counts.sum(1, keepdims=True), abs=0.03
    )
    assert (exchanges_of(PLAN, counts).windows == drawn.windows).all()
    empty = exchanges_of(PLAN, np.zeros((2, 4), np.int64))
    assert empty.counts().sum() == choices * 4 * 2


def test_a_moved_plan_has_its_load_and_its_own_id():
    found = as_moved(PLAN, MOVED, np.array(SKEWED) * 100)
    assert (found.id, found.chosen.placement.experts) == (PLAN.id, MOVED)
    (load,) = found.profile.expert_loads
    counts = np.array(SKEWED)
    loads = [row @ parts_of(e, 4) for row, e in zip(counts, MOVED, strict=True)]
    mean = np.mean([each.max() / each.mean() for each in loads])
    assert load.imbalance == pytest.approx(mean, rel=0.05)
    assert found.chosen.cost.step_s > PLAN.chosen.cost.step_s
    unknown = as_moved(PLAN, MOVED, None)
    assert (unknown.profile, unknown.chosen.placement.experts) == (PLAN.profile, MOVED)
    assert unknown.chosen.estimate == PLAN.chosen.estimate


def test_a_step_is_priced_for_the_mean_of_the_stays():
    """What a plan says that knew the load of each."""
    counts = np.array(SKEWED) * 100
    stays = [Stay(experts=e, counts=counts, num_steps=n) for e, n in ((EVEN, 3), (MOVED, 1))]
    found = as_run(PLAN, stays)
    assert found is not None
    single = [as_run(PLAN, [stay]) for stay in stays]
    loads = [each.profile.expert_loads[0].imbalance for each in single]
    assert loads[0] > loads[1] > 1
    assert found.profile.expert_loads[0].imbalance == pytest.approx((3 * loads[0] + loads[1]) / 4)
    routing = exchanges_of(PLAN, counts)
    profile = with_layout(PLAN.profile, routing, PLAN.job, MOVED)
    knew = plan_for(
        MOE, PLAN.job, profile, LayoutFile(dp_replicate=2, ep=2, experts=MOVED), "layout"
    )
    assert single[1].chosen == knew.chosen
    steps = [each.chosen.cost.step_s for each in (PLAN, single[1], found, single[0])]
    assert steps == sorted(set(steps))
    level = RoutingCounts(windows=np.full((4, 2, 4), 100))
    at_plan = with_layout(PLAN.profile, level, PLAN.job, EVEN)
    assert at_plan.expert_loads[0].imbalance == 1


def test_verify_compares_with_the_places_of_the_run():
    counts = np.array(SKEWED) * 100
    priced = as_run(PLAN, [Stay(experts=MOVED, counts=counts, num_steps=8)])
    seen = observed(0, 8, priced.chosen.cost.step_s)
    verdict = verify(PLAN, seen, 0.1, priced)
    assert (verdict.experts, verdict.rows[0].error) == ("run", 0.0)
    plain = verify(PLAN, seen, 0.1)
    assert (plain.experts, plain.rows[0].error < 0) == ("planned", True)


def test_what_the_cost_model_does_not_reach_is_not_priced():
    stay = Stay(experts=MOVED, counts=np.array(SKEWED), num_steps=1)
    chosen = replace(PLAN.chosen, estimate=None)
    assert as_run(replace(PLAN, chosen=chosen), [stay]) is None
    assert as_run(PLAN, [replace(stay, num_steps=0)]) is None
