"""Ranks for tests: import torch once, fork, run a function in each rank, collect what it returns.

A rank that raises ends the run at once with its traceback; ranks that hang are killed at the time
limit; ranks die with the process that started them. Forking is safe as long as the parent has run
no model itself.
"""

import contextlib
import ctypes
import datetime
import gc
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PR_SET_PDEATHSIG = 1


class RankError(AssertionError):
    """A rank failed or hung; the message holds its traceback."""


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0
) -> list[Any]:
    """`function(*args)` in each of `world_size` ranks with gloo initialised -> results by rank."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        with _forked(world_size, function, args, Path(folder), timeout_s) as pids:
            deadline = time.monotonic() + timeout_s
            while pids and time.monotonic() < deadline and not _failures(Path(folder)):
                for rank, pid in list(pids.items()):
                    if os.waitpid(pid, os.WNOHANG)[0]:
                        del pids[rank]
                time.sleep(0.005)
            hung = sorted(pids)
        return _results(world_size, Path(folder), hung, timeout_s)


@contextlib.contextmanager
def _forked(
    world_size: int, function: Callable[..., Any], args: Any, folder: Path, timeout_s: float
) -> Iterator[dict[int, int]]:
    """rank -> pid of the ranks that still run; none is left at the end."""
    pids: dict[int, int] = {}
    parent = os.getpid()
    gc.freeze()  # ranks need not look for garbage among the modules, nor copy their pages for it
    try:
        for rank in range(world_size):
            pid = os.fork()
            if pid == 0:
                _child(parent, rank, world_size, function, args, folder, timeout_s)
            pids[rank] = pid
        yield pids
    finally:
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        gc.unfreeze()


def _child(
    parent: int, rank: int, world_size: int, function: Callable[..., Any], args: Any, folder: Path,
    timeout_s: float,
) -> None:  # fmt: skip
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )  # fmt: skip
        _write(folder / f"ok-{rank}", pickle.dumps(function(*args)))
        dist.barrier()  # nobody closes connections that a slower rank still needs
        dist.destroy_process_group()
        status = 0
    except BaseException:
        _write(folder / f"failed-{time.monotonic():020.6f}-{rank}", traceback.format_exc().encode())
    finally:
        os._exit(status)


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}")
    part.write_bytes(content)
    part.rename(path)


def _failures(folder: Path) -> list[Path]:
    return sorted(folder.glob("failed-*"))


def _results(world_size: int, folder: Path, hung: list[int], timeout_s: float) -> list[Any]:
    failures = _failures(folder)
    if failures:
        rank = failures[0].name.rpartition("-")[2]
        raise RankError(f"rank {rank} of {world_size} failed:\n{failures[0].read_text()}")
    if hung:
        raise RankError(f"ranks {hung} of {world_size} were still running after {timeout_s} s")
    paths = [folder / f"ok-{rank}" for rank in range(world_size)]
    dead = [rank for rank, path in enumerate(paths) if not path.exists()]
    if dead:
        raise RankError(f"ranks {dead} of {world_size} died without a word")
    return [pickle.loads(path.read_bytes()) for path in paths]
