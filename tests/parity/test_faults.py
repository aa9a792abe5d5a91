"""Faults of the real kind: a rank killed, a node's agent killed, a full disk.

Each time the run must go on from its last complete checkpoint with the curve of a run that nothing
happened to, and say which rank failed and why.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.artifact import read_plan
from launch.checkpoints import checkpoint_root, complete_checkpoints, damage
from launch.expert_looks import places_of_run, read_looks
from profiler.codec import to_plain
from tests.commands import LLAMA, command, meshwright

pytestmark = [pytest.mark.distributed, pytest.mark.started]

MOE = LLAMA | {
    "model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip
STEPS, EVERY, KILL_AFTER = 28, 5, 12
RUN = ("--warmup", 2, "--steps", STEPS - 2, "--checkpoint-every", EVERY)


def make_plan(
    folder: Path, cluster: str, layout: str, config: dict[str, Any] | None = None
) -> Path:
    (folder / "config.json").write_text(json.dumps(config or LLAMA))
    (folder / "layout.yaml").write_text(layout)
    meshwright(
        folder, "plan", "-m", "config.json", "-c", cluster, "--layout", "layout.yaml",
        "--global-batch", 4, "--seq-len", 64, "--precision", "fp32",
    )  # fmt: skip
    return folder / "plan.json"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A folder with a plan for two processes, and the curve of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("faults")
    make_plan(folder, "cpu-1x2", "{dp_shard: 2, zero: 2, micro_batch: 1}")
    done = meshwright(folder, "launch", "plan.json", *RUN, "--runs", "whole", "--json")
    return folder, json.loads(done.stdout)["losses"]


def _rows(run: Path, rank: int) -> list[dict[str, Any]]:
    path = run / "ranks" / f"rank-{rank:05d}.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _wait(condition: Callable[[], bool], process: "subprocess.Popen[str]", what: str) -> None:
    limit = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < limit, f"no {what}"
        time.sleep(0.01)


def _start(folder: Path, *args: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command("launch", "plan.json", *RUN, *args), cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _run_dir(folder: Path, runs: str) -> Path:
    return next((folder / runs).glob("p-*"), folder / "none")


def _kill_rank_1(folder: Path, runs: str, process: "subprocess.Popen[str]") -> None:
    _wait(lambda: len(_rows(_run_dir(folder, runs), 1)) > KILL_AFTER, process, "step")
    os.kill(_rows(_run_dir(folder, runs), 1)[0]["pid"], signal.SIGKILL)


def test_a_killed_rank_is_started_again_from_the_last_checkpoint(
    undisturbed: tuple[Path, list[float]],
) -> None:
    folder, losses = undisturbed
    process = _start(folder, "--runs", "killed", "--max-restarts", 1, "--json")
    _kill_rank_1(folder, "killed", process)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    run = _run_dir(folder, "killed")
    observed = json.loads(stdout)
    assert observed["losses"] == losses
    attempts = [row["attempt"] for row in _rows(run, 0)[1:]]
    assert attempts == sorted(attempts)
    assert set(attempts) == {0, 1}
    first_again = attempts.index(1)
    assert first_again >= EVERY
    assert first_again % EVERY == 0
    assert "goes on after step" in (run / "run.log").read_text()
    # The step that the fault cut has no period of its own.
    assert first_again not in [step["step"] for step in observed["steps"]]


def test_experts_that_moved_are_where_they_were_after_a_restart(tmp_path: Path) -> None:
    make_plan(tmp_path, "cpu-1x2", "{dp_replicate: 2, ep: 2, micro_batch: 1}", MOE)
    still = meshwright(tmp_path, "launch", "plan.json", *RUN, "--runs", "still", "--json")
    assert json.loads(still.stdout)["moves"] == []
    moves = ("--rebalance-experts-every", EVERY, "--rebalance-experts-gain", 0)
    process = _start(tmp_path, "--runs", "moved", "--max-restarts", 1, "--json", *moves)
    _kill_rank_1(tmp_path, "moved", process)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    observed, run = json.loads(stdout), _run_dir(tmp_path, "moved")
    assert observed["restarts"] == 1
    assert observed["losses"] == pytest.approx(json.loads(still.stdout)["losses"], rel=1e-4)
    found = [move["step"] for move in observed["moves"]]
    assert found
    assert EVERY in found  # of the first attempt, whose checkpoint the second went on from
    assert {step % EVERY for step in found} == {0}
    assert [row["num_moves"] for row in _rows(run, 0)[1:]][-1] == len(found)
    assert stderr.count("experts move before step ") >= len(found)
    looks = read_looks(run)
    assert {look.step for look in looks if look.layers and look.counts} == set(found)
    again_at = next(row["step"] for row in _rows(run, 0)[1:] if row["attempt"] == 1)
    counted = [look.step for look in looks if look.counts]  # what the fault undid is cut off
    assert counted == [step for step in range(EVERY, STEPS, EVERY) if step != again_at]
    assert [look.step for look in looks if not look.counts] == [again_at]
    tokens = 2 * read_plan(tmp_path / "plan.json").job.tokens_per_step
    assert all(sum(row) == EVERY * tokens for row in looks[0].counts)
    shown = meshwright(tmp_path, "launch", "--status", run).stdout
    assert f"experts moved {len(found)} time" in shown
    again = ("--warmup", 2, "--steps", STEPS, "--resume", run, "--runs", "on", *moves)
    meshwright(tmp_path, "launch", "plan.json", *again)
    newest = max((run / "checkpoints").iterdir()) / "training.json"
    assert json.loads(newest.read_text())["experts"]
    on = json.loads((_run_dir(tmp_path, "on") / "experts.jsonl").read_text().splitlines()[0])
    assert on["layers"] == to_plain(places_of_run(read_plan(tmp_path / "plan.json"), run)[0])


def test_without_restarts_the_killed_rank_is_named(
    undisturbed: tuple[Path, list[float]],
) -> None:
    folder, losses = undisturbed
    process = _start(folder, "--runs", "ended")
    _kill_rank_1(folder, "ended", process)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    (error,) = (line for line in stderr.splitlines() if line.startswith("error: "))
    assert "rank 1 was killed by signal 9 (SIGKILL)" in error
    run = _run_dir(folder, "ended")
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    # And by hand the run goes on where it was, here with other processes.
    make_plan(folder, "cpu-1x1", "{micro_batch: 2}")
    again = meshwright(
        folder, "launch", "plan.json", *RUN, "--runs", "resumed", "--resume", run, "--json"
    )
    curve = json.loads(again.stdout)["losses"]
    assert 0 < len(curve) <= STEPS - EVERY
    assert curve == pytest.approx(losses[-len(curve) :], rel=1e-4)
    ended = _run_dir(folder, "resumed")
    done = meshwright(folder, "launch", "plan.json", *RUN, "--resume", ended, code=1)
    assert f"the checkpoint has {STEPS} steps behind it" in done.stderr
    one_more = ("--warmup", 2, "--steps", STEPS - 1, "--resume", ended)
    last = meshwright(folder, "launch", "plan.json", *one_more, "--runs", "last", "--json")
    assert len(json.loads(last.stdout)["losses"]) == 1
    make_plan(folder, "cpu-1x2", "{dp_shard: 2, zero: 2, micro_batch: 1}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_named_and_harms_no_checkpoint(
    undisturbed: tuple[Path, list[float]], small_disk: Path
) -> None:
    folder, losses = undisturbed
    process = _start(folder, "--runs", small_disk)
    root = checkpoint_root(_run_dir(small_disk, "."))

    def saved() -> bool:
        return bool(complete_checkpoints(checkpoint_root(_run_dir(small_disk, "."))))

    _wait(saved, process, "checkpoint")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as out:
        try:
            while out.write(bytes(4096)):
                pass
        except OSError:
            pass
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "rank " in stderr
    assert "no space left on device" in stderr.lower()
    root = checkpoint_root(_run_dir(small_disk, "."))
    kept = complete_checkpoints(root)
    assert kept
    assert all(damage(checkpoint) is None for checkpoint in kept)
    filler.unlink()
    again = meshwright(
        folder, "launch", "plan.json", *RUN, "--runs", small_disk, "--resume",
        _run_dir(small_disk, "."), "--json",
    )  # fmt: skip
    curve = json.loads(again.stdout)["losses"]
    assert curve == losses[-len(curve) :]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _agent(folder: Path, argv: list[str], env: dict[str, str], log: Path) -> Any:
    with log.open("w") as out:
        return subprocess.Popen(
            argv, cwd=folder, env=os.environ | env, stdout=out, stderr=out, start_new_session=True
        )


def test_a_killed_agent_of_a_node_is_replaced(
    undisturbed: tuple[Path, list[float]], tmp_path: Path
) -> None:
    """Two torchrun agents as on two nodes; the one that does not hold the rendezvous is killed and
    later started again, as a scheduler does with a lost node."""
    _, losses = undisturbed
    make_plan(tmp_path, "cpu-2x1", "{dp_shard: 2, zero: 2, micro_batch: 1}")
    again = ("--max-restarts", 3, "--prepare", "--json")
    what = json.loads(meshwright(tmp_path, "launch", "plan.json", *RUN, *again).stdout)
    argv = [a.replace("$HEAD_NODE:29500", f"127.0.0.1:{_free_port()}") for a in what["argv"]]
    run = Path(what["run_dir"])
    env = what["env"]
    head = _agent(tmp_path, argv, env, tmp_path / "head.log")
    try:
        time.sleep(2)  # the head must hold the rendezvous
        other = _agent(tmp_path, argv, env, tmp_path / "other.log")
        try:
            _wait(lambda: len(_rows(run, 1)) > KILL_AFTER, head, "step")
            os.killpg(other.pid, signal.SIGKILL)
        finally:
            other.wait(timeout=10)
        other = _agent(tmp_path, argv, env, tmp_path / "other-again.log")
        try:
            assert head.wait(timeout=150) == 0, (tmp_path / "head.log").read_text()[-3000:]
        finally:
            other.kill()
            other.wait(timeout=10)
    finally:
        head.kill()
        head.wait(timeout=10)
    rows = _rows(run, 0)[1:]
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert [row["loss"] for row in rows] == losses
    assert max(row["attempt"] for row in rows) >= 1
    observed = json.loads((run / "observed.json").read_text())
    assert (observed["state"], observed["losses"]) == ("complete", losses)
