"""Peak tensor bytes of one step on one rank.

What lives from step to step by the sizes of its tensors, and on top of it what
`profiler.measure.memory` sees allocated during the step: bytes of live tensors, not what an
allocator or the system reserves.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from profiler.measure.memory import peak_bytes

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
    peak = weight_bytes + optimizer_bytes + buffer_bytes + peak_bytes(run, device)
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
