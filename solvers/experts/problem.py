"""Experts of each MoE layer to slots of ranks: what is given, what is decided, and what it costs.

    T = sum over layers of  compute_s * max over ranks of load  +  traffic of the layer

A rank's load is the sum over its slots of counts[l, expert] * share; where ranks are unlike it
counts by `slowdown`, what the rank takes for the same work. Traffic is one of two kinds.

home     A token leaves from its home rank for the ranks of its choices and comes back (DeepSeek-V3,
         every usual MoE runtime). Homes are even over the ranks, so of the copies that a node
         needs (nodes - 1) / nodes cross. What counts is the number of copies: one per distinct
         node and then per distinct rank ("node"), per distinct rank ("rank"), per choice
         ("choice").
chained  A token goes from where layer l put it straight to layer l + 1 (ExFlow, arXiv:2401.08383;
         MoETuner, arXiv:2502.06643): flow[a, b] = pairs of choices in layers l and l + 1 on ranks a
         and b, each pair weighing 1 / k; the flow after layer l is part of layer l.

Replicas: each choice goes to one of its expert's holders, drawn by share, independently. Everything
here is the expectation of a count under such draws, in closed form: exact, and without replicas
simply the count. Only the largest of several counts is that of the expectations and not the
expectation of the largest, which sampling exceeds by its noise.

Without tokens (counts alone) choices are taken to be independent of each other.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Traffic = Literal["home", "chained"]
Copies = Literal["node", "rank", "choice"]
DROPPED = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Routing, ranks with their slots, and what each unit of work takes."""

    ids: NDArray[np.integer]
    """[tokens, layers, k]: expert of each choice, -1 where it was dropped; there may be no tokens,
    k counts all the same."""
    counts: Floats
    """[layers, experts]: choices of each expert, the load. Where they are of more tokens than
    `ids`, traffic is scaled up to them."""
    num_ranks: int
    ranks_per_node: int
    slots_per_rank: int
    traffic: Traffic = "home"
    copies: Copies = "node"
    """What travels, of traffic "home"."""
    compute_s: float = 0.0
    """Seconds that a rank takes for one choice of a token."""
    slowdown: Floats | None = None
    """[ranks]: what each takes for the same computation, relative to `compute_s`; None: 1."""
    intra_s: float = 0.0
    """Seconds per copy that enters a rank inside a node (chained: per copy between two ranks)."""
    inter_s: float = 0.0
    """Seconds per copy through one NIC, of which each rank has one."""
    pair_s: Floats | None = None
    """[nodes, nodes]: seconds per copy from node to node where they were measured, instead of
    `inter_s`; the diagonal is not read."""
    out_s: Floats | None = None
    """[nodes]: seconds per copy that leaves a node; None: no limit but `pair_s`."""
    in_s: Floats | None = None
    """[nodes]: seconds per copy that enters a node."""
    near_s: Floats | None = None
    """[nodes]: seconds per copy inside each, where they are unlike, instead of `intra_s`."""
    far_s: Floats | None = None
    """[nodes]: seconds per copy through a NIC of each, where they are unlike, instead of `inter_s`;
    what a rank sends counts as well then."""
    num_groups: int = 1
    """Groups of consecutive experts to which routing was limited; 1: not limited."""

    def __post_init__(self) -> None:
        wrong = _wrong(self)
        if wrong:
            raise ValueError(wrong)

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self.counts.shape[0])

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return int(self.counts.shape[1])

    @property
    def num_slots(self) -> int:
        """Slots of a layer, on all ranks."""
        return self.num_ranks * self.slots_per_rank

    @property
    def num_nodes(self) -> int:
        """Nodes, all with as many ranks."""
        return self.num_ranks // self.ranks_per_node

    @property
    def top_k(self) -> int:
        """Choices per token."""
        return int(self.ids.shape[2])

    @property
    def rank_of_slot(self) -> Ints:
        """[slots]: slots are rank-major."""
        return np.arange(self.num_slots) // self.slots_per_rank

    @property
    def slow(self) -> Floats:
        """[ranks]: `slowdown`, or ones."""
        return np.ones(self.num_ranks) if self.slowdown is None else self.slowdown

    @property
    def unlike(self) -> bool:
        """Whether some ranks compute slower than others."""
        return self.slowdown is not None and bool(np.ptp(self.slowdown) > 0)

    @property
    def inside_s(self) -> Floats:
        """[nodes]: `near_s`, or `intra_s` of every node."""
        return np.full(self.num_nodes, self.intra_s) if self.near_s is None else self.near_s

    @property
    def between_s(self) -> Floats:
        """[nodes]: `far_s`, or `inter_s` of every node."""
        return np.full(self.num_nodes, self.inter_s) if self.far_s is None else self.far_s

    @property
    def measured(self) -> bool:
        """Whether links between nodes are given one by one."""
        return self.pair_s is not None or self.out_s is not None or self.in_s is not None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """Which expert each slot holds, and which part of its expert's choices it takes."""

    slots: Ints
    """[layers, slots], rank-major: slots r * slots_per_rank .. are rank r's."""
    shares: Floats
    """[layers, slots]: not negative; those of one expert sum to 1 in each layer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """What a placement costs on given tokens."""

    max_over_mean: float
    """Largest load of a rank over the mean load, mean over layers; of unlike ranks the longest time
    over that of all if they took equally long."""
    worst_layer: float
    """The same of the worst layer."""
    nodes_per_token: float
    """Distinct nodes that hold a token's choices, mean over tokens and layers; 0 without tokens."""
    ranks_per_token: float
    """Distinct ranks, likewise."""
    hops: float
    """Moves between consecutive layers if tokens were chained: 1 inside a node, 2 across, each pair
    of choices weighing 1 / k."""
    layer_s: Floats
    """[layers]: seconds."""
    time_s: float


def even_shares(slots: Ints, num_experts: int) -> Floats:
    """[layers, slots]: every expert's choices split evenly over its slots."""
    shares = np.empty(slots.shape)
    for layer, row in enumerate(slots):
        shares[layer] = 1 / np.bincount(row, minlength=num_experts)[row]
    return shares


def held(problem: Problem, placed: Placed, layer: int) -> Floats:
    """[experts, ranks]: the part of each expert's choices that each rank takes."""
    part = np.zeros((problem.num_experts, problem.num_ranks))
    np.add.at(part, (placed.slots[layer], problem.rank_of_slot), placed.shares[layer])
    return part


def check(problem: Problem, placed: Placed) -> None:
    """Raises ValueError unless every slot holds an expert, every expert is held, and shares sum
    to 1."""
    shape = (problem.num_layers, problem.num_slots)
    if placed.slots.shape != shape or placed.shares.shape != shape:
        raise ValueError(f"slots and shares must be {shape}")
    for layer in range(problem.num_layers):
        sums = np.zeros(problem.num_experts)
        np.add.at(sums, placed.slots[layer], placed.shares[layer])
        if (placed.shares[layer] < 0).any() or np.abs(sums - 1).max() > 1e-6:
            raise ValueError(f"layer {layer}: the shares of each expert must sum to 1")


def _wrong(problem: Problem) -> str:
    """What is wrong with it; empty: nothing."""
    ids, counts = problem.ids, problem.counts
    if ids.ndim != 3 or counts.ndim != 2 or ids.shape[1] != counts.shape[0] or not ids.shape[2]:
        return "ids [tokens, layers, k] and counts [layers, experts] do not fit each other"
    if not len(counts):
        return "there is no layer"
    if problem.num_ranks % problem.ranks_per_node:
        return "the ranks do not fill whole nodes"
    if problem.num_slots < problem.num_experts:
        return "there are fewer slots than experts"
    if problem.num_experts % problem.num_groups:
        return "the groups do not divide the experts"
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        return "counts must be finite and not negative"
    of_nodes = {problem.inside_s.shape, problem.between_s.shape}
    if problem.slow.shape != (problem.num_ranks,) or of_nodes != {(problem.num_nodes,)}:
        return "slowdown [ranks], near_s and far_s [nodes] do not fit the ranks and nodes"
    if not (np.isfinite(problem.slow).all() and (problem.slow > 0).all()):
        return "slowdown must be finite and positive"
    if ids.size and not (ids.min() >= DROPPED and ids.max() < problem.num_experts):
        return "expert ids are out of range"
    return ""
