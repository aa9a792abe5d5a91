"""Several clients as one run, with shells in the place of ssh."""

import os
import signal
import threading
import time

import pytest

from launch.faults import first_of_hosts
from launch.scheduler import together
from launch.scheduler.follow import Follower
from launch.scheduler.local import signals_interrupt
from launch.scheduler.together import run_together

FAILED_0 = "E0 failed (exitcode: 1) local_rank: 0 (pid: 7) of binary: python"
FAILED = "E0 failed (exitcode: 3) local_rank: 1 (pid: 7) of binary: python"
ROOT = ("Root Cause (first observed failure):", "[0]:", "  rank      : 3 (local_rank: 1)")
PEER = "[rank0]: RuntimeError: Connection closed by peer"
WAIT = "read line || echo told; exit 9"
"""Until the input is closed."""


def shell(script):
    return ("sh", "-c", script)


def say(*lines, status):
    printed = "; ".join(f"echo '{line}'" for line in lines)
    return shell(f"{printed}; exit {status}")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns (end, lines seen, log); hosts may settle for half a second."""
    monkeypatch.setattr(together, "SETTLE_S", 0.5)
    seen = []

    def start(**commands):
        ended = run_together(commands, tmp_path / "run.log", seen.append)
        return ended, seen, (tmp_path / "run.log").read_text()

    return start


def test_all_end_well(run):
    ended, seen, log = run(a=say("step 0", status=0), b=say("other", status=0))
    assert ended.code == 0
    assert sorted(seen) == ["other", "step 0"]
    assert sorted(log.splitlines()) == ["a: step 0", "b: other"]


def test_one_host_needs_no_name_in_the_log(run):
    assert run(a=say("step 0", status=0))[2] == "step 0\n"


def test_the_first_failure_ends_the_others(run):
    begin = time.monotonic()
    ended, _, log = run(a=shell(WAIT), b=say(FAILED, *ROOT, status=1))
    assert ended.code == 1
    assert ended.fault == "host b: rank 3 ended with exit code 3"
    assert "a: told\n" in log
    assert time.monotonic() - begin < together.END_S / 2


def test_the_host_with_the_cause_is_named_though_another_ended_first(run):
    lost = ("[rank0]: Traceback (most recent call last):", PEER)
    ended, _, _ = run(
        a=say(*lost, FAILED_0, status=1),
        b=shell(f"sleep 0.2; echo '{FAILED}'; exit 1"),
    )
    assert ended.fault == "host b: rank 1 ended with exit code 3"


def test_a_lost_connection_is_named_before_all(run):
    ended, _, _ = run(
        a=say(FAILED, status=1),
        b=shell("sleep 0.2; echo 'Timeout, server b not responding.'; exit 255"),
    )
    assert ended.fault == ("the connection to host b was lost: Timeout, server b not responding")


def test_a_host_that_says_nothing_is_named_with_its_status(run):
    assert run(a=shell(WAIT), b=shell("exit 4"))[0].fault == (
        "host b: its agent ended with status 4"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_all(number, run, tmp_path):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        run(a=shell(WAIT), b=shell(WAIT))
    timer.join()
    assert sorted((tmp_path / "run.log").read_text().splitlines()) == ["a: told", "b: told"]


def test_no_log_shows_a_fault():
    assert first_of_hosts({"a": ["step 0"], "b": []}) == ""


def test_a_file_is_followed_by_whole_lines(tmp_path):
    seen = []
    follower = Follower(tmp_path / "log", seen.append)
    follower.poll()
    with (tmp_path / "log").open("w") as out:
        for text, lines in (("a\nb", ["a"]), ("c\n", ["a", "bc"]), ("d", ["a", "bc"])):
            out.write(text)
            out.flush()
            follower.poll()
            assert seen == lines
    follower.poll(last=True)
    assert seen == ["a", "bc", "d"]
