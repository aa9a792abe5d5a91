"""Mixture-of-experts layers: routed experts anywhere on the expert mesh, and shared experts.

A rank sorts its tokens' choices by slot (an expert's place on a rank), sends them to the slots'
ranks (all-to-all over `ep`), gathers those of its expert-tensor-parallel group (`etp`), runs its
experts, and sends the results back the same way, where they are weighted and added (GShard,
Lepikhin et al. 2020; dropless dispatch as in MegaBlocks, Gale et al. 2023, arXiv:2211.15841).
Replicas of an expert take its tokens in proportion to their shares.

With `overlap` d above 1 a rank's tokens go in d chunks, whose exchanges run beside the experts'
computing: all are sent at once, and while one is computed later ones arrive and earlier ones return
(Tutel's `a2a_ffn_overlap_degree`, Hwang et al. 2022, arXiv:2206.03382). Backward is its mirror.

An expert of width x is split over `etp` by columns of gate and up and rows of down, so that the
group's outputs are parts of a sum.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from launch.runtime.exchange import gather_uneven, reduce_scatter_uneven, start_all_to_all
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
    overlap: int = 1
    """Chunks in which tokens are exchanged over `ep`."""
    recorder: Recorder = dataclasses.field(default_factory=Recorder)

    @property
    def own(self) -> tuple[int, ...]:
        """Experts of this rank's slots."""
        return self.slots.slots[self.ep_rank]

    @property
    def ep_size(self) -> int:
        """Ranks that the slots are spread over."""
        return len(self.slots.slots)

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
Run = Callable[[Tensor, list[int]], Tensor]
"""Of rows [n, h] sorted by slot and their number for each, the experts' outputs [n, h]."""


class Experts(nn.Module):
    """This rank's slots: gate and up [slots, width, h], down [slots, h, width]."""

    def __init__(self, ids: tuple[int, ...], hidden: int, width: int, *, again: bool) -> None:
        super().__init__()
        self.ids, self.again = ids, again
        self.gate = nn.Parameter(torch.empty(len(ids), width, hidden))
        self.up = nn.Parameter(torch.empty(len(ids), width, hidden))
        self.down = nn.Parameter(torch.empty(len(ids), hidden, width))

    def forward(self, x: Tensor, route: Callable[[Tensor, Run], Tensor]) -> Tensor:
        """`route(x, run)`, which takes tokens to slots by any way, and runs them in parts if it
        likes: weights are at hand, and their gradients are summed, once for all parts."""
        # unbind, because the gradient of an index would be as large as all slots together
        stacks = (self.gate, self.up, self.down) if self.ids else ()
        weights = tuple(zip(*(stack.unbind() for stack in stacks), strict=True))
        return route(x, functools.partial(self._run, weights))

    def _run(self, weights: tuple[tuple[Tensor, ...], ...], x: Tensor, counts: list[int]) -> Tensor:
        if not weights:
            return x  # nothing comes here, but the way back through autograd must exist
        parts = [
            F.linear(gated(F.linear(rows, gate), F.linear(rows, up), again=self.again), down)
            for rows, (gate, up, down) in zip(torch.split(x, counts), weights, strict=True)
        ]
        return torch.cat(parts)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """What arrives at once: rows sorted by (source, slot)."""

    table: Tensor
    """Rows of each [sources, slots], the sources being those of all members of `etp`."""
    counts: list[int]
    """For each slot."""
    members: list[int]
    """Of each member of `etp`."""


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
        num_chunks, num_slots = self.place.overlap, sum(self.place.slots_per_rank)
        chunk = where * num_chunks // len(tokens)
        key = chunk * num_slots + _slots_of(flat_ids, self.place)
        order = key.argsort(stable=True)
        where = where[order]
        counts = torch.bincount(key, minlength=num_chunks * num_slots).view(num_chunks, num_slots)
        rows = self.experts(tokens, functools.partial(self._away, where, counts))
        weighted = rows * flat_weights[order][:, None]
        return torch.zeros_like(tokens).index_add(0, where, weighted).view_as(x)

    def _away(self, where: Tensor, counts: Tensor, tokens: Tensor, run: Run) -> Tensor:
        """Outputs of the experts for tokens[where], which are sorted by chunk and slot, with
        `counts` [chunks, slots]; in that order."""
        place = self.place
        if place.ep is None:
            [chunk] = self._chunks(counts[:, None])
            return self._compute(tokens[where], chunk, run)
        tables, sent, received = self._exchange_counts(counts, place.ep)
        chunks = self._chunks(tables)
        # All are started before the first is waited for, as in backward: what an exchange waits
        # for behind others it would wait for anyway, because the network is busy till then.
        arriving = [
            start_all_to_all(part, into, out, place.ep, place.recorder, "ep")
            for part, out, into in zip(_split(tokens[where], sent), sent, received, strict=True)
        ]
        returning = [
            start_all_to_all(
                self._compute(arrive(), chunk, run), out, into, place.ep, place.recorder, "ep"
            )
            for arrive, chunk, out, into in zip(arriving, chunks, sent, received, strict=True)
        ]
        parts = [arrive() for arrive in returning]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _exchange_counts(
        self, counts: Tensor, ep: dist.ProcessGroup
    ) -> tuple[Tensor, list[list[int]], list[list[int]]]:
        """What arrives [chunks, sources, own slots], and per chunk the rows for each rank of `ep`
        and from each."""
        place, num_ranks, mine = self.place, self.place.ep_size, len(self.place.own)
        received = counts.new_empty(num_ranks * mine, len(counts))
        by_slot = counts.t().contiguous()
        place.recorder.all_to_all(
            received, by_slot, [mine] * num_ranks, place.slots_per_rank, ep, "ep"
        )()
        tables = received.view(num_ranks, mine, len(counts)).permute(2, 0, 1)
        sent = torch.stack([part.sum(0) for part in torch.split(by_slot, place.slots_per_rank)], 1)
        both: list[list[list[int]]] = torch.stack([sent, tables.sum(2)]).tolist()  # one wait
        return tables, both[0], both[1]

    def _chunks(self, tables: Tensor) -> list[_Chunk]:
        """Of tables [chunks, sources, own slots], with the sources of all members of `etp`."""
        place = self.place
        members: list[list[int]] = [[] for _ in tables]
        if place.etp is not None:
            every = tables.new_empty((place.etp_size, *tables.shape))
            own = tables.contiguous().flatten()
            place.recorder.all_gather(every.flatten(), own, place.etp, "etp")()
            members = every.sum((2, 3)).t().tolist()
            tables = every.transpose(0, 1).flatten(1, 2)
        counts: list[list[int]] = tables.sum(1).tolist()
        return [
            _Chunk(table=table, counts=each, members=of)
            for table, each, of in zip(tables, counts, members, strict=True)
        ]

    def _compute(self, rows: Tensor, chunk: _Chunk, run: Run) -> Tensor:
        """Outputs for the rows of a chunk, in their order."""
        place = self.place
        rows = gather_uneven(rows, chunk.members, place.etp, place.recorder, "etp")
        timed = self.meter.timed(len(rows)) if self.meter else contextlib.nullcontext()
        with timed:
            rows = _by_slot(rows, chunk, run)
        return reduce_scatter_uneven(rows, chunk.members, place.etp, place.recorder, "etp")


def _split(rows: Tensor, counts: list[list[int]]) -> tuple[Tensor, ...]:
    """Rows of each chunk; of one alone the tensor itself, whose gradient needs no copy."""
    return (rows,) if len(counts) == 1 else torch.split(rows, [sum(each) for each in counts])


def _by_slot(rows: Tensor, chunk: _Chunk, run: Run) -> Tensor:
    sources, slots = chunk.table.shape
    if sources == 1:
        return run(rows, chunk.counts)
    labels = torch.arange(slots, device=rows.device).repeat(sources)
    order = labels.repeat_interleave(chunk.table.flatten()).argsort(stable=True)
    out = run(rows[order], chunk.counts)
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
