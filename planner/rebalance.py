"""Whether experts had better change their places, by what was routed since the last look.

What was routed since is taken to go on until the next look. With the seconds of a layer in one
group of `ep` by `planner.routed_places`, computed and exchanged, forward and backward,

    layer_s = seconds of all that was routed / (groups * steps)
    step_s  = max over pipeline ranks of the sum over their layers

A layer moves where that alone saves more than its own move takes, and all that move together must:

    (step_s now - step_s then) * steps until the next look > gain * move_s

Where experts go is `Places.place`'s to say, what that is worth `Places.price`'s. Pure: equal counts
and rates give equal places.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.config import ParallelConfig, Placement
from planner.expert_moves import (
    Experts,
    MoveRates,
    Transfer,
    can_change,
    expert_transfers,
    placed_experts,
    state_bytes,
)
from planner.pipeline import moe_ranks
from planner.placed import inside_of
from planner.routed_places import Floats
from profiler.model import ModelSpec
from profiler.profile import Profile
from profiler.routing.trace import Counts


class Places(Protocol):
    """Where experts may go; `planner.routed_places`."""

    def place(self, counts: Counts, current: Experts) -> Experts:
        """`counts` [layers, experts] -> slots of every layer; with as many as they have."""
        ...

    def price(self, counts: Counts, experts: Experts) -> Floats:
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
    rates: MoveRates
    slowdown: float = 1.0
    """What moves of this run took over what was predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Move or stay, and what it rests on."""

    experts: Experts | None
    """Where they go; None: nothing pays."""
    step_s: float
    """Seconds of a step's experts, exchanges included, where they are now."""
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
    places: Places,
    *,
    gain: float = 1.0,
    node_of_rank: Sequence[int] | None = None,
) -> Decision:
    """Whether to move, and where to.

    `gain`: so many times the seconds of the move must be saved until the next look.
    `node_of_rank` None: all are on one.
    """
    old = placed_experts(model, config, placement)
    wished = tuple(
        new if can_change(config, before, new) else before
        for before, new in zip(old, places.place(look.counts, old), strict=True)
    )
    groups = config.edp * max(1, look.num_steps)
    now, then = (places.price(look.counts, each) / groups for each in (old, wished))
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
