"""Hostfiles, and commands that end with the connection that started them."""

import shlex
import signal
import subprocess
import sys
import time

import pytest

from launch.rank_files import rank_file
from launch.scheduler.hosts import Host, hosts_of_plan, read_hosts
from launch.scheduler.ssh import Ssh
from planner.placed import on_hosts
from planner.plan import SearchOptions
from planner.search import make_plan
from profiler.errors import UserError
from tests.unit import facts
from tests.unit.hosts import links, profiled


def test_forms_of_a_hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\nnode1\n\n  me@node2 slots=4 # the large one\n10.0.0.3\nfe80::1\n")
    hosts = read_hosts(path)
    assert hosts == (
        Host(name="node1"),
        Host(name="me@node2", slots=4),
        Host(name="10.0.0.3"),
        Host(name="fe80::1"),
    )
    assert [h.address for h in hosts] == ["node1", "node2", "10.0.0.3", "fe80::1"]


def test_reads_what_map_writes(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(rank_file("hostfile", ["b", "b", "a", "a"]))
    assert read_hosts(path) == (Host(name="b", slots=2), Host(name="a", slots=2))


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", "", "the file names no host"),
        ("# a\n\n", "", "the file names no host"),
        ("a\n-oProxyCommand=x\n", ":2", "`-oProxyCommand=x` is not a host's name"),
        ("a\nb;reboot\n", ":2", "`b;reboot` is not a host's name"),
        ("a slots=0\n", ":1", "`slots=0` is not a number above 0"),
        ("a slots=2.5\n", ":1", "`slots=2.5` is not a number above 0"),
        ("a slots\n", ":1", "`slots` is not known after a host"),
        ("a slots=2 max_slots=4\n", ":1", "`max_slots=4` is not known after a host"),
        ("a\nb\nme@a\n", ":3", "host `a` is there twice, first in line 1"),
    ],
)
def test_a_wrong_line_is_named(text, place, message, tmp_path):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_hosts(path)
    assert caught.value.place == f"{path}{place}"
    assert caught.value.message == message


def test_a_plan_that_knows_its_hosts_finds_them_by_name():
    facts_ = on_hosts(profiled(), links(num_hosts=3))
    options = SearchOptions(pin={}, forbid={}, top=0)
    plan = make_plan(facts.model(), facts.job(global_batch=12), facts_, options)
    wanted = [(0, 2), (1, 2), (2, 2)]
    shuffled = [Host(name=name) for name in ("me@host2", "spare", "host0", "host1")]
    found = hosts_of_plan(shuffled, plan, wanted, "hosts")
    assert [host.name for host in found] == ["host0", "host1", "me@host2"]
    with pytest.raises(UserError, match="puts ranks on host `host1`") as caught:
        hosts_of_plan(shuffled[:3], plan, wanted, "hosts")
    assert (caught.value.kind, caught.value.place) == ("stale", "hosts")
    alike = make_plan(facts.model(), facts.job(global_batch=12), facts.profile(3, 2), options)
    assert hosts_of_plan(shuffled, alike, wanted, "hosts") == tuple(shuffled[:3])


def test_a_command_line_of_ssh():
    ssh = Ssh(options=("User=me",), port=2222, python="/opt/python")
    line = ssh.command("node1", ["run", "a b", "$HOME"], {"KEY": "x y"})
    assert line[:3] == ("ssh", "-T", "-x")
    assert line[3:7] == ("-p", "2222", "-o", "User=me")  # the first one wins in ssh
    assert "BatchMode=yes" in line
    assert line[-3:-1] == ("--", "node1")
    assert shlex.split(line[-1]) == [
        "exec", "env", "KEY=x y", "/opt/python", "-P", "-m", "launch.scheduler.guard",
        "run", "a b", "$HOME",
    ]  # fmt: skip


GUARD = [sys.executable, "-P", "-m", "launch.scheduler.guard"]
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_the_guard_passes_on_the_status(script, status):
    with subprocess.Popen([*GUARD, "sh", "-c", script], **PIPES) as process:
        assert process.wait(20) == status


def test_the_guard_says_what_it_cannot_start():
    with subprocess.Popen([*GUARD, "no-such-program"], text=True, **PIPES) as process:
        assert process.wait(20) == 127
        assert process.stderr.read() == "no-such-program: no such file or directory\n"


@pytest.mark.parametrize("how", ["input", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_the_command_ends_with_the_connection(how):
    script = "trap 'echo told; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    with subprocess.Popen([*GUARD, "sh", "-c", script], text=True, **PIPES) as process:
        assert process.stdout.readline() == "up\n"
        process.stdin.write("kept alive\n")
        process.stdin.flush()
        time.sleep(0.1)
        assert process.poll() is None
        if how == "input":
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, how))
        assert process.stdout.read() == "told\n"  # and the end: nobody holds the pipe any more
        assert process.wait(20) == {"input": 3, "SIGKILL": -9}.get(how, 130)
