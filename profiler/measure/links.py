"""Transfers between ranks: one message from one rank to another, and the collectives of a group.

A message one way cannot be timed by one clock. The sender times `n bytes there, 1 element back`;
half of the round trip with one element both ways is taken off, which leaves the time of the n
bytes one way and keeps the two directions of a pair apart.

Bytes are those of the whole tensor: what an all-reduce reduces, what an all-gather returns, what a
reduce-scatter takes.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from profiler.measure.timer import Agree, Limits, collect, elapsed_s, summarise
from profiler.profile import Scope, Timing, TransferEntry, TransferOp

_ELEMENT_BYTES = 4


def scope_of(hosts: Sequence[str]) -> Scope:
    """Scope of a group whose ranks live on `hosts`."""
    return "node" if len(set(hosts)) == 1 else "cluster"


def _buffer(num_bytes: int, device: torch.device) -> Tensor:
    return torch.zeros(max(1, num_bytes // _ELEMENT_BYTES), device=device)


def _message(tensor: Tensor, source: int, target: int) -> None:
    """Move `tensor` from `source` to `target`; called by both."""
    work = (
        dist.P2POp(dist.isend, tensor, target)
        if dist.get_rank() == source
        else dist.P2POp(dist.irecv, tensor, source)
    )
    for request in dist.batch_isend_irecv([work]):
        request.wait()


def measure_p2p(
    ranks: tuple[int, int], sizes: Sequence[int], limits: Limits, device: torch.device, agree: Agree
) -> list[tuple[int, Timing]]:
    """(bytes, time one way) of messages from the first rank to the second; called by both.

    Only the sender's times are meaningful. `agree` takes the sender's word.
    """
    source, target = ranks
    small = _buffer(_ELEMENT_BYTES, device)

    def round_trip(payload: Tensor) -> float:
        def there_and_back() -> None:
            _message(payload, source, target)
            _message(small, target, source)

        return elapsed_s(device, there_and_back)

    share = _shared(limits, len(sizes) + 1)
    back = summarise([row[0] for row in collect(lambda: (round_trip(small),), share, agree)])
    results = []
    for num_bytes in sizes:
        payload = _buffer(num_bytes, device)
        rows = collect(lambda payload=payload: (round_trip(payload),), share, agree)  # type: ignore[misc]
        one_way = [max(row[0] / 2, row[0] - back.median_s / 2) for row in rows]
        results.append((num_bytes, summarise(one_way)))
    return results


def _shared(limits: Limits, parts: int) -> Limits:
    return dataclasses.replace(limits, budget_s=limits.budget_s / parts)


def _collective(
    op: TransferOp, num_bytes: int, group: dist.ProcessGroup, device: torch.device
) -> Callable[[], object]:
    size = dist.get_world_size(group)
    part_bytes = max(_ELEMENT_BYTES, num_bytes // size)
    part, whole = _buffer(part_bytes, device), _buffer(part_bytes * size, device)
    if op == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if op == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, part, group=group)
    return lambda: dist.reduce_scatter_tensor(part, whole, group=group)


def measure_collective(
    op: TransferOp,
    sizes: Sequence[int],
    limits: Limits,
    group: dist.ProcessGroup,
    device: torch.device,
    agree: Agree,
    reduce: Callable[[list[tuple[float, ...]]], list[tuple[float, ...]]],
) -> list[tuple[int, Timing]]:
    """(bytes, time) of one collective, means over ranks; called by every rank of the group."""
    share = _shared(limits, len(sizes))
    results = []
    for num_bytes in sizes:
        work = _collective(op, num_bytes, group, device)
        rows = collect(lambda work=work: (elapsed_s(device, work),), share, agree)  # type: ignore[misc]
        results.append((num_bytes, summarise([row[0] for row in reduce(rows)])))
    return results


def transfer_entries(
    op: TransferOp, ranks: tuple[int, ...], scope: Scope, times: Sequence[tuple[int, Timing]]
) -> tuple[TransferEntry, ...]:
    """Entries of the profile for one operation at several sizes."""
    return tuple(
        TransferEntry(
            op=op, ranks=ranks, scope=scope, num_bytes=num_bytes, time=time, source="measured"
        )
        for num_bytes, time in times
    )


def leader_decides(group: dist.ProcessGroup, device: torch.device) -> Agree:
    """The wish of the group's first rank counts for all of its ranks."""
    leader = dist.get_global_rank(group, 0)

    def agree(wish: bool) -> bool:
        flag = torch.tensor([int(wish)], device=device)
        dist.broadcast(flag, src=leader, group=group)
        return bool(flag.item())

    return agree


def sender_decides(ranks: tuple[int, int], device: torch.device) -> Agree:
    """The wish of the first of two ranks counts for both."""

    def agree(wish: bool) -> bool:
        flag = torch.tensor([float(wish)], device=device)
        _message(flag, *ranks)
        return bool(flag.item())

    return agree


def mean_over(
    group: dist.ProcessGroup, device: torch.device
) -> Callable[[list[tuple[float, ...]]], list[tuple[float, ...]]]:
    """Element-wise mean over the ranks of a group, of equally many rows each."""

    def reduce(rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        table = torch.tensor(rows, dtype=torch.float64, device=device)
        dist.all_reduce(table, group=group)
        means = table / dist.get_world_size(group)
        return [tuple(row) for row in means.tolist()]

    return reduce
