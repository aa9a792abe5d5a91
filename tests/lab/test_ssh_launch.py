"""`launch --on ssh` on real hosts."""

import json
import signal
import subprocess

import pytest

from launch.scheduler.ssh import Ssh
from tests.commands import command
from tests.lab import ssh
from tests.lab.box import SHARED
from tests.lab.lab import Lab
from tests.lab.launching import (
    JOB,
    commands,
    follow,
    hosts_of,
    launch,
    make_plan,
    running,
    unhurried,
)
from tests.lab.measure import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_ssh")]

TRAINER = "launch.runtime.train"


@pytest.fixture(scope="module")
def lab():
    """Four hosts with sshd, and a plan for two of them."""
    with Lab(unhurried()) as lab:
        ssh.start(lab)
        make_plan(lab)
        lab.shared("hosts").write_text("# the cluster's order\nhost2 slots=2\nhost0\n")
        yield lab


PLAN, HOSTS = SHARED / "plan.json", SHARED / "hosts"


def on_hosts(lab, runs, *args):
    """Launch on the hosts of a file, with runs in a folder of the lab's."""
    where = ("--on", "ssh", "--hosts", HOSTS, "--runs", SHARED / runs)
    return launch(lab, PLAN, *where, *args)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_command_ends_with_its_client(how, lab):
    script = ["sh", "-c", "echo $NAME; hostname; sleep 4321"]
    line = Ssh().command("host1", script, {"NAME": "it's"})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with lab.popen("host0", line, text=True, **pipes) as client:
        assert [client.stdout.readline() for _ in range(2)] == ["it's\n", "host1\n"]
        assert "sleep 4321" in commands(lab, "host1")
        client.send_signal(how)
    wait_for(lambda: "4321" not in commands(lab, "host1"))


KINDS = """
name: kinds
nodes:
  - {device: cpu, count: 1, devices_per_node: 2}
  - {device: cpu, count: 1, devices_per_node: 1}
"""


def test_unlike_nodes_train_one_pipeline(lab):
    """Two ranks on one host, one on the other, the stages as the search splits them."""
    lab.shared("kinds.yaml").write_text(KINDS)
    asked = ("-m", lab.shared("config.json"), "-c", lab.shared("kinds.yaml"), "--pin", "pp=3")
    made = command("plan", *asked, *JOB, "-o", lab.shared("kinds.json"), "--json")
    planned = json.loads(subprocess.run(made, check=True, capture_output=True).stdout)
    assert len(planned["chosen"]["placement"]["stages"]) == 3
    where = ("--on", "ssh", "--hosts", HOSTS, "--runs", SHARED / "kinds")
    with launch(lab, SHARED / "kinds.json", *where, "--steps", 3, "--json") as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    observed = json.loads(out)
    assert observed["state"] == "complete"
    of_ranks = ["host2", "host2", "host0"]
    devices = planned["chosen"]["placement"]["devices"]
    assert hosts_of(observed) == [of_ranks[device] for device in devices]


def test_ranks_sit_on_the_hosts_in_the_order_of_the_file(lab):
    with on_hosts(lab, "runs", "--steps", 3, "--json") as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert [line.split(" loss")[0] for line in err.splitlines()] == [f"step {k}" for k in range(5)]
    observed = json.loads(out)
    assert observed["state"] == "complete"
    assert hosts_of(observed) == ["host2", "host2", "host0", "host0"]
    (run,) = lab.shared("runs").glob("p-*")
    assert json.loads((run / "observed.json").read_text()) == observed
    assert "host0: " in (run / "run.log").read_text()


def test_what_is_wrong_with_a_host_is_said_before_anything_starts(lab):
    lab.shared("nowhere").write_text("host0\n10.77.0.99\n")
    where = ("--on", "ssh", "--hosts", SHARED / "nowhere", "--runs", SHARED / "none")
    quick = ("--ssh-option", "ConnectTimeout=1")
    with launch(lab, PLAN, *where, *quick) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: host `10.77.0.99` cannot be reached by ssh: ")
    assert "hint: `ssh 10.77.0.99 true` must work" in err
    private = lab.shared("private")
    private.mkdir()
    lab.run("host0", ["mount", "-t", "tmpfs", "tmpfs", str(SHARED / "private")], check=True)
    with on_hosts(lab, "private") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(f"error: host `host0` does not see the folder of runs `{SHARED}/private`")
    assert list(private.iterdir()) == []
    with on_hosts(lab, "none", "--python", "/usr/bin/python0") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "does not run meshwright with `/usr/bin/python0`" in err
    assert list(lab.shared("none").iterdir()) == []


def test_status_and_stop_of_a_run(lab):
    with on_hosts(lab, "stopped", "--steps", 10**6) as process:
        run = running(lab, "stopped")
        path = SHARED / run.relative_to(lab.shared())
        report = json.loads(follow(lab, "--status", path, "--json"))
        assert (report["state"], report["scheduler"], report["host"]) == ("running", "ssh", "ctl")
        assert 2 <= report["steps_done"] < report["num_steps"] == 10**6 + 2
        assert report["last_step_s"] > 0
        assert report["seconds_left"] > 0
        assert "interrupted" in follow(lab, "--stop", path)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "the run was stopped after" in err
    for host in ("host0", "host2"):
        assert TRAINER not in commands(lab, host)
    observed = json.loads((run / "observed.json").read_text())
    assert observed["state"] == "interrupted"
    assert observed["steps_done"] >= report["steps_done"]


def test_after_a_fault_all_ranks_are_started_again(lab):
    again = ("--steps", 50, "--checkpoint-every", 10, "--max-restarts", 1, "--json")
    with on_hosts(lab, "again", *again) as process:
        run = running(lab, "again")
        header = (run / "ranks" / "rank-00003.jsonl").read_text().splitlines()[0]
        lab.run("host0", ["kill", "-9", str(json.loads(header)["pid"])], check=True)
        out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    assert "warning: host host0: rank 3 was killed by signal 9 (SIGKILL)" in err
    observed = json.loads(out)
    assert (observed["restarts"], observed["steps_done"]) == (1, 52)
    assert hosts_of(observed) == ["host2", "host2", "host0", "host0"]


def test_after_kill_9_nothing_runs_and_the_run_is_lost(lab):
    with on_hosts(lab, "killed", "--steps", 10**6) as process:
        run = running(lab, "killed")
        path = SHARED / run.relative_to(lab.shared())
        process.kill()
    for host in ("host0", "host2"):
        wait_for(lambda host=host: TRAINER not in commands(lab, host), 40)
    assert json.loads(follow(lab, "--status", path, "--json"))["state"] == "lost"
    assert "interrupted" in follow(lab, "--stop", path)
    # Rank 3 had ended three steps, other ranks may have been one behind.
    assert json.loads((run / "observed.json").read_text())["steps_done"] >= 2


def test_a_dead_host_is_named_and_the_others_are_ended(lab):
    """The last test of its lab."""
    with on_hosts(lab, "dead", "--steps", 10**6) as process:
        running(lab, "dead")
        lab.kill_host("host0")
        _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    (error,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "the connection to host host0 was lost" in error
    assert TRAINER not in commands(lab, "host2")
