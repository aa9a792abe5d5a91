"""Bytes that a piece of work keeps for its backward, and the most it holds at any moment.

Kept bytes are seen through `torch.autograd.graph.saved_tensors_hooks`: the distinct storages that
a graph saves and that a second, equal graph does not share. What both graphs share outlives the
micro-batch: parameters, buffers, tables. A DTensor counts with its local shard.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lives on this rank."""
    if isinstance(tensor, DTensor):
        tensor = tensor._local_tensor  # `to_local` would record an operation in the graph
    return tensor.elem if isinstance(tensor, AsyncCollectiveTensor) else tensor


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of the storages that one call of `forward`, with fresh inputs, saves."""
    first, held = _saved_storages(forward)
    second, also_held = _saved_storages(forward)
    del held, also_held
    return sum(size for pointer, size in second.items() if pointer not in first)


def _saved_storages(forward: Callable[[], Tensor]) -> tuple[dict[int, int], object]:
    """Address -> bytes of the storages saved, and what keeps them alive."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = local(tensor).untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    return found, output


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes allocated at once by `work` above what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        work()
    live: dict[int, int] = {}
    level = peak = 0
    for address, num_bytes in _allocations(seen):
        # What gloo's threads free goes unseen; it is gone when its address is handed out again.
        level -= live.pop(address, 0)
        if num_bytes > 0:
            live[address] = num_bytes
            level += num_bytes
        peak = max(peak, level)
    return peak


def _allocations(seen: profile) -> list[tuple[int, int]]:
    """(address, bytes) allocated, bytes below 0: freed; on the CPU, in the order of time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0]
    changes.sort(key=lambda e: float(e["ts"]))
    return [(int(e["args"]["Addr"]), int(e["args"]["Bytes"])) for e in changes]
