"""Steps and memory from logs of Megatron-LM and torchtitan.

megatron-lm.txt: lines as `training_log` and `report_memory` of megatron-core 0.19.2 print them,
with and without a date and a launcher's prefix. torchtitan.txt: printed by torchtitan 0.2.2 for an
emitted plan of two ranks (tests/frameworks), its memory put in by hand, as that run had no GPU.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.training_log import read_log
from launch.verify import verify_log
from profiler.errors import UserError
from tests import made

LOGS = Path(__file__).parent / "logs"
PLAN = made.plan()
TINY = replace(PLAN, job=replace(PLAN.job, global_batch=8, seq_len=64))


def test_megatron():
    run = read_log(LOGS / "megatron-lm.txt", PLAN, skip=2)
    assert run.kind == "Megatron-LM"
    assert run.step_s == (35.79, 35.81)
    assert run.peak_bytes == int(66304.5 * 2**20)
    verdict = verify_log(PLAN, run, 0.1)
    assert verdict.within
    assert [row.name for row in verdict.rows] == ["step", "peak memory"]
    assert verdict.rows[0].error == pytest.approx((35.0 - 35.8) / 35.8)
    assert not verify_log(PLAN, run, 0.01).within


def test_torchtitan():
    run = read_log(LOGS / "torchtitan.txt", TINY, skip=2)
    per_device = TINY.job.tokens_per_step / TINY.chosen.config.num_devices
    assert run.kind == "torchtitan"
    rates = (418, 405, 455, 483)  # of the slower rank of each step
    assert run.step_s == pytest.approx([per_device / rate for rate in rates])
    assert run.peak_bytes == int(40.25 * 2**30)


def test_colors_and_thousands(tmp_path):
    """torchtitan colours its lines unless told not to, and groups digits."""
    line = (
        "[titan] 2026-11-28 18:09:18,711 - root - INFO - \x1b[31mstep:  3  \x1b[32mloss:  5.64564  "
        "\x1b[38;2;180;60;0mgrad_norm:  1.0287  \x1b[38;2;54;234;195mmemory: 40.25GiB(50.80%)  "
        "\x1b[34mtps: 7,312  \x1b[36mtflops: 424.36  \x1b[35mmfu: 42.91%\x1b[39m\n"
    )
    (tmp_path / "log").write_text(line)
    run = read_log(tmp_path / "log", PLAN, skip=0)
    assert run.step_s == (PLAN.job.tokens_per_step / 32 / 7312,)


@pytest.mark.parametrize(
    ("text", "skip", "kind", "message"),
    [
        ("hello\n", 0, "invalid", "no line of it is a step"),
        (None, 4, "failed", "it has 4 steps, and the first 4 are left out"),
    ],
)
def test_logs_that_say_too_little(text, skip, kind, message, tmp_path):
    path = LOGS / "megatron-lm.txt"
    if text is not None:
        path = tmp_path / "log"
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_log(path, PLAN, skip)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("megatron-lm.txt", replace(PLAN, job=replace(PLAN.job, global_batch=128))),
        ("torchtitan.txt", replace(TINY, job=replace(TINY.job, seq_len=128))),
    ],
)
def test_a_log_of_another_job_is_stale(name, plan):
    with pytest.raises(UserError, match="the run has a") as caught:
        read_log(LOGS / name, plan, 0)
    assert caught.value.kind == "stale"
