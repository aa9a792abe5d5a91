"""The whole loop as a user walks it, on real processes; interrupts and deaths on the way."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import LLAMA, command, meshwright

pytestmark = [pytest.mark.distributed, pytest.mark.started]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A profile of a very small model on two processes, and a plan from it."""
    folder = tmp_path_factory.mktemp("loop")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    meshwright(
        folder, "profile", "-m", "config.json", "--nproc", 2, "--seq-len", 64,
        "--micro-batches", "1,2", "--budget", 6,
    )  # fmt: skip
    ask = ("plan", "-m", "config.json", "--profile", "profile.json", "--global-batch", 4)
    meshwright(folder, *ask, "--pin", "pp=2,mbs=1,split=3,1")
    return folder


def test_profile_names_its_sources(folder):
    profile = json.loads((folder / "profile.json").read_text())
    assert profile["source"] == "measured"
    assert {(b["block"], b["tp"], b["micro_batch"]) for b in profile["blocks"]} == {
        (k, t, b) for k in ("embed", "dense", "head") for t in (1, 2) for b in (1, 2)
    }
    assert {b["source"] for b in profile["blocks"]} == {"measured"}
    assert {t["op"] for t in profile["transfers"]} == {
        "p2p", "all_reduce", "all_gather", "reduce_scatter",
    }  # fmt: skip
    assert profile["environment"]["torch"]
    assert not (folder / "profile.json.partial").exists()


def test_launch_and_verify(folder):
    done = meshwright(folder, "launch", "plan.json", "--steps", 8, "--lr", 0.003, "--json")
    observed = json.loads(done.stdout)
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["chosen"]["placement"]["stages"] == [[0, 4], [4, 6]]
    assert observed["plan_id"] == plan["id"]
    assert len(observed["steps"]) == 8
    assert observed["losses"][-1] < observed["losses"][0] - 0.3
    for step in observed["steps"]:
        assert step["step_s"] > 0
        assert min(step["split"].values()) >= 0
    total = sum(s["step_s"] for s in observed["steps"])
    for rank in observed["ranks"]:
        # A rank's first step here begins when its own last warm-up step ended, not the slowest's.
        assert sum(sum(s.values()) for s in rank["steps"]) == pytest.approx(total, rel=0.5)
        assert rank["memory"]["peak_bytes"] > 0
    run = folder / "runs" / plan["id"]
    assert json.loads((run / "status.json").read_text())["state"] == "complete"
    verdict = meshwright(
        folder, "verify", run / "plan.json", run / "observed.json", "--tolerance", 100, "--json"
    )
    rows = {r["name"]: r for r in json.loads(verdict.stdout)["rows"]}
    assert abs(rows["peak memory"]["error"]) < 0.1
    meshwright(folder, "verify", run / "plan.json", run / "observed.json", "--tolerance", 0, code=4)


def children(pid):
    """All descendants of a process."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += [int(child), *children(int(child))]
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids):
    deadline = time.monotonic() + 40
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if alive(pid)] == []


@contextlib.contextmanager
def training(folder, runs, number=1):
    """A launch without end that has made its first steps: (process, folder of its run, which is
    the plan's first or so in `runs`)."""
    process = subprocess.Popen(
        command("launch", "plan.json", "--steps", 100000, "--runs", runs),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stderr:
            if line.startswith("step 3 "):
                break
        plan = json.loads((folder / "plan.json").read_text())
        yield process, folder / runs / (plan["id"] if number == 1 else f"{plan['id']}-{number}")
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_all_ranks_and_leaves_a_readable_state(folder, number):
    with training(folder, f"runs-{number.name}") as (process, run):
        started = children(process.pid)
        assert len(started) >= 3  # torchrun and two ranks
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the run was stopped after" in err
    assert "Traceback" not in err
    wait_until_gone(started)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert status["steps_done"] >= 3
    observed = json.loads((run / "observed.json").read_text())
    assert (observed["state"], len(observed["losses"])) == ("interrupted", status["steps_done"])
    meshwright(folder, "verify", run / "plan.json", run / "observed.json", "--tolerance", 100)


def test_ranks_end_with_a_killed_launcher(folder):
    with training(folder, "runs-killed") as (process, _):
        started = children(process.pid)
    assert len(started) >= 3
    process.communicate(timeout=60)
    wait_until_gone(started)


def test_a_rank_that_dies_fails_the_run_with_its_cause_and_an_earlier_run_is_kept(folder):
    plan = json.loads((folder / "plan.json").read_text())
    observed = folder / "runs" / plan["id"] / "observed.json"
    first = observed.read_bytes()
    with training(folder, "runs", 2) as (process, run):
        header = (run / "ranks" / "rank-00001.jsonl").read_text().splitlines()[0]
        os.kill(json.loads(header)["pid"], signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: the run failed: " in err
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert observed.read_bytes() == first
    assert len(json.loads((run / "observed.json").read_text())["losses"]) >= 3
