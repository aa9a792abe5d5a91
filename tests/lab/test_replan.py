"""A host dies in the middle of a run; what is left of it is planned anew, and the curve goes on."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from launch.checkpoints import checkpoint_root, complete_checkpoints, step_of
from launch.records import rank_files, read_rank_file, steps_of_all
from tests import commands
from tests.lab.lab import ROOT, Lab
from tests.lab.measure import wait_for
from tests.lab.topology import Host, Nic, Topology

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_lab")]

HOSTS = ("host0", "host1", "host2")
VICTIM, EVERY, MORE = 1, 3, 4
"""Number of the host that dies; steps per checkpoint, and after it in the run that goes on."""
LAYOUT = "pp: 3\ndp_replicate: 2\nschedule: 1f1b\n"
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5}
WORK = "/run/lab/work"


@pytest.fixture(scope="module")
def hosts():
    """Three hosts of two ranks on a network whose steps take a second or less."""
    nic = Nic(name="eth0", mbit_per_s=400)
    alike = tuple(Host(name=name, nics=(nic,)) for name in HOSTS)
    with Lab(Topology(name="three", hosts=alike)) as lab:
        lab.shared("work").mkdir()
        yield lab


def meshwright(lab: Lab, *words: object, code: int = 0) -> str:
    """What a command says on the controller, in the shared folder."""
    argv = ["sh", "-c", 'cd "$0" && exec "$@"', WORK, *commands.command(*words)]
    done = lab.run("ctl", argv)
    assert done.returncode == code, done.stderr
    return done.stdout


def start(lab: Lab, command: str, names: tuple[str, ...]) -> "list[subprocess.Popen[Any]]":
    """The command that `launch --prepare` printed, on each host."""
    env = os.environ | {"HEAD_NODE": names[0], "PYTHONPATH": str(ROOT)}
    logs = [lab.shared(f"work/{name}.log").open("ab") for name in names]
    try:
        return [
            lab.popen(
                name,
                ["sh", "-c", f"exec env {command}"],
                env=env | {"NODE_RANK": str(number)},
                stdout=log,
                stderr=log,
            )
            for number, (name, log) in enumerate(zip(names, logs, strict=True))
        ]
    finally:
        for log in logs:
            log.close()


def end(running: "list[subprocess.Popen[Any]]") -> None:
    """As an operator ends what hangs on a host that does not answer."""
    for process in running:
        process.kill()
        process.wait()


def said(lab: Lab) -> str:
    """What torchrun and its ranks wrote on all hosts."""
    return "".join(lab.shared(f"work/{name}.log").read_text() for name in HOSTS)


def prepared(lab: Lab, *words: object) -> tuple[str, Path]:
    """(command for each node, the run's folder as this process sees it)."""
    before = set(lab.shared("work/runs").glob("*"))
    command = meshwright(lab, "launch", *words, "--prepare")
    (folder,) = set(lab.shared("work/runs").glob("*")) - before
    return command, folder


def losses(run: Path) -> dict[int, float]:
    """Step -> its mean loss, of the steps that all ranks finished."""
    ranks = [read_rank_file(path)[1] for path in rank_files(run)]
    found = {}
    for rows in steps_of_all(ranks):
        found[rows[0]["step"]] = next(row["loss"] for row in rows if row["loss"] is not None)
    return found


def test_the_rest_goes_on_under_a_new_plan(hosts: Lab, tmp_path: Path) -> None:
    hosts.shared("work/layout.yaml").write_text(LAYOUT)
    model = json.loads((ROOT / "examples" / "tiny-llama" / "config.json").read_text()) | SMALL
    hosts.shared("work/config.json").write_text(json.dumps(model))
    job = ("-m", "config.json", "--global-batch", 12, "--seq-len", 64, "--precision", "fp32")
    meshwright(hosts, "plan", *job, "-c", "cpu-3x2", "--layout", "layout.yaml")
    command, run = prepared(hosts, "plan.json", "--steps", 5000, "--checkpoint-every", EVERY)
    running = start(hosts, command, HOSTS)
    try:
        wait_for(lambda: complete_checkpoints(checkpoint_root(run)), 120)
        hosts.kill_host(HOSTS[VICTIM])
    finally:
        end(running)
    newest = complete_checkpoints(checkpoint_root(run))[0]
    saved, stored = step_of(newest), sum(p.stat().st_size for p in newest.glob("*.distcp"))

    words = ("plan", "--from", "plan.json", "--lost", HOSTS[VICTIM], "--run", f"runs/{run.name}")
    found = json.loads(meshwright(hosts, *words, "--json", code=4))
    assert (found["verdict"], found["nodes"], found["lost_nodes"]) == ("restart", [0, 2], [VICTIM])
    assert found["moves"]["lost_bytes"] > 0  # the stage of the host was nowhere else
    assert 1 <= stored / found["moves"]["state_bytes"] < 1.3  # one copy, and heads of files
    assert found["facts"]["again"]["value"] == len(losses(run)) - saved
    assert {n: found["facts"][n]["source"] for n in ("restart", "again")} == {
        "restart": "measured",
        "again": "measured",
    }

    resume = ("--resume", f"runs/{run.name}", "--steps", saved + MORE - 2)
    command, rest = prepared(hosts, "new-plan.json", *resume)
    assert "--nnodes=2" in command
    began = time.monotonic()
    running = start(hosts, command, tuple(n for n in HOSTS if n != HOSTS[VICTIM]))
    try:
        assert [process.wait(120) for process in running] == [0, 0], said(hosts)
    finally:
        end(running)

    one = ("-c", "cpu-1x1", "-o", tmp_path / "one.json")
    meshwright(hosts, "plan", *job, *one)
    steps = ("--steps", saved + MORE - 2, "--json")
    whole = json.loads(meshwright(hosts, "launch", tmp_path / "one.json", *steps))["losses"]
    before, after = losses(run), losses(rest)
    assert list(after) == list(range(saved, saved + MORE))
    assert list(before.values())[:saved] == pytest.approx(whole[:saved], rel=1e-5)
    assert list(after.values()) == pytest.approx(whole[saved:], rel=1e-5)
    off = max(abs(a - b) / b for a, b in zip(after.values(), whole[saved:], strict=True))
    first = min(row["start"] for path in rank_files(rest) for row in read_rank_file(path)[1])
    print(
        f"checkpoint {stored / found['moves']['state_bytes']:.3f} of the state; losses after step "
        f"{saved} off by {off:.1e} at most; from starting torchrun to the first step "
        f"{first - began:.1f} s, {found['facts']['restart']['value']:.1f} s expected"
    )  # shown by `pytest -s`
    assert after[saved] < whole[0] - 0.05  # and not one that begins anew
