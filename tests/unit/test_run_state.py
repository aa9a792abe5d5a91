"""How a run is doing, and who may be ended for it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from launch.artifact import read_observed
from launch.cli.run_state import lines_of
from launch.progress import WATCHED, Watched, report_of, stop
from launch.status import launcher_lives, read_status, started_at
from launch.steps import NewSteps
from profiler.codec import replace
from profiler.errors import UserError
from tests.unit.runs import plan_of, run_of

PLAN = plan_of()


def sleeper():
    """A process that could be a launcher."""
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])


@pytest.fixture
def other():
    """A process that runs as long as the test."""
    process = sleeper()
    yield process
    process.kill()
    process.wait()


def test_a_run_that_goes_on(tmp_path):
    run = run_of(PLAN, tmp_path / "run", 4)
    report = report_of(run)
    assert (report.state, report.steps_done, report.num_steps) == ("running", 4, 10)
    assert (report.last_step_s, report.loss, report.seconds_left) == (2.0, 5.0, 12.0)
    shown = lines_of(report)
    assert shown[0] == f"{PLAN.id} running"
    assert shown[2] == "4 of 10 steps, the last in 2.000 s, loss 5.000, about 12 s left"
    assert not (run / "observed.json").exists()


def test_moves_of_experts_are_counted(tmp_path):
    run = run_of(PLAN, tmp_path / "run", 4)
    assert report_of(run).num_moves is None
    for path in (run / "ranks").iterdir():
        header, *rows = map(json.loads, path.read_text().splitlines())
        rows = [row | {"num_moves": row["step"] // 2} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)))
    report = report_of(run)
    assert report.num_moves == 1
    assert lines_of(report)[2].endswith("about 12 s left, experts moved 1 time")
    assert lines_of(replace(report, num_moves=2))[2].endswith("experts moved 2 times")


def test_only_steps_of_all_ranks_count(tmp_path):
    run = run_of(PLAN, tmp_path / "run", 4)
    path = run / "ranks" / "rank-00002.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + '\n{"step": 3, "sta')
    assert report_of(run).steps_done == 3
    path.unlink()
    assert report_of(run).steps_done == 0


def test_steps_are_given_once(tmp_path):
    run = run_of(PLAN, tmp_path / "run", 2)
    new = NewSteps(run, 4)
    assert new.lines() == ["step 0 loss 5.000 2.000 s", "step 1 loss 5.000 2.000 s"]
    assert new.lines() == []
    run_of(PLAN, tmp_path / "longer", 3)
    (tmp_path / "longer" / "ranks").rename(run / "more")
    (run / "ranks").rename(run / "before")
    (run / "more").rename(run / "ranks")
    assert new.lines() == ["step 2 loss 5.000 2.000 s"]


def test_a_launcher_that_died_is_told_from_one_that_lives(other, tmp_path):
    mine = {"pid": other.pid, "started": started_at(other.pid)}
    run = run_of(PLAN, tmp_path / "run", 3, **mine)
    assert report_of(run).state == "running"
    other.kill()
    other.wait()
    assert report_of(run).state == "lost"
    assert report_of(run).seconds_left is None
    far = run_of(PLAN, tmp_path / "far", 3, **mine, host="elsewhere")
    assert launcher_lives(read_status(far)) is None
    assert report_of(far).state == "running"


def test_a_process_with_the_launchers_old_number_is_not_ended(other, tmp_path):
    run = run_of(PLAN, tmp_path / "run", 3, pid=other.pid, started=started_at(other.pid) - 1)
    assert report_of(run).state == "lost"
    stop(run)
    assert other.poll() is None
    assert read_status(run).state == "interrupted"
    assert read_observed(run / "observed.json").steps_done == 3


def test_a_launcher_that_lives_is_told_to_end(tmp_path):
    with sleeper() as process:
        run = run_of(PLAN, tmp_path / "run", 3, pid=process.pid, started=started_at(process.pid))
        stop(run)
        assert process.wait(10) == -signal.SIGTERM
    assert read_status(run).state == "interrupted"
    before = (run / "status.json").read_bytes()
    stop(run)  # what has ended stays as it is
    assert (run / "status.json").read_bytes() == before


def test_a_lost_run_with_all_its_steps_is_complete(tmp_path):
    stop(run := run_of(PLAN, tmp_path / "run", 10, started=1))
    assert (read_status(run).state, read_status(run).steps_done) == ("complete", 10)


def test_a_launcher_on_another_host_is_not_ours_to_end(tmp_path):
    run = run_of(PLAN, tmp_path / "run", 3, host="elsewhere")
    with pytest.raises(UserError, match="launcher is on host `elsewhere`"):
        stop(run)
    assert read_status(run).state == "running"


@pytest.mark.parametrize(
    ("found", "host", "state"),
    [
        ("PENDING", "here", "pending"),
        ("RUNNING", "here", "running"),
        ("COMPLETED", "here", "lost"),
        (None, "here", "lost"),
        (None, "elsewhere", "running"),
    ],
)
def test_a_job_is_asked_for_at_its_scheduler(found, host, state, tmp_path, monkeypatch):
    cancelled = []
    watched = replace(WATCHED["slurm"], state_of=lambda job: found, cancel=cancelled.append)
    assert isinstance(watched, Watched)
    monkeypatch.setitem(WATCHED, "slurm", watched)
    monkeypatch.setattr("launch.progress._wait_for_word", lambda run: None)
    place = {} if host == "here" else {"host": host}
    run = run_of(PLAN, tmp_path / "r", 3, scheduler="slurm", job="12", started=1, **place)
    assert report_of(run).state == state
    stop(run)
    assert cancelled == ["12"]
    assert read_status(run).state == "interrupted"


def test_states_of_processes():
    assert started_at(os.getpid()) > 0
    process = sleeper()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert started_at(process.pid) is None  # dead, and not waited for
    process.wait()
    assert started_at(process.pid) is None


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UserError, match="it is not a run's folder"):
        report_of(tmp_path)
    run = run_of(PLAN, tmp_path / "run", 3)
    plain = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(plain | {"state": "odd"}))
    with pytest.raises(UserError, match="`state`"):
        report_of(run)
    (run / "status.json").unlink()
    with pytest.raises(UserError, match="no launcher has started it"):
        report_of(run)
