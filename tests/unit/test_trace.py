"""The Chrome trace of a run, from hand-made records."""

import json
from collections import Counter

import pytest

from launch.trace import MAX_STEPS, trace_of, write_trace
from profiler.errors import UserError

THREADS = {0: "step", 1: "compute", 2: "sync", 3: "optimizer", 4: "wait dp", 5: "wait tp"}


def rank_of(rank, num_steps=2):
    header = {
        "rank": rank, "host": "h", "device": "cpu", "torch": "2", "memory": None,
        "coordinate": {"pp": rank, "dp_replicate": 0, "dp_shard": 0, "cp": 0, "tp": 1},
    }  # fmt: skip
    steps = [
        {
            "step": i, "warmup": i == 0, "loss": 2.5, "start": 10.0 + i, "end": 10.875 + i,
            "sync": [10.5 + i, 10.75 + i], "optimizer": [10.75 + i, 10.875 + i],
            "actions": [["F", rank, 0, 10.0 + i, 10.25 + i], ["B", rank, 0, 10.25 + i, 10.5 + i]],
            "collectives": [
                ["tp", 0, 10.0 + i, 10.125 + i, 10.25 + i],
                ["tp", 1, 10.25 + i, None, None],
                ["dp", 0, 10.5 + i, 10.5 + i, 10.75 + i],
            ],
        }
        for i in range(num_steps)
    ]  # fmt: skip
    return header, steps


def test_every_record_is_an_event_of_its_rank_and_thread():
    events = trace_of([rank_of(0), rank_of(1)])["traceEvents"]
    complete = [e for e in events if e["ph"] == "X"]
    assert Counter((e["pid"], e["tid"]) for e in complete) == {
        (rank, tid): 2 * (2 if tid == 1 else 1) for rank in (0, 1) for tid in THREADS
    }
    assert min(e["ts"] for e in complete) == 0.0
    assert all(e["dur"] >= 0 for e in complete)
    names = [e["name"] for e in complete if (e["pid"], e["tid"]) == (1, 1)]
    assert names == ["1F0", "1B0"] * 2
    backward = next(e for e in complete if e["name"] == "1B0")
    assert (backward["ts"], backward["dur"], backward["args"]) == (0.25e6, 0.25e6, {"step": 0})
    wait = next(e for e in complete if e["tid"] == 5)
    assert (wait["name"], wait["args"]) == ("tp 0", {"step": 0, "issued_us_before": 125000.0})


def test_ranks_and_threads_have_names():
    events = trace_of([rank_of(0), rank_of(3)])["traceEvents"]
    named = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert named == {0: "rank 0 pp0 dp0 shard0 cp0 tp1", 3: "rank 3 pp3 dp0 shard0 cp0 tp1"}
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert threads == THREADS


def write(folder, ranks):
    (folder / "ranks").mkdir()
    for header, steps in ranks:
        path = folder / "ranks" / f"rank-{header['rank']:05d}.jsonl"
        path.write_text("".join(json.dumps(x) + "\n" for x in (header, *steps)))


def test_the_file_is_json_of_the_last_steps(tmp_path):
    made = [rank_of(0, MAX_STEPS + 3), rank_of(1, MAX_STEPS + 3)]
    made[0][1][-1]["loss"] = float("nan")
    write(tmp_path, made)
    path = write_trace(tmp_path)
    assert path == tmp_path / "trace.json"

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    events = json.loads(path.read_text(), parse_constant=refuse)["traceEvents"]
    steps = [e["name"] for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (0, 0)]
    assert steps == [f"step {i}" for i in range(3, MAX_STEPS + 3)]


def test_a_run_without_records_has_an_empty_trace(tmp_path):
    assert json.loads(write_trace(tmp_path).read_text())["traceEvents"] == []


def test_records_of_another_form_are_a_user_error(tmp_path):
    write(tmp_path, [({"rank": 0}, [{"step": 0}])])
    with pytest.raises(UserError, match="records cannot be read"):
        write_trace(tmp_path)
