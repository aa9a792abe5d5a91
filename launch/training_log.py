"""Steps and memory of a run of Megatron-LM or torchtitan, from what it logged.

Megatron-LM (`training_log` and `report_memory` of megatron-core 0.19.2, the same since 0.5):

    iteration        3/     100 | ... | elapsed time per iteration (ms): 1234.5 | ...
      global batch size:   256 | ...
    [Rank 0] (after 1 iterations) memory (MB) | allocated: 1.2 | max allocated: 3.4 | ...

torchtitan (`MetricsProcessor.log` of torchtitan 0.2.2 and 0.3.0), where tps are tokens of a step
over its seconds and the number of devices, and memory is the most that the allocator reserved:

    step:  3  loss:  5.64564  ...  memory: 40.25GiB(50.80%)  tps: 7,312  tflops: ...

A line may be printed by several ranks: the slowest of a step counts, and the fullest.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from planner.plan import Plan
from profiler.codec import read_text
from profiler.errors import UserError

LogKind = Literal["Megatron-LM", "torchtitan"]
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_MEGATRON = re.compile(
    r"iteration +(\d{1,12})/ *\d+ \|.*?elapsed time per iteration \(ms\): (\d{1,12}(?:\.\d+)?) \|"
    r"(?:.*?global batch size: +(\d{1,12}) \|)?"
)
_MEGATRON_MEMORY = re.compile(
    r"\[Rank \d+\].{0,200}memory \(MB\) \|.*?max allocated: (\d{1,9}(?:\.\d+)?)"
)
_TITAN = re.compile(
    r"step: +(\d{1,12}) +loss: .*?memory: +(-?\d{1,6}(?:\.\d+)?)GiB.*?tps: ([\d,]{1,15})(?!\d)"
)
_TITAN_BATCH = re.compile(r"global batch size (\d{1,12})\b.*?sequence length (\d{1,12})\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRun:
    """What a log says."""

    kind: LogKind
    step_s: tuple[float, ...]
    """Of each logged step in order, the first ones left out."""
    peak_bytes: int
    """Of the fullest rank; 0: the log does not say."""


def read_log(path: Path, plan: Plan, skip: int) -> LoggedRun:
    """The run that `plan` is compared with, without its `skip` first logged steps.

    Raises `UserError` where the log is neither's, of another batch (stale), or too short.
    """
    name = str(path)
    lines = [_COLOR.sub("", line) for line in read_text(path).splitlines()]
    run = _megatron(lines, plan, name) or _titan(lines, plan, name)
    if run is None:
        raise UserError(
            "no line of it is a step of Megatron-LM or torchtitan",
            hint="give what the ranks printed; Megatron-LM logs steps with `--log-interval 1`",
            place=name,
        )
    if len(run.step_s) <= skip:
        raise UserError(
            f"it has {len(run.step_s)} steps, and the first {skip} are left out",
            hint="train longer, or lower `--skip`",
            place=name,
            kind="failed",
        )
    return LoggedRun(kind=run.kind, step_s=run.step_s[skip:], peak_bytes=run.peak_bytes)


def _megatron(lines: list[str], plan: Plan, name: str) -> LoggedRun | None:
    steps: dict[int, float] = {}
    peak = 0.0
    for line in lines:
        if found := _MEGATRON.search(line):
            step, seconds = int(found[1]), float(found[2]) / 1e3
            steps[step] = max(seconds, steps.get(step, 0.0))
            if found[3]:
                _same(name, "global batch", int(found[3]), plan.job.global_batch)
        elif found := _MEGATRON_MEMORY.search(line):
            peak = max(peak, float(found[1]) * 2**20)
    if not steps:
        return None
    return LoggedRun(kind="Megatron-LM", step_s=_ordered(steps), peak_bytes=int(peak))


def _titan(lines: list[str], plan: Plan, name: str) -> LoggedRun | None:
    per_device = plan.job.tokens_per_step / plan.chosen.config.num_devices
    steps: dict[int, float] = {}
    peak = 0.0
    for line in lines:
        if found := _TITAN.search(line):
            step, rate = int(found[1]), int(found[3].replace(",", "") or 0)
            if rate:
                steps[step] = max(per_device / rate, steps.get(step, 0.0))
            peak = max(peak, float(found[2]) * 2**30)
        elif found := _TITAN_BATCH.search(line):
            _same(name, "global batch", int(found[1]), plan.job.global_batch)
            _same(name, "sequence length", int(found[2]), plan.job.seq_len)
    if not steps:
        return None
    return LoggedRun(kind="torchtitan", step_s=_ordered(steps), peak_bytes=int(peak))


def _ordered(steps: dict[int, float]) -> tuple[float, ...]:
    return tuple(steps[step] for step in sorted(steps))


def _same(name: str, what: str, logged: int, planned: int) -> None:
    if logged != planned:
        raise UserError(
            f"the run has a {what} of {logged}, the plan one of {planned}",
            hint="give the log of the plan's own run",
            place=name,
            kind="stale",
        )
