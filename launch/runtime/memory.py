"""Peak tensor bytes of one step on one rank.

On a CPU the peak is that of a running sum over the allocator's events (torch.profiler), on top of
what lives from step to step; on CUDA it is `torch.cuda.max_memory_allocated`. Both count bytes of
live tensors, not what an allocator or the system reserves.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

DEFINITION = (
    "bytes of live tensors at the peak of one step: weights, gradients and optimizer state "
    "by their sizes, pipeline receive buffers apart, and the rest of the peak as activations "
    "and workspace"
)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Sum of sizes."""
    return sum(t.nbytes for t in tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Tensors of the optimizer's state."""
    values = [v for state in optimizer.state.values() for v in state.values()]
    return [v for v in values if isinstance(v, Tensor)]


def _cpu_rise(run: Callable[[], object]) -> int:
    """Most bytes above the start at any moment of `run`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        run()
    results = prof.profiler.kineto_results if prof.profiler is not None else None
    if results is None:
        raise RuntimeError("the profiler kept no events")
    events = [e for e in results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure_step(
    run: Callable[[], object],
    *,
    device: torch.device,
    weights: list[Tensor],
    optimizer: torch.optim.Optimizer,
    buffer_bytes: int,
) -> dict[str, int | str]:
    """Memory of `run`, a whole step that starts without gradients and with optimizer state."""
    weight_bytes = tensor_bytes(weights)
    optimizer_bytes = tensor_bytes(optimizer_tensors(optimizer))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = weight_bytes + optimizer_bytes + buffer_bytes + _cpu_rise(run)
    rest = peak - 2 * weight_bytes - optimizer_bytes - buffer_bytes
    return {
        "weight_bytes": weight_bytes,
        "grad_bytes": weight_bytes,
        "optimizer_bytes": optimizer_bytes,
        "buffer_bytes": buffer_bytes,
        "activation_and_workspace_bytes": rest,
        "peak_bytes": peak,
        "definition": DEFINITION,
    }
