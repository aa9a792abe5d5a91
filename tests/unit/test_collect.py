"""From rank files to observed.json, by hand-made records whose split is known."""

import json

import pytest

from launch.collect import collect, read_rank_file
from launch.observed import Observed
from launch.verify import verify
from planner.plan import SearchOptions
from planner.search import make_plan
from profiler.codec import encode, replace
from profiler.errors import UserError
from tests.unit import facts

MEMORY = {
    "weight_bytes": 10, "grad_bytes": 10, "optimizer_bytes": 20, "buffer_bytes": 0,
    "activation_and_workspace_bytes": 5, "peak_bytes": 45, "definition": "by hand",
}  # fmt: skip


def plan_of(**pins):
    options = SearchOptions(pin={k: (str(v),) for k, v in pins.items()}, forbid={}, top=0)
    return make_plan(facts.model(), facts.job(), facts.profile(1, 2), options)


def header(rank):
    return {
        "rank": rank, "coordinate": {"pp": rank}, "host": "h", "device": "cpu", "torch": "2",
        "memory": MEMORY,
    }  # fmt: skip


def step(i, start, end, actions, collectives=(), loss=None):
    return {
        "step": i, "warmup": i == 0, "loss": loss, "start": start, "end": end,
        "actions": list(actions), "collectives": list(collectives),
    }  # fmt: skip


def write(folder, ranks):
    (folder / "ranks").mkdir()
    for rank, steps in enumerate(ranks):
        lines = [json.dumps(x) for x in (header(rank), *steps)]
        (folder / "ranks" / f"rank-{rank:05d}.jsonl").write_text("\n".join(lines) + "\n")


def test_pipeline_waits_are_cut_when_the_message_was_sent(tmp_path):
    plan = plan_of(pp=2, mbs=8)
    first = [step(0, 0, 10, []), step(1, 10, 17, [["F", 0, 0, 10, 12], ["B", 0, 0, 16, 17]])]
    last = [
        step(0, 0, 10, [], loss=2.0),
        step(1, 10, 15.5, [["F", 1, 0, 12.5, 14], ["B", 1, 0, 14, 15]], loss=1.0),
    ]
    write(tmp_path, [first, last])
    observed = collect(plan, tmp_path, "complete")
    assert observed.losses == (2.0, 1.0)
    assert [s.step_s for s in observed.steps] == [7.0]
    (stage_0,), (stage_1,) = (r.steps for r in observed.ranks)
    # Stage 0 has its forward done at 12; its gradient is sent at 15 and used at 16.
    assert (stage_0.compute_s, stage_0.idle_s, stage_0.p2p_s) == (3.0, 3.0, 1.0)
    # Stage 1 waits from 10: sent at 12, there at 12.5; half a second follows its backward.
    assert (stage_1.compute_s, stage_1.idle_s, stage_1.p2p_s) == (3.0, 2.0, 0.5)
    assert observed.steps[0].split.idle_s == 2.5


def test_reduction_waits_are_cut_when_the_last_replica_entered(tmp_path):
    plan = plan_of(dp=2, mbs=4)
    early = [
        step(0, 0, 10, []),
        step(1, 10, 16, [["F", 0, 0, 10, 11]], [["dp_replicate", 0, 11, 11, 15]]),
    ]
    late = [
        step(0, 0, 10, []),
        step(1, 10, 16, [["F", 0, 0, 10, 14]], [["dp_replicate", 0, 14, 14, 15]]),
    ]
    write(tmp_path, [early, late])
    (a,), (b,) = (r.steps for r in collect(plan, tmp_path, "complete").ranks)
    assert (a.idle_s, a.collective_s, a.compute_s) == (3.0, 1.0, 2.0)
    assert (b.idle_s, b.collective_s, b.compute_s) == (0.0, 1.0, 5.0)


def test_tensor_parallel_waits_are_collective_and_unawaited_ones_cost_nothing(tmp_path):
    plan = plan_of(tp=2, mbs=8)
    rows = [["tp", 0, 10, 10.5, 12], ["tp", 1, 12, None, None]]
    steps = [step(0, 0, 10, []), step(1, 10, 13, [["F", 0, 0, 10, 13]], rows)]
    write(tmp_path, [steps, steps])
    (a,), _ = (r.steps for r in collect(plan, tmp_path, "complete").ranks)
    assert (a.collective_s, a.compute_s, a.idle_s) == (1.5, 1.5, 0.0)


def test_only_steps_of_all_ranks_count_and_a_torn_line_is_dropped(tmp_path):
    plan = plan_of(pp=2, mbs=8)
    steps = [step(i, 10 * i, 10 * i + 10, []) for i in range(4)]
    write(tmp_path, [steps, steps[:3]])
    torn = tmp_path / "ranks" / "rank-00001.jsonl"
    torn.write_text(torn.read_text() + '{"step": 3, "sta')
    assert len(read_rank_file(torn)[1]) == 3
    observed = collect(plan, tmp_path, "interrupted")
    assert (observed.state, [s.step for s in observed.steps]) == ("interrupted", [1, 2])


def test_nothing_to_collect(tmp_path):
    plan = plan_of(pp=2)
    assert collect(plan, tmp_path, "failed") is None
    write(tmp_path, [[], []])
    assert collect(plan, tmp_path, "failed") is None


def test_records_of_another_form_are_a_user_error(tmp_path):
    write(tmp_path, [[{"step": 0}], [{"step": 0}]])
    with pytest.raises(UserError, match="records cannot be read"):
        collect(plan_of(pp=2), tmp_path, "complete")


def observed_like(plan, factor=1.0):
    """A run that took `factor` times what was predicted."""
    e = plan.chosen.estimate
    split = {n: getattr(e, n) * factor for n in ("compute_s", "p2p_s", "collective_s", "idle_s")}
    memory = MEMORY | {"peak_bytes": round(e.peak_bytes * factor)}
    run = {
        "plan_id": plan.id, "state": "complete", "torch": "2", "device": "cpu", "num_warmup": 1,
        "losses": [1.0, 0.9],
        "steps": [{"step": i, "step_s": e.step_s * factor, "split": split} for i in (1, 2)],
        "ranks": [
            {"rank": r, "coordinate": {}, "host": "h", "memory": memory, "steps": []}
            for r in range(2)
        ],
    }  # fmt: skip
    from profiler.codec import build

    return build(Observed, run, "made")


def test_verify_passes_and_fails_by_the_tolerance():
    plan = plan_of(pp=2)
    exact = verify(plan, observed_like(plan), 0.0)
    assert exact.within
    assert {r.name for r in exact.rows} == {
        "step", "compute", "p2p", "collective", "idle", "peak memory",
    }  # fmt: skip
    slower = verify(plan, observed_like(plan, 1.25), 0.1)
    step_row = slower.rows[0]
    assert (step_row.name, step_row.within) == ("step", False)
    assert step_row.error == pytest.approx(-0.2)
    assert not slower.within
    assert verify(plan, observed_like(plan, 1.25), 0.21).within


def test_component_errors_are_shares_of_the_step():
    plan = plan_of(pp=2)
    rows = verify(plan, observed_like(plan, 1.25), 0.1).rows
    components = [r for r in rows if r.name in ("compute", "p2p", "collective", "idle")]
    assert sum(r.error for r in components) == pytest.approx(rows[0].error)


def test_verify_refuses_another_plans_run_and_an_empty_one():
    plan = plan_of(pp=2)
    run = observed_like(plan)
    with pytest.raises(UserError, match="the run is of plan") as caught:
        verify(plan, replace(run, plan_id="p-other"), 0.1)
    assert caught.value.kind == "stale"
    with pytest.raises(UserError, match="before its first timed step"):
        verify(plan, replace(run, steps=()), 0.1)


def test_verify_command(tmp_path, capsys):
    from launch.cli import app

    plan = plan_of(pp=2)
    (tmp_path / "plan.json").write_text(encode(plan))
    for factor, code in ((1.0, 0), (1.5, 4)):
        (tmp_path / "observed.json").write_text(encode(observed_like(plan, factor)))
        args = ["verify", str(tmp_path / "plan.json"), str(tmp_path / "observed.json")]
        assert app.run(args) == code
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 80
        assert app.run([*args, "--json"]) == code
        assert json.loads(capsys.readouterr().out)["within"] == (code == 0)
