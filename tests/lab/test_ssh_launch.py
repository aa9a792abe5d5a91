"""What `launch` does over ssh, on real hosts."""

import signal
import subprocess

import pytest

from launch.scheduler.ssh import Ssh
from tests.lab import ssh
from tests.lab.lab import Lab
from tests.lab.measure import wait_for
from tests.lab.topology import shipped

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_ssh")]


@pytest.fixture(scope="module")
def hosts():
    """Four hosts with sshd."""
    with Lab(shipped("uniform")) as lab:
        ssh.start(lab)
        yield lab


def commands(lab, host):
    return lab.run(host, ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).stdout


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_command_ends_with_its_client(how, hosts):
    argv = Ssh().command(
        "host1", ["sh", "-c", "echo $NAME; hostname; sleep 4321"], {"NAME": "it's"}
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with hosts.popen("host0", argv, text=True, **pipes) as client:
        assert [client.stdout.readline() for _ in range(2)] == ["it's\n", "host1\n"]
        assert "sleep 4321" in commands(hosts, "host1")
        client.send_signal(how)
    wait_for(lambda: "4321" not in commands(hosts, "host1"))
