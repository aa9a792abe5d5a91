"""Experts that change their places between two steps of one layout: what is sent, and how long it
takes.

What a rank holds before and after is `planner.holdings`, who sends it is `planner.moves`: of the
boxes of an expert whose slots changed, a rank that held none of them fetches them from a holder,
on its own node where there is one. Weight and optimizer state go together, so that the bytes are
those of `planner.moves.moves_of`. All ranks send at once:

    move_s = max( bytes of a rank inside its node / rate inside a node,
                  bytes of a node's ranks to other nodes / rate of its NICs )

each in the busier direction.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.config import ExpertSlots, ParallelConfig, Placement
from planner.holdings import Box, Holdings, contiguous_slots
from planner.moves import STATE_BYTES, sources_of, volume
from profiler.codec import replace
from profiler.errors import UserError
from profiler.model import ModelSpec
from profiler.tensors import tensors_of

Experts = tuple[ExpertSlots, ...]
"""Per MoE layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A box of an expert's matrix that one rank sends to another."""

    layer: int
    """Among the MoE layers."""
    name: str
    box: Box
    source: int
    target: int

    @property
    def num_elements(self) -> int:
        """Of the box."""
        return volume(self.box)


def placed_experts(model: ModelSpec, config: ParallelConfig, placement: Placement) -> Experts:
    """Slots of every MoE layer, those that the placement leaves out too."""
    even = contiguous_slots(model.num_experts, config.ep)
    return placement.experts or (even,) * model.num_moe_layers


def expert_transfers(
    model: ModelSpec,
    config: ParallelConfig,
    placement: Placement,
    experts: Experts,
    node_of_rank: Sequence[int] | None = None,
) -> tuple[Transfer, ...]:
    """What ranks send when the experts of `placement` go to `experts`, layer by layer. Pure.

    `node_of_rank`: None: all are on one.
    """
    old = placed_experts(model, config, placement)
    before, after = (
        Holdings(model, config, replace(placement, experts=each)) for each in (old, experts)
    )
    rank_of = {device: rank for rank, device in enumerate(after.devices)}
    nodes = dict(zip(after.devices, node_of_rank or (0,) * config.num_devices, strict=True))
    layer_of = {b: i for i, b in enumerate(b for b, k in enumerate(model.blocks) if k == "moe")}
    moved = [_moved(a, b) for a, b in zip(old, experts, strict=True)]
    found = [
        Transfer(
            layer=layer_of[tensor.block], name=tensor.name, box=box, source=rank_of[source],
            target=rank_of[device],
        )
        for tensor in tensors_of(model)[0]
        if tensor.expert is not None and tensor.expert in moved[layer_of[tensor.block]]
        for box, devices in after.of(tensor).items()
        for device, source in sources_of(devices, before.of(tensor)[box], nodes)
        if source is not None and source != device
    ]  # fmt: skip
    return tuple(found)


def _moved(old: ExpertSlots, new: ExpertSlots) -> set[int]:
    """Experts of a layer that a rank holds and did not hold before."""
    pairs = zip(old.slots, new.slots, strict=True)
    return {expert for before, after in pairs for expert in {*after} - {*before}}


def can_change(config: ParallelConfig, old: ExpertSlots, new: ExpertSlots) -> bool:
    """Whether the runtime can change a layer's slots so: where ZeRO shards experts over several
    ranks, a rank that was built without any gets none, and no rank loses all of its own."""
    is_free = config.dp_shard == 1 or config.edp == 1
    return is_free or [*map(bool, old.slots)] == [*map(bool, new.slots)]


def check_empty(config: ParallelConfig, old: Experts, new: Experts) -> None:
    """Raise `UserError` where the runtime cannot change one placement into the other."""
    for layer, (a, b) in enumerate(zip(old, new, strict=True)):
        if not can_change(config, a, b):
            sizes = [[len(rank) for rank in each.slots] for each in (a, b)]
            raise UserError(
                f"layer {layer} would have {sizes[1]} slots on its ranks in place of {sizes[0]}: "
                "where ZeRO shards experts over several ranks, none gets its first expert or gives "
                "up its last while training",
                hint="place an expert on every rank, or use dp_shard 1",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRates:
    """How fast state goes from rank to rank, bytes per second in one direction."""

    inside: float
    """Of a rank, within its node."""
    between: tuple[float, ...]
    """Of each node's NICs together."""
    source: str
    """Where the figures are from, for people."""

    def seconds(self, transfers: Iterable[Transfer], node_of_rank: Sequence[int]) -> float:
        """Time in which all are done, sent at once."""
        ranks: dict[tuple[int, bool], int] = defaultdict(int)
        nodes: dict[tuple[int, bool], int] = defaultdict(int)
        for each in transfers:
            size = STATE_BYTES * each.num_elements
            a, b = node_of_rank[each.source], node_of_rank[each.target]
            ends, busy = ((each.source, each.target), ranks) if a == b else ((a, b), nodes)
            busy[ends[0], True] += size
            busy[ends[1], False] += size
        inside = max(ranks.values(), default=0) / self.inside
        between = (size / self.between[node] for (node, _), size in nodes.items())
        return max(inside, max(between, default=0.0))


def state_bytes(transfers: Iterable[Transfer]) -> int:
    """Bytes of weights and optimizer state that are sent."""
    return sum(STATE_BYTES * each.num_elements for each in transfers)
