"""Peak tensor bytes of one step on one rank.

What lives from step to step by the sizes of its tensors, and on top of it what
`profiler.measure.memory` sees allocated during the step: bytes of live tensors, not what an
allocator or the system reserves.

    weights     what the rank holds of them between steps: 2 bytes each in bf16, but its shard of
                float32 under ZeRO
    gradients   as the optimizer takes them: one of every master
    optimizer   its state, and the masters where they are not the weights themselves
    rest        of the peak: activations, workspace, and what ZeRO gathers
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from profiler.measure.memory import peak_bytes

DEFINITION = (
    "bytes of live tensors at the peak of one step: weights (the rank's own shard), gradients and "
    "optimizer state with masters by their sizes, pipeline receive buffers apart, and the rest of "
    "the peak as activations and workspace"
)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Sum of sizes."""
    return sum(t.nbytes for t in tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Tensors of the optimizer's state."""
    values = [v for state in optimizer.state.values() for v in state.values()]
    return [v for v in values if isinstance(v, Tensor)]


def _apart(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Those of `tensors` that share no storage with one of `others`."""
    taken = {t.untyped_storage().data_ptr() for t in others}
    return [t for t in tensors if t.untyped_storage().data_ptr() not in taken]


def measure_step(
    run: Callable[[], object],
    *,
    device: torch.device,
    weights: Sequence[Tensor],
    masters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    buffer_bytes: int,
) -> dict[str, int | str]:
    """Memory of `run`, a whole step that starts without gradients and with optimizer state.

    `weights`: plain tensors of what this rank holds. `masters`: what the optimizer trains, which
    may be the same tensors.
    """
    weight_bytes, grad_bytes = tensor_bytes(weights), tensor_bytes(masters)
    optimizer_bytes = tensor_bytes(optimizer_tensors(optimizer))
    optimizer_bytes += tensor_bytes(_apart(masters, weights))
    before = weight_bytes + optimizer_bytes + buffer_bytes
    peak = before + peak_bytes(run, device)
    return {
        "weight_bytes": weight_bytes,
        "grad_bytes": grad_bytes,
        "optimizer_bytes": optimizer_bytes,
        "buffer_bytes": buffer_bytes,
        "activation_and_workspace_bytes": peak - before - grad_bytes,
        "peak_bytes": peak,
        "definition": DEFINITION,
    }
