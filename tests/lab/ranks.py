"""Jobs of torch.distributed over a lab's hosts, each in about a second.

`torchrun` takes some 20 s here, nearly all of it to import torch once per rank. `Ranks`
starts one process (`rank_server.py`) that imports torch once; for each job it forks a process per
rank, which joins its host. The function of a job is imported by name and called in each rank, with
a gloo group of all ranks around it; what it returns, as JSON, is the rank's result.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from tests.lab.lab import ROOT, Lab

_FIRST_PORT = 29_500
_GRACE_S = 20.0
"""For the server to end a job that has no time left."""


class JobError(RuntimeError):
    """Ranks failed; the message has what each of them wrote, traceback included."""


class Ranks:
    """A server of ranks, for any number of labs and jobs, from `with` to its end."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._num_jobs = 0

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.lab.rank_server"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.kill()  # ranks end with it
            self._server.communicate()

    def run(
        self,
        lab: Lab,
        function: Callable[..., Any],
        *,
        placed: Sequence[str] | None = None,
        nic: str | None = None,
        timeout_s: float = 60.0,
        free: bool = False,
        **arguments: Any,
    ) -> list[Any]:
        """Result of each rank.

        `placed`: host of each rank (`Topology.placed`; None: hosts as listed). `function` is one of
        a module; `arguments` are its own. `free`: ranks begin without their CPU quotas, and join
        the group that LAB_PROCS names when they want to. `JobError` where a rank fails or takes
        longer.
        """
        assert self._server is not None, "only inside `with`"
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        placed = tuple(placed or lab.topology.placed())
        self._num_jobs += 1
        job = {
            "function": f"{function.__module__}:{function.__qualname__}",
            "arguments": arguments,
            "timeout_s": timeout_s,
            "ranks": [self._rank(lab, placed, rank, nic, free) for rank in range(len(placed))],
        }
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        said = json.loads(self._server.stdout.readline() or '{"error": "the server ended"}')
        if "error" in said:
            raise JobError(said["error"])
        return list(said["results"])

    def _rank(
        self, lab: Lab, placed: Sequence[str], rank: int, nic: str | None, free: bool
    ) -> dict[str, Any]:
        """What the server needs to know of a rank."""
        host = placed[rank]
        device = nic or lab.topology.host(host).nics[0].name
        local = placed[:rank].count(host)
        env = {
            "RANK": rank,
            "WORLD_SIZE": len(placed),
            "LOCAL_RANK": local,
            "LOCAL_WORLD_SIZE": placed.count(host),
            "MASTER_ADDR": lab.topology.address(placed[0], nic),
            # Another one each time: the last job's may not be free yet.
            "MASTER_PORT": _FIRST_PORT + self._num_jobs % 1000,
            "GLOO_SOCKET_IFNAME": device,
        }
        procs = str(lab.quotas.procs(host, local)) if lab.quotas else None
        shown = f"rank {rank} on {host}"
        if procs and free:
            env["LAB_PROCS"], procs = procs, None
        texts = {name: str(value) for name, value in env.items()}
        return {"name": shown, "pid": lab.pid(host), "procs": procs, "env": texts}
