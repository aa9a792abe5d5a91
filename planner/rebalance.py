"""Whether experts had better change their places, by what was routed since the last look.

A rank takes its choices of a token one after the other, and all ranks wait for the fullest, so

    layer_s = choice_s * max over ranks of load / steps      load = sum of counts * share
    step_s  = max over pipeline ranks of the sum over their layers

with `choice_s` the seconds of one choice, forward and backward, exchanged and computed. What was
routed is taken to go on until the next look. A layer moves where that alone saves more than its own
move takes, and all that move together must:

    (step_s now - step_s then) * steps until the next look > gain * move_s

Where experts go is another's to say (`Place`); `by_load` balances load alone: copies for the
hottest experts by count / copies (as in DeepSeek's EPLB), then the largest first to the emptiest
rank (Graham 1969, LPT). Ranks that are alike trade their slots so that most experts stay where
they are. Pure: equal counts and rates give equal places.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.config import ExpertSlots, ParallelConfig, Placement
from planner.expert_moves import (
    Experts,
    MoveRates,
    Transfer,
    expert_transfers,
    placed_experts,
    state_bytes,
)
from planner.pipeline import owners_of
from profiler.codec import replace
from profiler.model import ModelSpec
from profiler.routing.trace import Counts
from solvers.matching import spread_evenly

Floats = NDArray[np.float64]


class Place(Protocol):
    """Places experts by what was routed; with the slots per rank that they have."""

    def __call__(self, counts: Counts, current: Experts) -> Experts:
        """`counts` [layers, experts] -> slots of every layer."""
        ...


class Price(Protocol):
    """Prices places by what was routed."""

    def __call__(self, counts: Counts, experts: Experts) -> Floats:
        """[layers]: seconds in which one group of ranks does all of `counts` [layers, experts]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known at the end of an interval."""

    counts: Counts
    """[layers, experts]: choices of all ranks together."""
    num_steps: int
    """In which they were routed."""
    steps_left: int
    """Until the next look, or the end."""
    choice_s: float
    """Seconds that a rank takes for one choice, forward and backward."""
    rates: MoveRates
    slowdown: float = 1.0
    """What moves of this run took over what was predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Move or stay, and what it rests on."""

    experts: Experts | None
    """Where they go; None: nothing pays."""
    step_s: float
    """Seconds that the fullest ranks' experts take in a step now."""
    new_step_s: float
    """The same at the places considered."""
    steps_left: int
    num_bytes: int
    """Of weights and optimizer state that would be sent."""
    move_s: float

    @property
    def gain_s(self) -> float:
        """Saved in each step."""
        return self.step_s - self.new_step_s


def decide(
    model: ModelSpec,
    config: ParallelConfig,
    placement: Placement,
    look: Look,
    place: Place,
    *,
    price: Price | None = None,
    gain: float = 1.0,
    node_of_rank: Sequence[int] | None = None,
) -> Decision:
    """Whether to move, and where to.

    `price` None: `choice_s` for each choice of the fullest rank. `gain`: so many times the seconds
    of the move must be saved until the next look. `node_of_rank` None: all are on one.
    """

    def level(counts: Counts, experts: Experts) -> Floats:
        return look.choice_s * fullest(counts, experts)

    old = placed_experts(model, config, placement)
    wished = place(look.counts, old)
    groups = config.edp * max(1, look.num_steps)
    now, then = ((price or level)(look.counts, each) / groups for each in (old, wished))
    nodes = node_of_rank or (0,) * config.num_devices
    sent: list[list[Transfer]] = [[] for _ in old]
    for each in expert_transfers(model, config, placement, wished, nodes):
        sent[each.layer].append(each)

    def seconds(transfers: Iterable[Transfer]) -> float:
        return look.slowdown * look.rates.seconds(transfers, nodes)

    saved_s = (now - then) * look.steps_left
    pays = [saved > gain * seconds(own) for saved, own in zip(saved_s, sent, strict=True)]
    moves = [each for yes, own in zip(pays, sent, strict=True) for each in own if yes]
    new = tuple(b if yes else a for a, b, yes in zip(old, wished, pays, strict=True))
    stages = _pipeline_ranks(model, config, placement)
    step_s, new_step_s = (_step_s(each, stages) for each in (now, np.where(pays, then, now)))
    move_s = seconds(moves)
    worth = any(pays) and (step_s - new_step_s) * look.steps_left > gain * move_s
    return Decision(
        experts=new if worth else None, step_s=step_s, new_step_s=new_step_s,
        steps_left=look.steps_left, num_bytes=state_bytes(moves), move_s=move_s,
    )  # fmt: skip


def _pipeline_ranks(
    model: ModelSpec, config: ParallelConfig, placement: Placement
) -> NDArray[np.int64]:
    """[layers]: the pipeline rank of each MoE layer."""
    moe = [block for block, kind in enumerate(model.blocks) if kind == "moe"]
    owner = {
        block: rank
        for rank, (first, end) in zip(owners_of(config, placement), placement.stages, strict=True)
        for block in range(first, end)
    }
    return np.array([owner[block] for block in moe], np.int64)


def _step_s(layer_s: Floats, stages: NDArray[np.int64]) -> float:
    return float(np.bincount(stages, weights=layer_s).max(initial=0.0))


def loads(counts: NDArray[np.generic], slots: ExpertSlots) -> Floats:
    """[ranks]: what each rank takes of `counts` [experts] of a layer."""
    shares = slots.shares or tuple((1.0,) * len(rank) for rank in slots.slots)
    total = np.zeros(len(counts))
    for experts, own in zip(slots.slots, shares, strict=True):
        total[list(experts)] += own
    return np.array(
        [
            sum(counts[e] * share / total[e] for e, share in zip(experts, own, strict=True))
            for experts, own in zip(slots.slots, shares, strict=True)
        ],
        np.float64,
    )


def fullest(counts: Counts, experts: Experts) -> Floats:
    """[layers]: the largest load of a rank."""
    return np.array(
        [loads(row, slots).max() for row, slots in zip(counts, experts, strict=True)], np.float64
    )


def by_load(counts: Counts, current: Experts) -> Experts:
    """`Place` by load alone, on ranks that are all alike; a layer that it does not better stays."""
    found = []
    for row, old in zip(counts, current, strict=True):
        new = _spread(row, [len(rank) for rank in old.slots])
        better = new is not None and loads(row, new).max() < loads(row, old).max()
        found.append(keep_in_place(old, new) if new is not None and better else old)
    return tuple(found)


def _spread(counts: NDArray[np.int64], sizes: list[int]) -> ExpertSlots | None:
    """Largest first to the emptiest rank with a free slot; None where a copy finds none left."""
    copies = np.ones(len(counts), np.int64)
    hottest = [(-float(count), expert) for expert, count in enumerate(counts)]
    heapq.heapify(hottest)
    for _ in range(sum(sizes) - len(counts)):
        while copies[hottest[0][1]] == len(sizes):  # a copy on every rank is the most there can be
            heapq.heappop(hottest)
            if not hottest:
                return None
        expert = hottest[0][1]
        copies[expert] += 1
        heapq.heapreplace(hottest, (-counts[expert] / copies[expert], expert))
    each = counts / copies
    ranks: list[list[int]] = [[] for _ in sizes]
    load = [0.0] * len(sizes)
    every: list[int] = np.repeat(np.arange(len(counts)), copies).tolist()
    for expert in sorted(every, key=lambda e: (-each[e], e)):
        free = [r for r, own in enumerate(ranks) if len(own) < sizes[r] and expert not in own]
        if not free:
            return None
        rank = min(free, key=lambda r: (load[r], r))
        ranks[rank].append(expert)
        load[rank] += each[expert]
    return ExpertSlots(slots=tuple(tuple(sorted(own)) for own in ranks))


def keep_in_place(
    old: ExpertSlots, new: ExpertSlots, alike: Sequence[int] | None = None
) -> ExpertSlots:
    """The new slots dealt out so that most experts stay on their ranks.

    Ranks trade whole sets of slots, with others of their kind (`alike`, a number per rank; None:
    all are of one) that have as many.
    """
    n = len(old.slots)
    kinds = [(alike[r] if alike else 0, len(new.slots[r])) for r in range(n)]
    cost = np.array(
        [
            [
                -float(len({*new.slots[a]} & {*old.slots[b]})) if kinds[a] == kinds[b] else 1e9
                for b in range(n)
            ]
            for a in range(n)
        ]
    )
    place = spread_evenly(cost)
    at = {b: a for a, b in enumerate(place)}
    order = [at[b] for b in range(n)]
    return replace(
        new,
        slots=tuple(new.slots[a] for a in order),
        shares=tuple(new.shares[a] for a in order) if new.shares else (),
    )
