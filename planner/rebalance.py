"""Whether experts had better change their places, by what was routed since the last look.

A rank takes its choices of a token one after the other, and all ranks wait for the fullest, so

    layer_s = choice_s * max over ranks of load / steps      load = sum of counts * share
    step_s  = max over pipeline ranks of the sum over their layers

with `choice_s` the seconds of one choice, forward and backward, exchanged and computed. What was
routed is taken to go on until the next look. A layer moves where that alone saves more than its own
move takes, and all that move together must:

    (step_s now - step_s then) * steps until the next look > gain * move_s

Where experts go is another's to say (`Place`); `by_load` has `planner.expert_placement` level the
load alone. Ranks that are alike trade their slots so that most experts stay where they are. Pure:
equal counts and rates give equal places.
"""

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
    keeps_sizes,
    placed_experts,
    state_bytes,
)
from planner.expert_placement import Ranks, Rates, parts_of, place
from planner.pipeline import moe_ranks
from planner.placed import inside_of
from profiler.codec import replace
from profiler.model import ModelSpec
from profiler.profile import Profile
from profiler.routing.trace import Counts, RoutingCounts
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
    wished = tuple(
        new if keeps_sizes(config, before, new) else before
        for before, new in zip(old, place(look.counts, old), strict=True)
    )
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
    stages = np.array(moe_ranks(model, config, placement), np.int64)
    step_s, new_step_s = (_step_s(each, stages) for each in (now, np.where(pays, then, now)))
    move_s = seconds(moves)
    worth = any(pays) and (step_s - new_step_s) * look.steps_left > gain * move_s
    return Decision(
        experts=new if worth else None, step_s=step_s, new_step_s=new_step_s,
        steps_left=look.steps_left, num_bytes=state_bytes(moves), move_s=move_s,
    )  # fmt: skip


def move_rates(profile: Profile) -> MoveRates:
    """By the profile's measured links, else by its transfers and the cluster's NICs."""
    cluster, inside = profile.cluster, min(g.intra.bytes_per_s for g in profile.cluster.groups)
    nics = [g.nics_per_node * g.nic.bytes_per_s for g in cluster.groups for _ in range(g.num_nodes)]
    if profile.links is not None:
        links = profile.links
        return MoveRates(
            inside=min(row[i] for i, row in enumerate(links.bytes_per_s)),
            between=tuple(map(min, links.out_bytes_per_s, links.in_bytes_per_s)),
            source="measured links",
        )
    if profile.is_analytic or len(cluster.groups) > 1:
        return MoveRates(inside=inside, between=tuple(nics), source="the cluster's rates")
    return MoveRates(
        inside=inside_of(profile)[0], between=tuple(nics), source="measured messages in a node"
    )


def _step_s(layer_s: Floats, stages: NDArray[np.int64]) -> float:
    return float(np.bincount(stages, weights=layer_s).max(initial=0.0))


def fullest(counts: Counts, experts: Experts) -> Floats:
    """[layers]: the largest load of a rank."""
    num = counts.shape[1]
    loads = [row @ parts_of(slots, num) for row, slots in zip(counts, experts, strict=True)]
    return np.array([load.max() for load in loads], np.float64)


def by_load(counts: Counts, current: Experts) -> Experts:
    """`Place` by load alone, on ranks that are all alike; a layer that it does not better stays.

    Each rank has as many slots as the ranks have now on average.
    """
    num_ranks, num_experts = len(current[0].slots), counts.shape[1]
    held = max(sum(map(len, layer.slots)) for layer in current)
    ranks = Ranks(
        num_ranks=num_ranks, ranks_per_node=num_ranks,
        slots_per_rank=max(-(-num_experts // num_ranks), held // num_ranks),
        rates=Rates(compute_s=1.0, intra_s=0.0, inter_s=0.0),
    )  # fmt: skip
    routing = RoutingCounts(windows=counts[None])
    found = place(routing, ranks, held_out=0, compare=False).layers
    better = fullest(counts, found) < fullest(counts, current)
    return tuple(
        keep_in_place(old, new) if yes else old
        for old, new, yes in zip(current, found, better, strict=True)
    )


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
    at = {b: a for a, b in enumerate(spread_evenly(cost))}
    order = [at[b] for b in range(n)]
    return replace(
        new,
        slots=tuple(new.slots[a] for a in order),
        shares=tuple(new.shares[a] for a in order) if new.shares else (),
    )
