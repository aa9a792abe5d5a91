"""A lab behaves as machines do, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import jobs, quota
from tests.lab.lab import ROOT, Lab, LabError
from tests.lab.launching import commands
from tests.lab.measure import wait_for
from tests.lab.topology import SHIPPED, shipped

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_lab")]

PYTHON = [sys.executable, "-I", "-S", "-c"]


def test_signals_and_statuses_pass_through(cluster):
    for number in (signal.SIGTERM, signal.SIGKILL):
        with cluster.popen("host0", ["sleep", "987654"]) as process:
            wait_for(lambda: "987654" in commands(cluster, "host0"))
            process.send_signal(number)
            assert process.wait(10) == -number
        wait_for(lambda: "987654" not in commands(cluster, "host0"))
    assert cluster.run("host0", ["sh", "-c", "exit 7"]).returncode == 7
    assert cluster.run("host0", ["cat"], stdin="text").stdout == "text"
    with pytest.raises(LabError, match="no-such-program"):
        cluster.run("host0", ["no-such-program"], check=True)


def test_a_killed_host_is_gone_at_once(ranks):
    with Lab(shipped("uniform")) as lab:
        with lab.popen("host2", ["sleep", "600"]) as process:
            wait_for(lambda: "sleep" in commands(lab, "host2"))
            lab.kill_host("host2")
            assert process.wait(10) == -signal.SIGKILL
        with pytest.raises(LabError, match="host2 is down"):
            lab.run("host2", ["true"])
        try_ = "import socket; socket.create_connection(('host2', 22), 1)"
        assert lab.run("host0", [*PYTHON, try_]).stderr.strip().endswith(("timed out", "host"))
        rest = lab.topology.placed(("host0", "host1", "host3"))
        assert len(ranks.run(lab, jobs.whereabouts, placed=rest)) == 6


def status(process):
    """State and parent of a process by its folder in /proc; `Z` where it is gone."""
    try:
        state, parent, *_ = (process / "stat").read_text().rsplit(")", 1)[1].split()
        return state, parent
    except OSError:
        return "Z", ""


def groups_of(process):
    try:
        return (process / "cgroup").read_text()
    except OSError:
        return ""


def left_behind(warden):
    """What the machine still has of a lab: processes (not those that are dead), control groups."""
    name = f"meshwright-lab-{warden}"
    processes = [
        process.name
        for process in Path("/proc").glob("[0-9]*")
        if status(process)[0] != "Z"
        and (str(warden) in (process.name, status(process)[1]) or f"{name}/" in groups_of(process))
    ]
    return processes + [str(group) for group in quota.find().root.glob(f"{name}*")]


@pytest.mark.parametrize("victim", ["owner", "warden"])
def test_nothing_is_left_after_kill_9(victim, tmp_path):
    before = global_names()
    code = """
import sys, time
from tests.lab.lab import Lab
from tests.lab.topology import shipped
with Lab(shipped("two-sites")) as lab:
    busy = [lab.popen(f"host{i}", ["sleep", "600"], rank=0) for i in range(4)]
    time.sleep(0.3)
    print(lab._warden.pid, *lab.pids.values(), flush=True)
    try:
        lab._warden.wait()
    finally:
        for process in busy: process.wait()
"""
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-P", "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=env, text=True, **pipes) as owner:
        warden, *pids = map(int, owner.stdout.readline().split())
        assert len(pids) == 5
        assert len(left_behind(warden)) > 5
        os.kill({"owner": owner.pid, "warden": warden}[victim], signal.SIGKILL)
        owner.wait(30)
    wait_for(lambda: not left_behind(warden))
    assert [pid for pid in pids if status(Path(f"/proc/{pid}"))[0] != "Z"] == []
    assert global_names() <= before
    assert list(tmp_path.iterdir()) == []


def global_names():
    """Interfaces, named namespaces and mounts of the machine."""
    folders = (Path("/sys/class/net"), Path("/run/netns"), Path("/etc/netns"))
    names = {str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return names | set(Path("/proc/self/mounts").read_text().splitlines())


def test_up_ends_with_its_stdin_and_run_runs_everywhere():
    lab = [sys.executable, "-P", "-m", "tests.lab"]
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True}
    path = str(SHIPPED / "uniform.yaml")
    with subprocess.Popen(
        [*lab, "up", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
    ) as up:
        lines = [up.stdout.readline() for _ in range(6)]
        assert lines[-1] == "Up until Ctrl-C\n"
        enter = lines[2].split(maxsplit=2)[2].split()
        entered = subprocess.run([*enter, "hostname"], capture_output=True, text=True)
        assert entered.stdout == "host1\n"
        up.stdin.close()
        assert up.wait(20) == 0
    done = subprocess.run(
        [*lab, "run", path, "--", "sh", "-c", "hostname; exit 3"], capture_output=True, **options
    )
    assert sorted(done.stdout.splitlines()) == [f"host{i}: host{i}" for i in range(4)]
    assert done.returncode == 3


def test_a_topology_that_cannot_be_is_one_clear_error(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("name: x\nhost: []\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.lab", "up", str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"error: {path}:2: unknown key `host`\n\nhint: did you mean `hosts`?\n"
