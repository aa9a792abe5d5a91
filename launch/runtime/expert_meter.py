"""How often each expert was chosen on this rank, and what its experts' forward takes per choice.

One `bincount` per layer and micro-batch, kept on the device; forward alone is counted, not what
backward computes again. Experts are timed in some steps only, because on an accelerator each
interval costs two events.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from launch.runtime.record import now


class LayerMeter:
    """What one MoE layer of this rank adds to an `ExpertMeter`."""

    def __init__(self, meter: "ExpertMeter", counts: Tensor) -> None:
        self._meter, self._counts = meter, counts

    def count(self, ids: Tensor) -> None:
        """Experts of this rank's choices, in any order."""
        if not _again():
            self._counts += torch.bincount(ids, minlength=len(self._counts))

    @contextlib.contextmanager
    def timed(self, num_rows: int) -> Iterator[None]:
        """Around the work of this rank's experts on so many rows."""
        if not self._meter.timing or _again():
            yield
            return
        with self._meter.interval(num_rows):
            yield


class ExpertMeter:
    """Counts [layers, experts] since they were last taken, and seconds of experts' forward."""

    def __init__(self, num_layers: int, num_experts: int, device: torch.device) -> None:
        self.timing = False
        self._counts = torch.zeros(num_layers, num_experts, dtype=torch.long, device=device)
        self._on_gpu = device.type == "cuda"
        self._reset()

    def _reset(self) -> None:
        self._num_rows, self._seconds = 0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def of_layer(self, layer: int) -> LayerMeter:
        """For the layer with this number among the MoE layers."""
        return LayerMeter(self, self._counts[layer])

    @contextlib.contextmanager
    def interval(self, num_rows: int) -> Iterator[None]:
        """Time what the block does on so many rows."""
        self._num_rows += num_rows
        if not self._on_gpu:
            start = now()
            yield
            self._seconds += now() - start
            return
        first, last = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        first.record()
        yield
        last.record()
        self._events.append((first, last))

    def take(self) -> Tensor:
        """[layers * experts + 2] float64: counts, rows timed and their seconds; begins anew."""
        if self._events:
            torch.cuda.synchronize()
            self._seconds = sum(a.elapsed_time(b) for a, b in self._events) / 1000
        times = self._counts.new_tensor([self._num_rows, self._seconds], dtype=torch.float64)
        taken = torch.cat([self._counts.flatten().double(), times])
        self._counts.zero_()
        self._reset()
        return taken


def _again() -> bool:
    """Whether backward is under way, which computes some layers' forward again (private to torch;
    its own checkpointing asks the same way)."""
    return bool(torch._C._current_graph_task_id() != -1)
