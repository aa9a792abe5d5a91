"""Cost of one block at any micro-batch, from the profile's entries.

Between two measured micro-batches the time is a straight line; beyond the largest, the line through
the last two goes on, up to twice the largest (a block's time is launch overhead + work, and work is
linear in tokens; farther out nothing was seen). Such values count as interpolated, not as measured.
"""

from collections import defaultdict
from dataclasses import dataclass, fields

from profiler.profile import BlockEntry, Profile, ProfiledBlock, Source

REACH = 2
"""Largest micro-batch answered for, as a multiple of the largest profiled one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCost:
    """One block, one micro-batch, one rank; collectives are part of forward and backward."""

    forward_s: float
    backward_s: float
    forward_collective_s: float
    backward_collective_s: float
    optimizer_s: float
    bucket_s: float
    """Copy of the gradients into flat buckets, where there are replicas."""
    saved_bytes: float
    peak_bytes: float
    source: Source = "measured"


_NUMBERS = tuple(f.name for f in fields(BlockCost) if f.name != "source")


def _from_entry(e: BlockEntry) -> BlockCost:
    times = [t.median_s if t else 0.0 for t in (e.input_grad, e.weight_grad)]
    return BlockCost(
        forward_s=e.forward.median_s if e.forward else 0.0,
        backward_s=sum(times),
        forward_collective_s=e.forward_collective_s,
        backward_collective_s=e.backward_collective_s,
        optimizer_s=e.optimizer.median_s if e.optimizer else 0.0,
        bucket_s=e.bucket.median_s if e.bucket else 0.0,
        saved_bytes=float(e.saved_bytes),
        peak_bytes=float(e.peak_bytes),
        source=e.source,
    )


class BlockTable:
    """Look-up of block costs by (kind, tp, micro-batch)."""

    def __init__(self, profile: Profile) -> None:
        self._entries: dict[tuple[ProfiledBlock, int], list[tuple[int, BlockCost]]] = defaultdict(
            list
        )
        self._oom: dict[tuple[ProfiledBlock, int], int] = {}
        for entry in sorted(profile.blocks, key=lambda e: e.micro_batch):
            key = (entry.block, entry.tp)
            if entry.status == "ok":
                self._entries[key].append((entry.micro_batch, _from_entry(entry)))
            else:
                self._oom.setdefault(key, entry.micro_batch)

    def points(self, kind: ProfiledBlock, tp: int) -> list[tuple[int, BlockCost]]:
        """Measured micro-batches, ascending, and their costs."""
        return list(self._entries.get((kind, tp), []))

    def tp_degrees(self, kind: ProfiledBlock) -> set[int]:
        """Tensor-parallel degrees at which the block was profiled."""
        return {tp for k, tp in self._entries if k == kind}

    def ran_out(self, kind: ProfiledBlock, tp: int, micro_batch: int) -> bool:
        """The block alone was seen to run out of memory at this or a smaller micro-batch."""
        smallest = self._oom.get((kind, tp))
        return smallest is not None and micro_batch >= smallest

    def cost(self, kind: ProfiledBlock, tp: int, micro_batch: int) -> BlockCost | None:
        """Cost, or None where the profile does not reach."""
        points = self._entries.get((kind, tp), [])
        if not points or micro_batch > REACH * points[-1][0]:
            return None
        exact = next((c for b, c in points if b == micro_batch), None)
        if exact is not None:
            return exact
        if len(points) == 1:
            return None
        above = next((i for i, (b, _) in enumerate(points) if b > micro_batch), len(points) - 1)
        (b0, c0), (b1, c1) = points[max(above, 1) - 1], points[max(above, 1)]
        t = (micro_batch - b0) / (b1 - b0)
        values = {
            n: max(0.0, getattr(c0, n) + t * (getattr(c1, n) - getattr(c0, n))) for n in _NUMBERS
        }
        source: Source = "interpolated" if c0.source == "measured" else c0.source
        return BlockCost(**values, source=source)
