"""From rank files to observed.json, by hand-made records whose split is known."""

import json

import pytest

from launch.artifact import read_observed
from launch.collect import collect
from launch.observed import MemoryObservation, Observed
from launch.records import read_rank_file
from launch.verify import verify
from planner.plan import SearchOptions
from planner.search import make_plan
from profiler.codec import encode, replace
from profiler.errors import UserError
from tests.unit import facts
from tests.unit.records import step

MEMORY = {
    "weight_bytes": 10, "grad_bytes": 10, "optimizer_bytes": 20, "buffer_bytes": 0,
    "activation_and_workspace_bytes": 5, "peak_bytes": 45, "definition": "by hand",
}  # fmt: skip


def plan_of(**pins):
    options = SearchOptions(pin={k: (str(v),) for k, v in pins.items()}, forbid={}, top=0)
    return make_plan(facts.model(), facts.job(), facts.profile(1, 2), options)


def header(rank, **changes):
    return {
        "rank": rank, "coordinate": {"pp": rank}, "host": "h", "device": "cpu", "torch": "2",
        "memory": MEMORY,
    } | changes  # fmt: skip


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
    assert collect(plan, tmp_path, "complete").ranks[0].collective_by_axis == {"tp": 1.5}


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


def restarted():
    """Steps of a run that lost its ranks in step 3 and went on after step 1."""
    before = [step(i, 10 * i, 10 * i + 10, [], loss=float(i), attempt=0) for i in range(3)]
    again = [
        step(i, 10 * i + 100, 10 * i + 112, [], loss=i + 0.5, attempt=1, grad_norm=2.0)
        for i in range(2, 5)
    ]
    return before, again


def test_the_later_attempt_counts_and_its_first_step_has_no_period(tmp_path):
    plan = plan_of(pp=2, mbs=8)
    before, again = restarted()
    write(tmp_path, [[*before, *again], [*before, *again]])
    observed = collect(plan, tmp_path, "complete")
    assert observed.losses == (0.0, 1.0, 2.5, 3.5, 4.5)
    assert [(s.step, s.step_s) for s in observed.steps] == [(1, 10), (3, 10), (4, 10)]
    assert observed.restarts == 1
    assert observed.grad_norms == (2.0, 2.0, 2.0)


def test_a_step_is_of_the_last_attempt_that_all_ranks_finished(tmp_path):
    plan = plan_of(pp=2, mbs=8)
    before, again = restarted()
    write(tmp_path, [[*before, *again[:1]], before])  # rank 1 died before its step 2
    observed = collect(plan, tmp_path, "failed")
    assert observed.losses == (0.0, 1.0, 2.0)
    assert [s.step for s in observed.steps] == [1, 2]
    assert observed.restarts == 1


def test_a_torn_line_and_headers_in_the_middle_are_passed_over(tmp_path):
    before, again = restarted()
    write(tmp_path, [before])
    path = tmp_path / "ranks" / "rank-00000.jsonl"
    lines = [json.dumps(x) for x in (header(0, pid=7, memory=None), *again)]
    path.write_text(path.read_text() + '{"step": 3, "sta\n' + "\n".join(lines))
    found, steps = read_rank_file(path)
    assert (found["pid"], found["memory"]) == (7, MEMORY)
    assert [s["step"] for s in steps] == [0, 1, 2, 2, 3, 4]


def test_a_run_that_went_on_from_another_and_diverged(tmp_path):
    plan = plan_of(pp=2, mbs=8)
    losses = [2.0, 3.0, float("nan"), 1.0]
    steps = [step(i, 10 * i, 10 * i + 10, [], loss=x) for i, x in enumerate(losses, start=7)]
    write(tmp_path, [steps, steps])
    observed = collect(plan, tmp_path, "complete")
    assert (observed.first_step, observed.losses, observed.diverged_at) == (7, (2.0, 3.0), 9)
    assert [s.step for s in observed.steps] == [8, 9, 10]
    assert json.loads(encode(observed))["diverged_at"] == 9


def test_tokens_per_second_and_mfu(tmp_path):
    plan = plan_of(pp=2, mbs=8)
    steps = [step(i, 2 * i, 2 * i + 2, []) for i in range(3)]
    write(tmp_path, [steps, steps])
    on_cpu = collect(plan, tmp_path, "complete")
    assert on_cpu.tokens_per_s == 8 * 32 / 2
    assert on_cpu.mfu is None
    for rank in (0, 1):
        path = tmp_path / "ranks" / f"rank-{rank:05d}.jsonl"
        path.write_text(path.read_text().replace('"device": "cpu"', '"device": "toy"'))
    flops = plan.model.flops_per_token(32) * 128.0
    assert collect(plan, tmp_path, "complete").mfu == pytest.approx(flops / (2 * 1e10))


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


def test_the_peak_is_compared_part_by_part():
    plan = plan_of(pp=2)
    run = observed_like(plan)
    memory = plan.chosen.cost.stages[1].memory
    num = memory.optimizer_bytes // 8
    seen = {
        "weight_bytes": 4 * num, "grad_bytes": 4 * num, "optimizer_bytes": 8 * num,
        "buffer_bytes": memory.buffer_bytes, "definition": "by hand",
        "activation_and_workspace_bytes": memory.total_bytes - 16 * num - memory.buffer_bytes,
        "peak_bytes": 10**9,
    }  # fmt: skip
    ranks = (run.ranks[0], replace(run.ranks[1], memory=MemoryObservation(**seen),
                                   coordinate={"pp": 1, "tp": 0}))  # fmt: skip
    split = verify(plan, replace(run, ranks=ranks), 0.1).memory
    assert (split.rank, split.coordinate["pp"]) == (1, 1)
    assert [r.predicted_bytes - r.observed_bytes for r in split.rows] == [0] * 5
    assert sum(r.predicted_bytes for r in split.rows) == memory.total_bytes
    assert verify(plan, run, 0.1).memory.rank == 0
    nowhere = tuple(replace(r, memory=None) for r in run.ranks)
    assert verify(plan, replace(run, ranks=nowhere), 0.1).memory is None


def test_files_of_format_1_0_are_read(tmp_path):
    plain = json.loads(encode(observed_like(plan_of(pp=2)))) | {"format_version": "1.0"}
    new = (
        "first_step",
        "steps_done",
        "diverged_at",
        "grad_norms",
        "restarts",
        "tokens_per_s",
        "mfu",
        "moves",
    )
    for key in new:
        del plain[key]
    for rank in plain["ranks"]:
        del rank["collective_by_axis"]
    path = tmp_path / "observed.json"
    path.write_text(json.dumps(plain))
    observed = read_observed(path)
    assert (observed.restarts, observed.mfu) == (0, None)
    assert observed.ranks[0].collective_by_axis == {}


def test_moves_of_experts_are_seen_with_what_they_brought(tmp_path):
    """Steps of 4 s until experts move before step 4, then 3 s; a second move before 8 brings
    nothing that a step could show."""

    def moved(rank):
        return {
            "num_bytes": 300, "gain_s": 0.9, "move_s": 0.25, "num_steps": 2, "steps_left": 4,
            "received_bytes": 100 * (rank + 1), "seconds": 0.5 + rank,
        }  # fmt: skip

    def rows(rank):
        end, found = 0.0, []
        for k in range(9):
            start, end = end, end + (4 if k < 4 else 3) + (1.5 if k == 4 else 0)
            more = {"num_moves": (k >= 4) + (k >= 8)}
            more |= {"moved": moved(rank)} if k in (4, 8) else {}
            found.append(step(k, start, end, [], loss=1.0 if rank == 0 else None, **more))
        return found

    write(tmp_path, [rows(0), rows(1)])
    first, second = collect(plan_of(dp=2), tmp_path, "complete").moves
    assert (first.step, first.num_bytes, first.seconds, first.predicted_s) == (4, 300, 1.5, 0.25)
    assert (first.predicted_gain_s, first.gain_s) == (0.9, pytest.approx(1.0))
    assert (second.step, second.gain_s) == (8, None)


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
        document = json.loads(capsys.readouterr().out)
        assert document["within"] == (code == 0)
        names = [row["name"] for row in document["memory"]["rows"]]
        assert names == ["weights", "gradients", "optimizer", "buffers", "activations"]
        assert all(f" {name} " in out for name in names)
