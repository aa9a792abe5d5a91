"""Forks ranks that have torch already: `python -m tests.lab.rank_server`, driven by `ranks.py`.

One JSON line in is a job, one JSON line out its results or its error. It ends when its stdin does.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import IO, Any, NoReturn

import torch
import torch.distributed as dist

from launch.scheduler.orphans import end_with_parent
from tests.lab.enter import run_inside

_GRACE_S = 1.0
"""After the first rank fails, for others to say why they do."""
_LAST_S = 2.0
"""After a job's time is over, for ranks to write where they are."""
_POLL_S = 0.002


@dataclass(slots=True)
class Rank:
    """One process of a job; `status` is that of waitpid, None while it runs."""

    name: str
    pid: int
    result: IO[bytes]
    log: IO[bytes]
    status: int | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended badly."""
        return bool(self.status)

    def story(self) -> str:
        """What there is to say of its failure."""
        self.log.seek(0)
        said = self.log.read().decode(errors="replace").strip()
        if self.status is None:
            how = "did not end in time"
        elif os.WIFSIGNALED(self.status):
            how = f"was ended by {signal.Signals(os.WTERMSIG(self.status)).name}"
        else:
            how = f"ended with status {os.waitstatus_to_exitcode(self.status)}"
        return f"{self.name} {how}\n{said}".strip()


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Results of all ranks, or the stories of those that failed, in the order in which they did."""
    importlib.import_module(job["function"].split(":")[0])  # once, not in each rank
    gc.freeze()  # ranks need not look for garbage among the modules
    with contextlib.ExitStack() as files:
        ranks = []
        for spec in job["ranks"]:
            result = files.enter_context(tempfile.TemporaryFile())
            log = files.enter_context(tempfile.TemporaryFile())
            pid = os.fork()
            if pid == 0:
                end_with_parent(signal.SIGKILL)
                run_inside(spec["pid"], spec["procs"], partial(_rank, job, spec, result, log))
            ranks.append(Rank(spec["name"], pid, result, log))
        failed = _wait(ranks, job["timeout_s"])
        if failed:
            return {"error": "\n\n".join(rank.story() for rank in failed)}
        for rank in ranks:
            rank.result.seek(0)
        return {"results": [json.load(rank.result) for rank in ranks]}


def _wait(ranks: list[Rank], timeout_s: float) -> list[Rank]:
    """Wait for all; those that failed, first the first. No rank is left running."""
    deadline = time.monotonic() + timeout_s + _LAST_S
    failed: list[Rank] = []
    while left := [rank for rank in ranks if rank.status is None]:
        for rank in left:
            pid, status = os.waitpid(rank.pid, os.WNOHANG)
            if pid:
                rank.status = status
                if rank.failed:
                    failed.append(rank)
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        if time.monotonic() > deadline:
            if not failed:
                failed = left
            break
        time.sleep(_POLL_S)
    for rank in ranks:
        if rank.status is None:
            os.kill(rank.pid, signal.SIGKILL)
            os.waitpid(rank.pid, 0)
    return failed


def _rank(job: dict[str, Any], spec: dict[str, Any], result: IO[bytes], log: IO[bytes]) -> NoReturn:
    """A rank, inside its host."""
    status = 1
    try:
        for fd in (1, 2):
            os.dup2(log.fileno(), fd)
        faulthandler.dump_traceback_later(job["timeout_s"], exit=True, file=log)
        os.environ.update(spec["env"])
        module, name = job["function"].split(":")
        function = getattr(importlib.import_module(module), name)
        timeout = timedelta(seconds=job["timeout_s"] + 60)  # the job ends first, with its stacks
        dist.init_process_group("gloo", timeout=timeout)
        result.write(json.dumps(function(**job["arguments"])).encode())
        result.flush()
        dist.barrier()  # no rank takes the store away while another needs it
        dist.destroy_process_group()
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Serve jobs."""
    torch.set_num_threads(1)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = run_job(json.loads(line))
        except Exception:
            reply = {"error": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
