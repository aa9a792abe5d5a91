"""Transfers between ranks: one message from one rank to another, and the collectives of a group.

A message one way cannot be timed by one clock. The sender times `n bytes there, 1 element back`;
half of the round trip with one element both ways is taken off, which leaves the time of the n
bytes one way and keeps the two directions of a pair apart.

Bytes are those of the whole tensor: what an all-reduce reduces, what an all-gather returns, what a
reduce-scatter or an all-to-all takes of each rank.

Groups are any that torch has: parts of its world, or backends made from a store without one.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from profiler.link_profile import GroupOp
from profiler.measure.timer import Agree, Limits, collect, elapsed_s, summarise, sustained
from profiler.profile import Scope, Timing, TransferEntry, TransferOp

Group = dist.ProcessGroup
_ELEMENT_BYTES = 4


def scope_of(hosts: Sequence[str]) -> Scope:
    """Scope of a group whose ranks live on `hosts`."""
    return "node" if len(set(hosts)) == 1 else "cluster"


def _buffer(num_bytes: int, device: torch.device) -> Tensor:
    return torch.zeros(max(1, num_bytes // _ELEMENT_BYTES), device=device)


def message(group: Group, tensor: Tensor, source: int, target: int) -> None:
    """Move `tensor` from rank `source` of the group to `target`; called by both."""
    if group.rank() == source:
        group.send([tensor], target, 0).wait()
    else:
        group.recv([tensor], source, 0).wait()


def measure_p2p(
    group: Group,
    ranks: tuple[int, int],
    sizes: Sequence[int],
    limits: Limits,
    device: torch.device,
    agree: Agree,
    *,
    cut: bool = False,
) -> list[tuple[int, Timing]]:
    """(bytes, time one way) of messages from the first rank to the second; called by both.

    Only the sender's times are meaningful. `agree` takes the sender's word. `cut`: sizes, which
    ascend, end before the first whose least repetitions take more than twice its share of time.
    """
    source, target = ranks
    small = _buffer(_ELEMENT_BYTES, device)

    def round_trip(payload: Tensor) -> float:
        def there_and_back() -> None:
            message(group, payload, source, target)
            message(group, small, target, source)

        return elapsed_s(device, there_and_back)

    share = _shared(limits, len(sizes) + 1)
    back = summarise([row[0] for row in collect(lambda: (round_trip(small),), share, agree)])
    results: list[tuple[int, Timing]] = []
    least = limits.warmup + max(limits.check_every, limits.min_repeats)
    for num_bytes in sizes:
        if cut and len(results) > 1:
            long = _next_s(results, num_bytes) * least > 2 * share.budget_s
            if agree(long):
                break
        payload = _buffer(num_bytes, device)
        rows = collect(lambda payload=payload: (round_trip(payload),), share, agree)  # type: ignore[misc]
        one_way = [max(row[0] / 2, row[0] - back.median_s / 2) for row in rows]
        results.append((num_bytes, summarise(one_way)))
    return results


def _next_s(results: list[tuple[int, Timing]], num_bytes: int) -> float:
    """Of a larger message, by the line through the last two."""
    (few, early), (more, late) = results[-2:]
    slope = max(0.0, late.median_s - early.median_s) / (more - few)
    return late.median_s + slope * (num_bytes - more)


def _shared(limits: Limits, parts: int) -> Limits:
    return dataclasses.replace(limits, budget_s=limits.budget_s / parts)


def _collective(
    op: TransferOp | GroupOp, num_bytes: int, group: Group, device: torch.device
) -> Callable[[], object]:
    size = group.size()
    part_bytes = max(_ELEMENT_BYTES, num_bytes // size)
    part, whole = _buffer(part_bytes, device), _buffer(part_bytes * size, device)
    if op == "all_reduce":
        return lambda: group.allreduce([whole]).wait()
    if op == "all_gather":
        return lambda: group._allgather_base(whole, part).wait()
    if op == "all_to_all":
        other = torch.empty_like(whole)
        return lambda: group.alltoall_base(other, whole, [], []).wait()
    options = dist.ReduceScatterOptions()
    return lambda: group._reduce_scatter_base(part, whole, options).wait()


def measure_collective(
    op: TransferOp | GroupOp,
    sizes: Sequence[int],
    limits: Limits,
    group: Group,
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
        results.append((num_bytes, sustained([row[0] for row in reduce(rows)])))
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


def leader_decides(group: Group, device: torch.device) -> Agree:
    """The wish of the group's first rank counts for all of its ranks."""

    def agree(wish: bool) -> bool:
        flag = torch.tensor([int(wish)], device=device)
        group.broadcast(flag, 0).wait()
        return bool(flag.item())

    return agree


def sender_decides(group: Group, ranks: tuple[int, int], device: torch.device) -> Agree:
    """The wish of the first of two ranks counts for both."""

    def agree(wish: bool) -> bool:
        flag = torch.tensor([float(wish)], device=device)
        message(group, flag, *ranks)
        return bool(flag.item())

    return agree


def mean_over(
    group: Group, device: torch.device
) -> Callable[[list[tuple[float, ...]]], list[tuple[float, ...]]]:
    """Element-wise mean over the ranks of a group, of equally many rows each."""

    def reduce(rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        table = torch.tensor(rows, dtype=torch.float64, device=device)
        group.allreduce([table]).wait()
        means = table / group.size()
        return [tuple(row) for row in means.tolist()]

    return reduce
