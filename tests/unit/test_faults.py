"""Why a run ended, from logs that torchrun (torch 2.13) and three workers printed, shortened."""

from pathlib import Path

import pytest

from launch.faults import MAX_LENGTH, first_fault

LOGS = Path(__file__).parent / "logs"
LOST = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:14555"
TRACEBACK = "[rank{0}]: Traceback (most recent call last):\n[rank{0}]:   File x\n[rank{0}]: {1}\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("killed", "rank 1 was killed by signal 9 (SIGKILL), perhaps for lack of memory"),
        (
            "killed-twice",
            "rank 1 was killed by signal 9 (SIGKILL), perhaps for lack of memory, "
            "in attempt 2 of 2",
        ),
        ("segfault", "rank 2 was killed by signal 11 (SIGSEGV)"),
        ("raised", "rank 2 raised ValueError: a shape of 3 is not 4"),
        ("chained", "rank 0 raised RuntimeError: no such block"),
        ("raised-early", "rank 1 raised ValueError: early boom"),
        ("exit-code", "rank 1 ended with exit code 7"),
        ("own-error", "plan.json: the plan needs 4 processes, but 2 were started"),
    ],
)
def test_the_first_fault_of_a_real_run(name, words):
    assert first_fault((LOGS / f"{name}.txt").read_text().splitlines(keepends=True)) == words


def test_a_restart_that_found_nobody_is_named_with_the_fault_before_it():
    with (LOGS / "raised-then-lost.txt").open() as lines:
        words = first_fault(lines)
    assert words.startswith(
        "rank 1 raised ValueError: a shape of 3 is not 4, and the next attempt failed: "
        "rank 0 raised RuntimeError: Gloo connectFullMesh failed"
    )


def failed(code, local_rank):
    return (
        f"E api.py:1002] failed (exitcode: {code}) local_rank: {local_rank} (pid: 7) of binary: p\n"
    )


def first(*texts):
    return first_fault("".join(texts).splitlines())


def test_an_abort_is_named_by_the_exception_that_led_to_it():
    raised = TRACEBACK.format(0, "ValueError: boom")
    assert first(raised, failed(-6, 1)) == "rank 0 raised ValueError: boom"
    assert first(failed(-6, 1)) == "rank 1 was killed by signal 6 (SIGABRT)"
    # But nobody is killed outright because another rank raised.
    assert first(raised, failed(-9, 1)).startswith("rank 1 was killed by signal 9 (SIGKILL)")


def test_a_lost_peer_is_named_where_nothing_else_is_known():
    assert first(TRACEBACK.format(2, LOST), failed(1, 2)) == f"rank 2 raised {LOST}"
    both = TRACEBACK.format(2, LOST), TRACEBACK.format(0, "KeyError: 'x'")
    assert first(*both, failed(1, 2)) == "rank 0 raised KeyError: 'x'"


def test_on_several_nodes_the_rank_is_that_among_all():
    cause = (
        "Root Cause (first observed failure):\n[0]:\n  time      : 2026-11-25_10:30:05\n"
        "  rank      : 5 (local_rank: 1)\n  exitcode  : -9 (pid: 26456)  (SIGKILL)\n"
    )
    assert first(failed(-9, 1), cause).startswith("rank 5 was killed")


def test_interleaved_tracebacks_are_told_apart():
    a, b = (TRACEBACK.format(r, f"ValueError: of {r}").splitlines() for r in (0, 1))
    mixed = [line for pair in zip(a, b, strict=True) for line in pair]
    assert first_fault([*mixed, failed(1, 1)]) == "rank 1 raised ValueError: of 1"


def test_a_log_that_says_nothing_and_one_that_says_too_much():
    assert first_fault([]) == ""
    assert first_fault(["step 0 loss 5.5 0.1 s\n"]) == ""
    assert (
        first("Traceback (most recent call last):\n  File x\nOSError: in use") == "OSError: in use"
    )
    long = first(TRACEBACK.format(0, f"ValueError: {'x' * 1000}"), failed(1, 0))
    assert len(long) == MAX_LENGTH
