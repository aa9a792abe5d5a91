"""What two or more agents measure together: messages of a pair, collectives, streams.

Every task makes a group of its own from the store, without a world: hosts that are not part of it,
or are gone, do not matter, and each wait ends by a time limit.
"""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from launch.link_wire import Message
from profiler.measure import links
from profiler.measure.timer import Limits

_FIRST = 0.25
"""Share of a stream that is not counted: buffers fill, and the others start."""


class Transfers:
    """This host's part in tasks."""

    def __init__(self, name: str, store: tuple[str, int], own_address: str, run: str) -> None:
        self.name, self.run, self.own_address = name, run, own_address
        self.store_host, self.store_port = store
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @property
    def backend(self) -> str:
        """What moves the messages."""
        return "gloo" if self.device.type == "cpu" else "nccl"

    def do(self, task: Message) -> Message:
        """Result of this host's part."""
        kinds: dict[str, Callable[[Message], Message]] = {
            "pair": self._pair,
            "group": self._group,
            "stream": self._stream,
        }
        return kinds[task["kind"]](task)

    def _store(self, task: Message) -> Store:
        # A client of its own: one that waits holds up all others' use of the same connection.
        limit = timedelta(seconds=task["timeout_s"])
        client = TCPStore(self.store_host, self.store_port, wait_for_workers=False, timeout=limit)
        return PrefixStore(f"{self.run}/{task['task']}/{task.get('part', '')}/", client)

    def _group_of(self, task: Message, store: Store) -> dist.ProcessGroup:
        rank, size = task["hosts"].index(self.name), len(task["hosts"])
        limit = timedelta(seconds=task["timeout_s"])
        group = dist.ProcessGroup(store, rank, size)
        kinds = dist.ProcessGroup.BackendType
        if self.device.type == "cpu":
            gloo = dist.ProcessGroupGloo(store, rank, size, self._gloo(task["nic"], limit))
            group._register_backend(self.device, kinds.GLOO, gloo)
            group._set_default_backend(kinds.GLOO)
            return group
        _nccl_nic(task["nic"])
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = limit
        nccl = dist.ProcessGroupNCCL(store, rank, size, options)
        group._register_backend(self.device, kinds.NCCL, nccl)
        group._set_default_backend(kinds.NCCL)
        return group

    def _gloo(self, nic: str, limit: timedelta) -> Any:
        make: Any = dist.ProcessGroupGloo.create_device
        options: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [make(interface=nic) if nic else make(hostname=self.own_address)]
        options._timeout = limit
        options._threads = 1
        return options

    def _pair(self, task: Message) -> Message:
        """Both directions, one after the other; the result is that of which we are the sender."""
        group = self._group_of(task, self._store(task))
        limits = Limits(budget_s=task["budget_s"], tolerance=0.01)
        own: list[tuple[int, float, float]] = []
        for ranks in ((0, 1), (1, 0)):
            agree = links.sender_decides(group, ranks, self.device)
            times = links.measure_p2p(
                group, ranks, task["sizes"], limits, self.device, agree, cut=True
            )
            if group.rank() == ranks[0]:
                own = [(size, time.median_s, time.spread_s) for size, time in times]
        return {"points": own}

    def _group(self, task: Message) -> Message:
        group = self._group_of(task, self._store(task))
        limits = Limits(budget_s=task["budget_s"], tolerance=0.01, warmup=1, check_every=3)
        times = links.measure_collective(
            task["op"],
            task["sizes"],
            limits,
            group,
            self.device,
            links.leader_decides(group, self.device),
            links.mean_over(group, self.device),
        )
        return {"points": [(size, time.median_s, time.spread_s) for size, time in times]}

    def _stream(self, task: Message) -> Message:
        """Messages from the first to the second for some seconds, all streams at the same time."""
        store = self._store(task)
        group = self._group_of(task, store)
        buffer = torch.zeros(max(1, task["num_bytes"] // 4), device=self.device)
        links.message(group, buffer, 0, 1)
        links.message(group, buffer[:1], 1, 0)
        self._together(task)
        if group.rank() == 0:
            self._send(group, buffer, task["seconds"])
            return {}
        return {"bytes_per_s": self._receive(group, buffer, task["seconds"])}

    def _together(self, task: Message) -> None:
        store = self._store(task | {"part": ""})
        if store.add("ready", 1) == task["members"]:
            store.set("go", "1")
        store.wait(["go"], timedelta(seconds=task["timeout_s"]))

    def _send(self, group: dist.ProcessGroup, buffer: torch.Tensor, seconds: float) -> None:
        """Until the time is over; the last message begins with a 1."""
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            group.send([buffer], 1, 0).wait()
            self._finish()
        buffer[0] = 1
        group.send([buffer], 1, 0).wait()
        self._finish()

    def _receive(self, group: dist.ProcessGroup, buffer: torch.Tensor, seconds: float) -> float:
        """Bytes per second between the first and the last message that count."""
        begin = time.perf_counter()
        stamps: list[float] = []
        while not stamps or not buffer[0]:
            group.recv([buffer], 0, 0).wait()
            self._finish()
            stamps.append(time.perf_counter() - begin)
        counted = [t for t in stamps if _FIRST * seconds <= t <= seconds]
        if len(counted) < 3:
            counted = stamps
        if len(counted) < 2:
            raise RuntimeError("the stream was too short to be timed")
        num_bytes = buffer.numel() * buffer.element_size()
        return num_bytes * (len(counted) - 1) / (counted[-1] - counted[0])

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _nccl_nic(nic: str) -> None:
    """NCCL reads its interface once per process."""
    chosen = os.environ.setdefault("NCCL_SOCKET_IFNAME", nic) if nic else ""
    if nic and chosen != nic:
        raise RuntimeError(f"NCCL uses {chosen} in this process: measure {nic} in a run of its own")
