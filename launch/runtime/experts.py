"""Mixture-of-experts layers: routed experts anywhere on the expert mesh, and shared experts.

A rank sorts its tokens' choices by slot (an expert's place on a rank), sends them to the slots'
ranks (all-to-all over `ep`), gathers those of its expert-tensor-parallel group (`etp`), runs its
experts, and sends the results back the same way, where they are weighted and added (GShard,
Lepikhin et al. 2020; dropless dispatch as in MegaBlocks, Gale et al. 2023, arXiv:2211.15841).
Replicas of an expert take its tokens in proportion to their shares.

An expert of width x is split over `etp` by columns of gate and up and rows of down, so that the
group's outputs are parts of a sum.
"""

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from launch.runtime.exchange import all_to_all, gather_uneven, reduce_scatter_uneven
from launch.runtime.expert_meter import LayerMeter
from launch.runtime.feedforward import FeedForward, gated
from launch.runtime.norm import replicated
from launch.runtime.record import Recorder
from launch.runtime.routing import Router, kept_choices
from planner.config import ExpertSlots
from planner.holdings import contiguous_slots
from profiler.model import ModelSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertPlace:
    """Where a layer's experts are, as one rank sees it; by default all here, whole."""

    slots: ExpertSlots
    ep_rank: int = 0
    etp_rank: int = 0
    ep: dist.ProcessGroup | None = None
    """None where all slots are on this rank."""
    etp: dist.ProcessGroup | None = None
    recorder: Recorder = dataclasses.field(default_factory=Recorder)

    @property
    def own(self) -> tuple[int, ...]:
        """Experts of this rank's slots."""
        return self.slots.slots[self.ep_rank]

    @property
    def etp_size(self) -> int:
        """Ranks that an expert is split over."""
        return self.etp.size() if self.etp else 1

    @functools.cached_property
    def slots_per_rank(self) -> list[int]:
        """Along `ep`."""
        return [len(rank) for rank in self.slots.slots]

    @functools.cached_property
    def replicas(self) -> tuple[Tensor, Tensor]:
        """Per expert [e, most replicas]: its slots, numbered over all ranks, and the running sum
        of their shares, ending in 1."""
        holders: dict[int, list[tuple[int, float]]] = {}
        number = 0
        for rank, experts in enumerate(self.slots.slots):
            for i, expert in enumerate(experts):
                share = self.slots.shares[rank][i] if self.slots.shares else 1.0
                holders.setdefault(expert, []).append((number, share))
                number += 1
        most = max(len(h) for h in holders.values())
        slots = torch.zeros(len(holders), most, dtype=torch.long)
        ends = torch.full((len(holders), most), 2.0, dtype=torch.float64)
        for expert, held in holders.items():
            shares = torch.tensor([share for _, share in held], dtype=torch.float64)
            slots[expert, : len(held)] = torch.tensor([slot for slot, _ in held])
            ends[expert, : len(held)] = shares.cumsum(0) / shares.sum()
            ends[expert, len(held) - 1] = 2.0  # rounding must not leave a gap at the end
        return slots, ends


Tap = Callable[[Tensor, Tensor | None], None]
"""Is shown a forward's choices: ids [n, k], and which of them were kept (None: all)."""


class Experts(nn.Module):
    """This rank's slots: gate and up [slots, width, h], down [slots, h, width]."""

    def __init__(self, ids: tuple[int, ...], hidden: int, width: int, *, again: bool) -> None:
        super().__init__()
        self.ids, self.again = ids, again
        self.gate = nn.Parameter(torch.empty(len(ids), width, hidden))
        self.up = nn.Parameter(torch.empty(len(ids), width, hidden))
        self.down = nn.Parameter(torch.empty(len(ids), hidden, width))

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """Tokens [n, h] sorted by slot, `counts` of them for each -> [n, h]."""
        if not self.ids:
            return x  # nothing comes here, but the way back through autograd must exist
        # unbind, because the gradient of an index would be as large as all slots together
        weights = zip(self.gate.unbind(), self.up.unbind(), self.down.unbind(), strict=True)
        parts = [
            F.linear(gated(F.linear(rows, gate), F.linear(rows, up), again=self.again), down)
            for rows, (gate, up, down) in zip(torch.split(x, counts), weights, strict=True)
        ]
        return torch.cat(parts)


class MoE(nn.Module):
    """Router, dispatch, routed experts, combination, and the shared experts beside them."""

    def __init__(self, model: ModelSpec, *, again: bool = False) -> None:
        super().__init__()
        h, slots = model.hidden_size, contiguous_slots(model.num_experts, 1)
        self.model, self.again = model, again
        self.place = ExpertPlace(slots=slots)
        self.meter: LayerMeter | None = None
        self.router = Router(model)
        self.experts = Experts(slots.slots[0], h, model.expert_width, again=again)
        shared = model.shared_ffn_hidden_size
        self.shared = FeedForward(h, shared, again=again) if shared else None
        self.shared_gate = nn.Linear(h, 1, bias=False) if model.shared_gate else None
        self.tap: Tap | None = None

    def move(self, place: ExpertPlace) -> None:
        """Hold the experts of `place` alone, with values still to be set."""
        hidden, width = self.model.hidden_size, self.model.expert_width // place.etp_size
        with self.experts.gate.device:
            self.experts = Experts(place.own, hidden, width, again=self.again)
        self.place = place

    def set_slots(self, slots: ExpertSlots) -> None:
        """Take the experts to be in `slots` from now on; their values are the caller's to move."""
        self.place = dataclasses.replace(self.place, slots=slots)
        self.experts.ids = self.place.own

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]; tokens of this rank."""
        out = self._routed(x)
        if self.shared is None:
            return out
        shared: Tensor = self.shared(x)
        if self.shared_gate is not None:
            shared = F.linear(x, replicated(self.shared_gate.weight)).sigmoid() * shared
        return out + shared

    def _routed(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        ids, weights = self.router(tokens)
        kept = kept_choices(ids, self.model)
        if self.tap is not None:
            self.tap(ids, kept)
        where = torch.arange(len(tokens), device=x.device).repeat_interleave(ids.shape[1])
        flat_ids, flat_weights = ids.flatten(), weights.flatten()
        if kept is not None:
            chosen = kept.flatten()
            where, flat_ids, flat_weights = where[chosen], flat_ids[chosen], flat_weights[chosen]
        if self.meter is not None:
            self.meter.count(flat_ids)
        slots = _slots_of(flat_ids, self.place)
        order = slots.argsort(stable=True)
        where = where[order]
        rows = self._away(tokens[where], slots)
        weighted = rows * flat_weights[order][:, None]
        return torch.zeros_like(tokens).index_add(0, where, weighted).view_as(x)

    def _away(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Rows sorted by slot -> the experts' outputs in the same order."""
        place = self.place
        counts = torch.bincount(slots, minlength=sum(place.slots_per_rank))
        if place.ep is None:
            return self._compute(rows, counts[None])
        mine = len(place.own)
        received = counts.new_empty(place.ep.size() * mine)
        place.recorder.all_to_all(
            received, counts, [mine] * place.ep.size(), place.slots_per_rank, place.ep, "ep"
        )()
        table = received.view(place.ep.size(), mine)
        sent = torch.stack([part.sum() for part in torch.split(counts, place.slots_per_rank)])
        both: list[list[int]] = torch.stack([sent, table.sum(1)]).tolist()  # one wait for a GPU
        inputs, outputs = both
        rows = all_to_all(rows, outputs, inputs, place.ep, place.recorder, "ep")
        rows = self._compute(rows, table)
        return all_to_all(rows, inputs, outputs, place.ep, place.recorder, "ep")

    def _compute(self, rows: Tensor, table: Tensor) -> Tensor:
        """Rows sorted by (source, slot), with counts [sources, slots] -> outputs in that order."""
        place = self.place
        if place.etp is None:
            return self._by_slot(rows, table)
        tables = table.new_empty((place.etp_size, *table.shape))
        place.recorder.all_gather(tables.flatten(), table.flatten(), place.etp, "etp")()
        counts: list[int] = tables.sum((1, 2)).tolist()
        rows = gather_uneven(rows, counts, place.etp, place.recorder, "etp")
        rows = self._by_slot(rows, tables.flatten(0, 1))
        return reduce_scatter_uneven(rows, counts, place.etp, place.recorder, "etp")

    def _by_slot(self, rows: Tensor, table: Tensor) -> Tensor:
        if self.meter is None:
            return self._sorted(rows, table)
        with self.meter.timed(len(rows)):
            return self._sorted(rows, table)

    def _sorted(self, rows: Tensor, table: Tensor) -> Tensor:
        sources, slots = table.shape
        counts: list[int] = table.sum(0).tolist()
        if sources == 1:
            out: Tensor = self.experts(rows, counts)
            return out
        labels = torch.arange(slots, device=rows.device).repeat(sources)
        order = labels.repeat_interleave(table.flatten()).argsort(stable=True)
        out = self.experts(rows[order], counts)
        return torch.empty_like(out).index_copy(0, order, out)


def _slots_of(ids: Tensor, place: ExpertPlace) -> Tensor:
    """Slot of each choice: an expert's choices go to its replicas one after the other, so many to
    each as its share of them says."""
    slots, ends = (t.to(ids.device) for t in place.replicas)
    if slots.shape[1] == 1:
        return slots[ids, 0]
    order = ids.argsort(stable=True)
    counts = torch.bincount(ids, minlength=len(slots))
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(ids)
    rank[order] = torch.arange(len(ids), device=ids.device) - starts.repeat_interleave(counts)
    fraction = (rank + 0.5) / counts[ids]
    replica = (ends[ids] <= fraction[:, None]).sum(1)
    return slots[ids, replica]
