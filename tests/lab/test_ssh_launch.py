"""`launch --on ssh` on real hosts."""

import json
import signal
import subprocess

import pytest

from launch.scheduler.ssh import Ssh
from tests.lab import ssh
from tests.lab.box import SHARED
from tests.lab.lab import Lab
from tests.lab.launching import commands, hosts_of, launch, make_plan, unhurried
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
