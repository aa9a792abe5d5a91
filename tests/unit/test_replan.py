"""What going on costs, by hand; what is kept, what is dropped, what is proposed."""

import pytest

from launch.replan import Changes, plan_again
from planner.plan import Plan, SearchOptions, plan_id
from planner.replan import Replan, make_replan
from planner.search import make_plan
from planner.survivors import survivors
from planner.ways import ASSUMED_RESTART_S, Situation
from profiler.codec import replace
from profiler.errors import UserError

from . import facts

NODES, EACH = 4, 2


@pytest.fixture(scope="module")
def old() -> Plan:
    """Two stages of four replicas on four nodes, planned by measurements."""
    return planned(pp=2)


def planned(num_nodes: int = NODES, **pins: int) -> Plan:
    options = SearchOptions(pin={k: (str(v),) for k, v in pins.items()}, forbid={}, top=1)
    return make_plan(facts.model(), facts.job(), facts.profile(num_nodes, EACH), options)


def again(plan: Plan, changes: Changes, situation: Situation | None = None) -> tuple[Plan, Replan]:
    new = plan_again(plan, changes, lambda _: None)
    left = survivors(plan.cluster, new.cluster, changes.lost)
    return new, make_replan(plan, new, left, situation or Situation())


def test_the_same_question_gives_the_same_plan_and_nothing_to_do(old):
    new, found = again(old, Changes(cluster=old.cluster))
    assert new == old
    assert (found.verdict, found.moves.flows) == ("keep", ())
    assert found.moves.held_bytes == found.moves.need_bytes
    keep = next(way for way in found.ways if way.name == "keep")
    assert (keep.lost_s, keep.step_s) == (0.0, old.chosen.cost.step_s)
    assert found.pays_after_steps is None
    assert found.wait_s_per_step is None


def test_a_node_in_the_place_of_another_has_all_to_fetch(old):
    """Nodes 2 and 3 hold the second stage: one of them has what the other lost."""
    new, found = again(old, Changes(cluster=old.cluster, lost=(3,)))
    assert new == old
    assert found.verdict == "restart"
    assert found.moves.lost_bytes == 0
    assert found.moves.fetched_bytes == found.moves.need_of_nodes()[3]
    assert {flow.source for flow in found.moves.flows} == {2}
    assert {way.name for way in found.ways} == {"checkpoint", "survivors"}


def test_ranks_that_are_mapped_anew_move_as_a_whole(old):
    """The first and the last node swap: all that these hold crosses the wire."""
    ranks = (6, 7, 2, 3, 4, 5, 0, 1)
    mapped = replace(old.chosen, placement=replace(old.chosen.placement, ranks=ranks))
    new = replace(old, chosen=mapped)
    found = make_replan(old, new, survivors(old.cluster, new.cluster, ()), Situation())
    need = found.moves.need_of_nodes()
    assert found.verdict == "restart"
    assert {flow.target for flow in found.moves.flows} == {0, 3}
    assert all(flow.source != flow.target for flow in found.moves.flows)
    assert found.moves.fetched_bytes == need[0] + need[3]


def test_the_time_that_is_lost_adds_up(old):
    known = Situation(
        steps_done=57, checkpoint_step=50, total_steps=100, restart_s=30.0,
        step_s=2 * old.chosen.cost.step_s, startup_s=9.0, read_bytes_per_s=1e6,
    )  # fmt: skip
    new, found = again(old, Changes(lost=(1, 2)), known)
    step_s = 2 * new.chosen.cost.step_s  # steps took twice their prediction
    ways = {way.name: way for way in found.ways}
    first = ways["checkpoint"]
    assert found.ways[0] == first
    assert first.load_s == pytest.approx(found.moves.need_bytes / 1e6)
    assert (first.restart_s, first.step_s) == (30.0, step_s)
    assert first.lost_s == pytest.approx(30.0 + first.load_s + 7 * step_s)
    assert ways["beginning"].lost_s == pytest.approx(30.0 + 57 * step_s)
    assert found.steps_left == 43
    assert found.wait_s_per_step == pytest.approx(step_s - found.old_step_s)
    assert found.old_step_s == known.step_s
    sources = {name: figure.source for name, figure in found.facts.items()}
    assert sources == {
        "restart": "given", "step": "predicted", "load": "given", "again": "measured",
    }  # fmt: skip


def test_without_a_checkpoint_training_begins_anew(old):
    _, found = again(old, Changes(lost=(0, 1)), Situation(steps_done=5))
    assert [way.name for way in found.ways if way.name != "fewer_replicas"] == ["beginning"]
    restart = found.facts["restart"]
    assert (restart.value, restart.source) == (ASSUMED_RESTART_S, "assumed")


def test_a_checkpoint_every_so_often_means_half_of_it_again(old):
    _, found = again(old, Changes(lost=(0, 1)), Situation(checkpoint_every=30, startup_s=4.0))
    assert found.facts["again"].value == 15
    assert (found.facts["restart"].value, found.facts["restart"].source) == (4.0, "measured")


def test_the_old_shape_with_fewer_replicas_is_compared():
    plan = planned(pp=1, tp=2)
    new, found = again(plan, Changes(lost=(0, 1), options={"pin": {"pp": ("2",)}}))
    fewer = next(way for way in found.ways if way.name == "fewer_replicas")
    assert fewer.layout.startswith("tp2 pp1 dp2")
    again_pinned = planned(2, pp=1, tp=2, mbs=plan.chosen.config.micro_batch)
    assert fewer.step_s == pytest.approx(again_pinned.chosen.cost.step_s, rel=1e-9)
    assert new.chosen.config.pp == 2


def test_more_nodes_may_pay(old):
    new, found = again(old, Changes(cluster=facts.cluster(8, EACH)))
    assert new.chosen.config.num_devices == 16
    ways = {way.name: way for way in found.ways}
    assert found.nodes == (0, 1, 2, 3, None, None, None, None)
    assert ways["checkpoint"].again_s == 0.0  # a checkpoint first, then the restart
    gain = ways["keep"].step_s - ways["checkpoint"].step_s
    expected = ways["checkpoint"].lost_s / gain if gain > 0 else None
    assert found.pays_after_steps == (pytest.approx(expected) if expected else None)
    assert "beginning" not in ways


def test_what_the_command_line_says_wins_and_what_cannot_be_is_dropped():
    plan = planned(pp=2)
    plan = replace(plan, options=replace(plan.options, devices=(4, 8)))
    plan = replace(plan, id=plan_id(plan))
    notes: list[str] = []
    new = plan_again(plan, Changes(lost=(0,), job={"global_batch": 12}), notes.append)
    assert (new.job.global_batch, new.options.devices) == (12, (4,))
    assert new.options.pin == plan.options.pin
    assert len(notes) == 1
    other = plan_again(plan, Changes(lost=(0, 1), options={"pin": {"pp": ("4",)}}), notes.append)
    assert other.chosen.config.pp == 4


def test_a_batch_that_does_not_divide_is_said_with_what_would(old):
    """Six devices in two stages of three replicas: 8 sequences do not divide by 3."""
    with pytest.raises(UserError, match="is possible") as caught:
        plan_again(old, Changes(lost=(0,), options={"pin": {"pp": ("1",), "tp": ("1",)}}), print)
    assert caught.value.kind == "infeasible"
    proposed = "\n".join(caught.value.details)
    assert "`--devices 4`, which leaves 2 idle" in proposed
    assert "`--global-batch 6`" in proposed
    assert "`--global-batch 12`" in proposed


def test_nothing_said_of_what_is_there_is_an_error(old):
    with pytest.raises(UserError, match="nothing says what is there now"):
        plan_again(old, Changes(), print)
    with pytest.raises(UserError, match="measured on nodes"):
        plan_again(old, Changes(cluster=facts.cluster(2, 4)), print)


def test_a_layout_without_a_prediction_has_moves_and_no_times(old):
    chosen = replace(old.chosen, estimate=None)
    left = survivors(old.cluster, old.cluster, (1,))
    plan = replace(old, chosen=chosen)
    found = make_replan(plan, plan, left, Situation(checkpoint_every=4))
    assert found.moves.need_bytes > 0
    assert (found.ways, found.new_step_s) == ((), None)


def test_another_batch_is_another_training_and_another_model_is_refused(old):
    _, found = again(old, Changes(cluster=old.cluster, job={"global_batch": 16}))
    assert found.verdict == "restart"
    with pytest.raises(UserError, match="another model"):
        plan_again(old, Changes(lost=(0, 1), model=facts.model(num_layers=5)), print)
    renamed = Changes(cluster=old.cluster, model=facts.model(name="the same"))
    assert again(old, renamed)[1].verdict == "keep"
