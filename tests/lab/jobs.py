"""What ranks of a lab do in its tests, by `Ranks.run`: a gloo group is there already."""

import os
import socket
import time

import torch
import torch.distributed as dist


def whereabouts() -> dict[str, str | int]:
    """Who a rank is and where."""
    return {
        "rank": dist.get_rank(),
        "local_rank": int(os.environ["LOCAL_RANK"]),
        "host": socket.gethostname(),
    }


def all_reduce(num_bytes: int, times: int) -> list[float]:
    """Seconds of each all-reduce of fp32 numbers, as this rank sees them; the first is not among
    them.
    """
    buffer = torch.ones(num_bytes // 4)
    seconds = []
    for _ in range(times + 1):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(buffer)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def fail(rank: int) -> None:
    """One rank raises; the others wait for it."""
    if dist.get_rank() == rank:
        raise ArithmeticError(f"rank {rank} cannot go on")
    dist.barrier()


def hang(rank: int) -> None:
    """One rank does not come."""
    if dist.get_rank() == rank:
        time.sleep(600)
    dist.barrier()
