"""Experts that change their places between two steps: their weights and the optimizer's state go
with them, from rank to rank.

Who sends which box is the planner's list (`planner.expert_moves`), in one order on all ranks. Layer
by layer a rank packs all that another needs of it (the optimizer's weights, and what it keeps
beside them) into one message, posts all sends and receives at once, and copies what it had itself.
Nothing else of training knows: gradients of replicas are summed over their new holders from the
next backward on. The recipe for the next step is as it was, so losses are too.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launch.runtime.experts import MoE
from launch.runtime.model import Layer, Stage
from launch.runtime.pieces import Chunk, Held
from launch.runtime.record import now
from launch.runtime.shard import expert_held, resize_experts
from launch.runtime.sync import flat
from launch.runtime.trainer import Trainer
from planner.config import ExpertSlots
from planner.expert_moves import (
    Experts,
    Transfer,
    check_empty,
    expert_transfers,
    placed_experts,
)
from planner.layout import check_layout
from profiler.codec import replace

_Key = tuple[str, tuple[int, ...]]
"""Name of a canonical tensor, and where in it a box begins."""
_Where = dict[_Key, tuple[int, Chunk]]
"""Box -> number among what is held, and where it lies there."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What this rank did."""

    sent_bytes: int
    received_bytes: int
    seconds: float


@torch.no_grad()
def move_experts(
    trainer: Trainer, experts: Experts, node_of_rank: Sequence[int] | None = None
) -> Moved:
    """Put the experts of every layer into other slots; collective: every rank calls it, alike.

    `node_of_rank`: so that ranks fetch from their own node where they can; None: all are on one.
    Raises `UserError`, on all ranks, for a placement that cannot be.
    """
    start = now()
    model, config, old = trainer.model, trainer.config, trainer.placement
    new = replace(old, experts=experts)
    check_layout(model, trainer.job, config, new)
    before = placed_experts(model, config, old)
    check_empty(config, before, experts)
    here = layers_of(trainer)
    for layer, (_, _, moe) in here.items():
        if experts[layer].slots == before[layer].slots:
            moe.set_slots(experts[layer])  # at most other shares: nothing of state changes
    rounds: dict[int, list[Transfer]] = {
        layer: [] for layer, each in enumerate(experts) if each.slots != before[layer].slots
    }
    for transfer in expert_transfers(model, config, old, experts, node_of_rank):
        rounds[transfer.layer].append(transfer)
    held = list(trainer.held)
    sent = received = 0
    for layer, transfers in rounds.items():
        if layer in here:
            move = _LayerMove(trainer, held, *here[layer], experts[layer])
            out, into = move.run(transfers, trainer.mesh.rank)
            sent, received = sent + out, received + into
    trainer.take_over(new, held)
    trainer.publish()
    return Moved(sent_bytes=sent, received_bytes=received, seconds=now() - start)


def layers_of(trainer: Trainer) -> dict[int, tuple[Stage, str, MoE]]:
    """Number of each MoE layer of this rank -> its stage, its name there, the layer."""
    moe = [block for block, kind in enumerate(trainer.model.blocks) if kind == "moe"]
    return {
        moe.index(int(name)): (stage, name, block.ffn)
        for stage in trainer.stages.values()
        for name, block in stage.blocks.items()
        if isinstance(block, Layer) and isinstance(block.ffn, MoE)
    }


class _LayerMove:
    """One layer on one rank: what it held, what it holds then, and the way from one to the other.

    Puts what the rank holds of the layer then into `held`.
    """

    def __init__(
        self, trainer: Trainer, held: list[Held], stage: Stage, name: str, moe: MoE,
        slots: ExpertSlots,
    ) -> None:  # fmt: skip
        self._trainer, self._recorder = trainer, moe.place.recorder
        number = {id(each.parameter): i for i, each in enumerate(held)}
        stacks = {
            f"blocks.{name}.ffn.experts.{leaf}": parameter
            for leaf, parameter in moe.experts.named_parameters()
        }
        self._which = [number[id(parameter)] for parameter in stacks.values()]
        self._held = held
        self._old = _boxes(held, self._which)
        self._values = {i: self._state(i) for i in self._which}
        resized = len(moe.place.own) != len(slots.slots[moe.place.ep_rank])
        moe.set_slots(slots)
        sharded = trainer.config.dp_shard > 1
        if resized and sharded and trainer.config.edp > 1:
            resize_experts(moe.experts, trainer.config.edp)
        for i, full in zip(self._which, stacks, strict=True):
            parameter = moe.experts.get_parameter(full.rpartition(".")[2])
            held[i] = expert_held(stage, full, parameter, trainer.mesh, sharded=sharded)
        self._new = _boxes(held, self._which)
        self._next = {
            i: [t.new_empty((len(moe.place.own), *t.shape[1:])) for t in values]
            for i, values in self._values.items()
        }

    def _state(self, i: int) -> list[Tensor]:
        """The i-th weight and what the optimizer keeps beside it, element by element."""
        weight = self._trainer.weights[i]
        return [weight.data, *self._beside(weight).values()]

    def _beside(self, weight: nn.Parameter) -> dict[str, Tensor]:
        kept = self._trainer.optimizer.state.get(weight, {})
        return {k: v for k, v in sorted(kept.items()) if k != "step" and v.shape == weight.shape}

    def run(self, transfers: list[Transfer], rank: int) -> tuple[int, int]:
        """Bytes (sent, received)."""
        packed: dict[int, list[Tensor]] = {}
        awaited: dict[int, list[Tensor]] = {}
        for each in transfers:
            key = each.name, tuple(start for start, _ in each.box)
            if each.source == rank:
                packed.setdefault(each.target, []).extend(_parts(self._values, self._old[key]))
            elif each.target == rank:
                awaited.setdefault(each.source, []).extend(_parts(self._next, self._new[key]))
        sends = {peer: flat(parts) for peer, parts in packed.items()}
        arrivals = {
            peer: parts[0].new_empty(sum(p.numel() for p in parts))
            for peer, parts in awaited.items()
        }
        ops = [dist.P2POp(dist.isend, message, peer) for peer, message in sends.items()]
        ops += [dist.P2POp(dist.irecv, message, peer) for peer, message in arrivals.items()]
        wait = self._recorder.exchange(ops, "move") if ops else None
        for key in self._new.keys() & self._old.keys():
            pairs = zip(
                _parts(self._next, self._new[key]), _parts(self._values, self._old[key]),
                strict=True,
            )  # fmt: skip
            for part, value in pairs:
                part.copy_(value)
        if wait is not None:
            wait()
        for peer, message in arrivals.items():
            sizes = [part.numel() for part in awaited[peer]]
            for part, value in zip(awaited[peer], torch.split(message, sizes), strict=True):
                part.copy_(value.view(part.shape))
        self._set()
        return sum(m.nbytes for m in sends.values()), sum(m.nbytes for m in arrivals.values())

    def _set(self) -> None:
        for i, (value, *beside) in self._next.items():
            weight = self._trainer.weights[i]
            names = self._beside(weight)
            self._trainer.set_local(i, self._held[i], value)
            if beside:
                self._trainer.optimizer.state[weight].update(zip(names, beside, strict=True))


def _boxes(held: list[Held], which: list[int]) -> _Where:
    return {(chunk.name, chunk.offset): (i, chunk) for i in which for chunk in held[i].chunks}


def _parts(values: dict[int, list[Tensor]], where: tuple[int, Chunk]) -> list[Tensor]:
    """The box in each of the tensors that belong together."""
    i, chunk = where
    return [tensor[chunk.where] for tensor in values[i]]
