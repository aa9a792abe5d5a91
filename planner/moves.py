"""What moves when training goes on under another layout, on the devices that are left.

State is the float32 weight (in mixed precision the master; working weights are rounded from it) and
AdamW's two moments: 12 bytes per parameter (`profiler.job`, ZeRO paper, section 3.1), and 4 of each
element of a buffer. Of every box that a rank holds afterwards (`planner.holdings`) each part is

    held        by the same device before
    fetched     from a surviving device that held it before: one on the same node where there is
                one, else the holders take turns
    lost        held by no survivor: it is in the checkpoint alone

so that need = held + fetched + lost of every rank. Only a state without losses can be moved from
memory to memory, and be of the last step; with any, all ranks go back to the checkpoint's step.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from planner.holdings import Box, Boxes, Holdings
from planner.where import nodes_of_devices
from profiler.cluster import ClusterSpec
from profiler.codec import record
from profiler.model import ModelSpec, NotNegative
from profiler.tensors import Tensor, tensors_of

STATE_BYTES = 12
"""Per parameter: float32 weight, first and second moment."""
BUFFER_BYTES = 4


@record
class RankMoves:
    """Bytes of state that one rank needs, by where they are."""

    rank: NotNegative
    node: NotNegative
    """Of the cluster as it is now."""
    held_bytes: NotNegative
    fetched_bytes: NotNegative
    lost_bytes: NotNegative

    @property
    def need_bytes(self) -> int:
        """All that the rank holds afterwards."""
        return self.held_bytes + self.fetched_bytes + self.lost_bytes


@record
class Flow:
    """Bytes that ranks of one node fetch from those of another, or of the same."""

    source: NotNegative
    target: NotNegative
    num_bytes: NotNegative


@record
class Moves:
    """What every rank has, fetches and lacks; nodes are numbered as the cluster is now."""

    state_bytes: NotNegative
    """Of one copy of the whole state: what a checkpoint holds."""
    lost_bytes: NotNegative
    """Of one copy, what no survivor holds."""
    need_bytes: NotNegative
    """Over all ranks, as the next three: a box is counted by every rank that needs it."""
    held_bytes: NotNegative
    fetched_bytes: NotNegative
    from_checkpoint_bytes: NotNegative
    """What no survivor holds."""
    exact: bool
    """By the model's own tensors; else by the parts of its blocks."""
    ranks: tuple[RankMoves, ...]
    flows: tuple[Flow, ...]
    """By source and target node, where there is anything."""

    def need_of_nodes(self) -> dict[int, int]:
        """Node -> bytes that its ranks hold afterwards."""
        total: dict[int, int] = {}
        for rank in self.ranks:
            total[rank.node] = total.get(rank.node, 0) + rank.need_bytes
        return total

    def wire_of_nodes(self) -> dict[int, int]:
        """Node -> bytes that cross its NICs in the busier direction."""
        out: dict[int, int] = {}
        into: dict[int, int] = {}
        for flow in self.flows:
            if flow.source != flow.target:
                out[flow.source] = out.get(flow.source, 0) + flow.num_bytes
                into[flow.target] = into.get(flow.target, 0) + flow.num_bytes
        return {node: max(out.get(node, 0), into.get(node, 0)) for node in {*out, *into}}


def moves_of(
    model: ModelSpec, old: Holdings, new: Holdings, now: Mapping[int, int], cluster: ClusterSpec
) -> Moves:
    """What moves from one layout to another. Pure.

    `now`: device of the old cluster -> its number in `cluster`, where it is still there.
    """
    tensors, exact = tensors_of(model)
    count = _Count(new, nodes_of_devices(cluster))
    alike: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.shape, old.kind(tensor), new.kind(tensor)), []).append(tensor)
    state = lost = 0
    for same in alike.values():
        each = (BUFFER_BYTES if same[0].is_buffer else STATE_BYTES) * len(same)
        before = _surviving(old.of(same[0]), now)
        state += each * same[0].num_elements
        lost += each * sum(volume(box) for box, holders in before.items() if not holders)
        count.add(before, new.of(same[0]), each)
    ranks = count.ranks()
    return Moves(
        state_bytes=state,
        lost_bytes=lost,
        need_bytes=sum(r.need_bytes for r in ranks),
        held_bytes=sum(r.held_bytes for r in ranks),
        fetched_bytes=sum(r.fetched_bytes for r in ranks),
        from_checkpoint_bytes=sum(r.lost_bytes for r in ranks),
        exact=exact,
        ranks=ranks,
        flows=count.flows(),
    )


def _surviving(boxes: Boxes, now: Mapping[int, int]) -> Boxes:
    """The same boxes, with the holders that are left as they are numbered now."""
    return {box: tuple(now[d] for d in held if d in now) for box, held in boxes.items()}


def sources_of(
    devices: Sequence[int], holders: Sequence[int], node_of: Sequence[int] | Mapping[int, int]
) -> Iterator[tuple[int, int | None]]:
    """(device, where it takes a part from) of all `devices` that need a part which `holders` have:
    itself where it is one of them, None where there are none."""
    near: dict[int, list[int]] = {}
    for holder in holders:
        near.setdefault(node_of[holder], []).append(holder)
    for turn, device in enumerate(devices):
        if device in holders or not holders:
            yield device, device if holders else None
        else:
            sources = near.get(node_of[device], holders)
            yield device, sources[turn % len(sources)]


class _Count:
    """Adds up boxes of tensors by rank and by pair of nodes."""

    def __init__(self, new: Holdings, node_of: tuple[int, ...]) -> None:
        self._devices, self._node_of = new.devices, node_of
        self._held, self._fetched, self._lost = (dict.fromkeys(self._devices, 0) for _ in range(3))
        self._flows: dict[tuple[int, int], int] = {}

    def add(self, before: Boxes, after: Boxes, each: int) -> None:
        """Boxes of some tensors with `each` bytes per element together."""
        for box, devices in after.items():
            for other, holders in before.items():
                size = each * _overlap(box, other)
                if size:
                    self._part(devices, holders, size)

    def _part(self, devices: tuple[int, ...], holders: tuple[int, ...], size: int) -> None:
        """A part of so many bytes that `devices` need and `holders` have."""
        for device, source in sources_of(devices, holders, self._node_of):
            if source is None:
                self._lost[device] += size
            elif source == device:
                self._held[device] += size
            else:
                self._fetched[device] += size
                flow = self._node_of[source], self._node_of[device]
                self._flows[flow] = self._flows.get(flow, 0) + size

    def ranks(self) -> tuple[RankMoves, ...]:
        """In the order of ranks."""
        return tuple(
            RankMoves(
                rank=rank, node=self._node_of[device], held_bytes=self._held[device],
                fetched_bytes=self._fetched[device], lost_bytes=self._lost[device],
            )
            for rank, device in enumerate(self._devices)
        )  # fmt: skip

    def flows(self) -> tuple[Flow, ...]:
        """By source, then target."""
        return tuple(
            Flow(source=source, target=target, num_bytes=size)
            for (source, target), size in sorted(self._flows.items())
        )


def volume(box: Box) -> int:
    """Elements of a box."""
    return prod(stop - start for start, stop in box)


def _overlap(a: Box, b: Box) -> int:
    """Elements that are in both boxes."""
    sizes = (min(x[1], y[1]) - max(x[0], y[0]) for x, y in zip(a, b, strict=True))
    return prod(max(0, size) for size in sizes)
