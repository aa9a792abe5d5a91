"""What two or more agents measure together: messages of a pair, collectives, streams.

Every task makes a group of its own from the store, without a world: hosts that are not part of it,
or are gone, do not matter, and each wait ends by a time limit.
"""

import itertools
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from launch.link_wire import MESSAGE_BYTES, Message
from profiler.measure import links
from profiler.measure.timer import Agree, Limits, collect, elapsed_s, summarise
from profiler.profile import Timing

_FIRST = 0.25
"""Share of a stream that is not counted: buffers fill, and the others start."""
_MESSAGES, _PINGS, _STREAM = 0.2, 0.15, 0.65
"""Shares of a direction's time: messages of several sizes, of one element, and a stream."""
_UNDER_WAY = 4
"""Messages of a stream at a time, so that a host that is late to look at one holds up nothing."""
_PARTS = 8
_MESSAGE_S = 5e-3
_PRODUCT = {"cpu": 256, "cuda": 4096}
"""Rows of a matrix: large enough to be limited by computing, small enough to take milliseconds."""
_AT_ONCE = 4


class Transfers:
    """This host's part in tasks."""

    def __init__(self, name: str, store: tuple[str, int], own_address: str, run: str) -> None:
        self.name, self.run, self.own_address = name, run, own_address
        self.store_host, self.store_port = store
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._under_way = _UNDER_WAY if self.device.type == "cpu" else 1

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
            "work": self._work,
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

    def _work(self, task: Message) -> Message:
        """Matrix products for some time, in parts."""
        size = _PRODUCT[self.device.type]
        kind = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        a = torch.ones(size, size, device=self.device, dtype=kind)
        rates: list[float] = []
        for _ in range(_PARTS + 1):
            number, seconds = 0, 0.0
            while seconds < task["seconds"] / (_PARTS + 1):
                seconds += elapsed_s(self.device, lambda: [a @ a for _ in range(_AT_ONCE)])
                number += _AT_ONCE
            rates.append(2 * size**3 * number / seconds)
        kept = rates[1:]  # the first part warms up
        low, middle, high = statistics.quantiles(kept, n=4)
        return {"flops_per_s": middle, "spread": (high - low) / 2 / middle}

    def _pair(self, task: Message) -> Message:
        """Both directions, one after the other; each has what its sender and receiver saw."""
        group = self._group_of(task, self._store(task))
        own: Message = {}
        for ranks in ((0, 1), (1, 0)):
            agree = links.sender_decides(group, ranks, self.device)
            limits = Limits(budget_s=_MESSAGES * task["budget_s"], tolerance=0.01)
            times = links.measure_p2p(
                group, ranks, task["sizes"], limits, self.device, agree, cut=True
            )
            pings = Limits(budget_s=_PINGS * task["budget_s"], tolerance=0.0)
            least = self._least_s(group, ranks, pings, agree)
            # The sender knows how long a message takes, and both must make it as long.
            size = torch.tensor([_message_bytes(times)], dtype=torch.int64, device=self.device)
            links.message(group, size, *ranks)
            buffer = torch.zeros(int(size.item()) // 4, device=self.device)
            seconds = _STREAM * task["budget_s"]
            if group.rank() == ranks[0]:
                own["points"] = [(size, time.median_s) for size, time in times]
                own["latency_s"] = least
                self._send(group, ranks[1], buffer, seconds)
            else:
                rate, spread = self._receive(group, ranks[0], buffer, seconds)
                own["bytes_per_s"], own["spread"] = rate, spread
        return own

    def _least_s(
        self, group: dist.ProcessGroup, ranks: tuple[int, int], limits: Limits, agree: Agree
    ) -> float:
        """Half of the fastest round trip of one element: that of hosts which do nothing else."""
        small = torch.zeros(1, device=self.device)

        def there_and_back() -> None:
            links.message(group, small, *ranks)
            links.message(group, small, *ranks[::-1])

        rows = collect(lambda: (elapsed_s(self.device, there_and_back),), limits, agree)
        return min(row[0] for row in rows) / 2

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
            self._send(group, 1, buffer, task["seconds"])
            return {}
        rate, _ = self._receive(group, 0, buffer, task["seconds"])
        return {"bytes_per_s": rate}

    def _together(self, task: Message) -> None:
        store = self._store(task | {"part": ""})
        if store.add("ready", 1) == task["members"]:
            store.set("go", "1")
        store.wait(["go"], timedelta(seconds=task["timeout_s"]))

    def _send(
        self, group: dist.ProcessGroup, target: int, buffer: torch.Tensor, seconds: float
    ) -> None:
        """Until the time is over; as many last messages as are under way begin with a 1."""
        last = buffer.clone()
        last[0] = 1
        works: deque[Any] = deque()

        def send(message: torch.Tensor) -> None:
            if len(works) == self._under_way:
                works.popleft().wait()
                self._finish()
            works.append(group.send([message], target, 0))

        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            send(buffer)
        for _ in range(self._under_way):
            send(last)
        while works:
            works.popleft().wait()
        self._finish()

    def _receive(
        self, group: dist.ProcessGroup, source: int, buffer: torch.Tensor, seconds: float
    ) -> tuple[float, float]:
        """Bytes per second from the first to the last message that count, and the relative spread
        of its parts."""
        begin = time.perf_counter()
        stamps: list[float] = []
        works: deque[Any] = deque()
        for _ in range(self._under_way):
            own = torch.empty_like(buffer)
            works.append((own, group.recv([own], source, 0)))
        while works:
            own, work = works.popleft()
            work.wait()
            self._finish()
            stamps.append(time.perf_counter() - begin)
            if not own[0]:
                works.append((own, group.recv([own], source, 0)))
        return _rate(stamps, buffer.numel() * buffer.element_size(), seconds)

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _rate(stamps: Sequence[float], num_bytes: int, seconds: float) -> tuple[float, float]:
    """Of messages that came at these times, the first ones left out: the median over half of the
    stream, so that a moment in which the receiver did not look moves nothing."""
    counted = [t for t in stamps if _FIRST * seconds <= t <= seconds]
    if len(counted) < 3:
        counted = list(stamps)
    half = len(counted) // 2
    spans = [late - early for early, late in zip(counted, counted[half:], strict=False)]
    rate = num_bytes * half / summarise(spans).median_s
    ends = counted[:: max(1, (len(counted) - 1) // _PARTS)]
    parts = summarise([late - early for early, late in itertools.pairwise(ends)])
    return rate, parts.spread_s / parts.median_s if parts.median_s > 0 else 0.0


def _message_bytes(times: Sequence[tuple[int, Timing]]) -> int:
    """Of a message of a stream, by the largest that was timed: a power of 2."""
    size, timing = times[-1]
    wanted = size / max(timing.median_s, 1e-9) * _MESSAGE_S
    return 1 << round(math.log2(min(max(wanted, MESSAGE_BYTES[0]), MESSAGE_BYTES[1])))


def _nccl_nic(nic: str) -> None:
    """NCCL reads its interface once per process."""
    chosen = os.environ.setdefault("NCCL_SOCKET_IFNAME", nic) if nic else ""
    if nic and chosen != nic:
        raise RuntimeError(f"NCCL uses {chosen} in this process: measure {nic} in a run of its own")
