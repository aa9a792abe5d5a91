"""Where the experts of each MoE layer go, from recorded routing, and what that is worth.

    compute_s     2 * matrices * h * x FLOP of a choice, over the device's reachable rate
    intra_s       2 * h * e bytes of a copy, out and back, over a device's fast link
    inter_s       the same over a device's share of its node's NICs

In training a choice is computed three times as much (once forward, twice backward, for the input
and for the weights), and sent twice as often. `solvers.experts` finds the placement; it is made
from the first tokens of a recording and judged on the last as well.

A placement leaves ranks unevenly loaded: `load_of` says what the fullest takes. The tokens of one
exchange are few, so that even a level placement has a fullest rank: the load is the mean over
windows of as many tokens as meet in one exchange.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.config import ExpertSlots
from profiler.cluster import NodeGroup
from profiler.errors import UserError
from profiler.job import ACTIVATION_BYTES, JobSpec
from profiler.model import ModelSpec
from profiler.profile import ExpertLoad
from profiler.routing.trace import HELD_OUT, Routing, RoutingTrace
from solvers.experts.baselines import contiguous, eplb, round_robin
from solvers.experts.problem import Copies, Placed, Problem, Score, Traffic
from solvers.experts.score import score
from solvers.experts.solve import Method, solve

Floats = NDArray[np.float64]
TINY = 1e-300
"""Instead of 0, where nothing was routed."""
FEWEST_WINDOWS = 4
"""Windows over which a load is a mean, at least: of a short recording they have fewer tokens."""
_COMPUTED, _SENT = 3.0, 2.0
"""Times in a training step, relative to a forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Seconds that one choice takes."""

    compute_s: float
    intra_s: float
    inter_s: float

    @property
    def trained(self) -> "Rates":
        """Of forward and backward together, given those of forward."""
        return Rates(
            compute_s=_COMPUTED * self.compute_s,
            intra_s=_SENT * self.intra_s,
            inter_s=_SENT * self.inter_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Where experts may go: ranks, in nodes, with slots; and what they exchange."""

    num_ranks: int
    ranks_per_node: int
    slots_per_rank: int
    rates: Rates
    traffic: Traffic = "home"
    copies: Copies = "choice"
    """What travels of a token: the reference runtime sends one copy per choice."""
    num_groups: int = 1
    pair_s: Floats | None = None
    """[nodes, nodes]: seconds per copy, all ways, where links were measured one by one."""
    out_s: Floats | None = None
    """[nodes]: of a copy that leaves a node."""
    in_s: Floats | None = None
    slowdown: Floats | None = None
    """[ranks]: what each takes for the same computation, relative to the rates; None: 1."""
    near_s: Floats | None = None
    """[nodes]: of a copy inside a node, where nodes are unlike."""
    far_s: Floats | None = None
    """[nodes]: of a copy between nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPlan:
    """A placement with its figures."""

    ranks: Ranks
    problem: Problem
    """As the solver had it."""
    method: str
    layers: tuple[ExpertSlots, ...]
    placed: Placed
    train: Score
    """On the tokens it was made from."""
    held_out: Score | None
    """On those it has not seen; None where there are none."""
    objective_s: float
    bound_s: float
    """No placement takes less on the tokens it was made from."""
    others: dict[str, tuple[Score, Score | None]] = field(default_factory=dict)
    """Usual placements on the same tokens."""

    @property
    def gap(self) -> float:
        """(objective - bound) / objective."""
        return 1 - self.bound_s / self.objective_s if self.objective_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlike:
    """Seconds of a choice on ranks that are on several node groups, and on each group alone."""

    compute_s: Floats
    """[ranks]"""
    copy_s: Floats
    """[ranks]: between nodes."""
    group_compute_s: Floats
    """[groups]"""
    group_copy_s: Floats


def rates_of(model: ModelSpec, job: JobSpec, node: NodeGroup, constants: dict[str, float]) -> Rates:
    """Of a forward pass on a catalogued node, with the time model's constants."""
    device = node.device
    peak = device.flops_per_s.get(job.precision, max(device.flops_per_s.values()))
    matrices = 2 + model.gated_ffn
    flops = 2.0 * matrices * model.hidden_size * model.expert_width
    num_bytes = 2.0 * model.hidden_size * ACTIVATION_BYTES[job.precision]
    share = node.nic.bytes_per_s * node.nics_per_node / node.devices_per_node
    return Rates(
        compute_s=flops / (peak * constants.get("matrix_efficiency", device.gemm_efficiency)),
        intra_s=num_bytes / (node.intra.bytes_per_s * constants.get("inner_efficiency", 1.0)),
        inter_s=num_bytes / (share * constants.get("network_efficiency", 1.0)),
    )


def slots_of(num_experts: int, num_ranks: int, redundant: int) -> int:
    """Slots of each rank for the experts and `redundant` more; `UserError` where they are no whole
    number."""
    slots, rest = divmod(num_experts + redundant, num_ranks)
    if rest:
        more = num_ranks - rest
        raise UserError(
            f"{num_experts} experts and {redundant} replicas do not fill {num_ranks} ranks evenly",
            hint=f"take {redundant + more} replicas, or an `ep` that divides",
        )
    if redundant < 0:
        raise UserError(f"{-redundant} slots are missing for {num_experts} experts")
    return slots


def problem_of(routing: Routing, ranks: Ranks) -> Problem:
    """The solvers' problem of a recording."""
    ids = (
        routing.ids
        if isinstance(routing, RoutingTrace)
        else np.empty((0, routing.num_layers, 1), np.int16)
    )
    return Problem(
        ids=ids, counts=routing.counts().astype(np.float64), num_ranks=ranks.num_ranks,
        ranks_per_node=ranks.ranks_per_node, slots_per_rank=ranks.slots_per_rank,
        traffic=ranks.traffic, copies=ranks.copies, compute_s=ranks.rates.compute_s,
        intra_s=ranks.rates.intra_s, inter_s=ranks.rates.inter_s, pair_s=ranks.pair_s,
        out_s=ranks.out_s, in_s=ranks.in_s, num_groups=ranks.num_groups,
        slowdown=ranks.slowdown, near_s=ranks.near_s, far_s=ranks.far_s,
    )  # fmt: skip


def slots_of_layers(placed: Placed, num_ranks: int) -> tuple[ExpertSlots, ...]:
    """A placement as a plan has it: copies of an expert on one rank are one, those that take no
    tokens are none, and shares are left out where every expert has one holder."""
    found = []
    for row, shares in zip(placed.slots, placed.shares, strict=True):
        ranks: list[dict[int, float]] = []
        for own, parts in zip(
            row.reshape(num_ranks, -1), shares.reshape(num_ranks, -1), strict=True
        ):
            held: dict[int, float] = {}
            for expert, part in zip(own.tolist(), parts.tolist(), strict=True):
                if part > 0:
                    held[expert] = held.get(expert, 0.0) + part
            ranks.append(held)
        alone = sum(map(len, ranks)) == len(set().union(*ranks))
        weights = () if alone else tuple(tuple(held.values()) for held in ranks)
        found.append(ExpertSlots(slots=tuple(tuple(held) for held in ranks), shares=weights))
    return tuple(found)


def load_of(
    routing: Routing,
    parts: Sequence[Floats],
    slots_per_rank: int,
    *,
    window: int,
    capacity: float = 0.0,
    keep_shares: bool = False,
    unlike: Unlike | None = None,
) -> ExpertLoad:
    """What a placement leaves to the fullest rank, of exchanges of `window` tokens each. `parts`:
    of each layer, what part of each expert's choices each rank takes, [experts, ranks].
    `capacity`: choices that an expert takes at most, over the mean expert's; the rest is dropped
    (GShard, arXiv:2006.16668); 0: nothing is. `unlike`: speeds of the ranks, where they
    differ."""
    windows = _windows(routing, window)
    if capacity:
        windows = np.minimum(windows, capacity * windows.mean(axis=2, keepdims=True))
    loads = np.stack([w @ part for w, part in zip(windows.swapaxes(0, 1), parts, strict=True)])
    mean = np.maximum(loads.mean(axis=2), TINY)
    total = loads.sum(axis=(0, 1))
    shares = loads.sum(axis=1) / np.maximum(loads.sum(axis=(1, 2)), TINY)[:, None]
    return ExpertLoad(
        ep=parts[0].shape[1],
        slots_per_rank=slots_per_rank,
        imbalance=max(1.0, float((loads.max(axis=2) / mean).mean())),
        held_imbalance=max(1.0, float(total.max() / max(total.mean(), TINY))),
        group_computed=()
        if unlike is None
        else _of_groups(loads / mean[..., None], unlike.compute_s, unlike.group_compute_s),
        # No rank sends less than the mean, whatever it receives.
        group_sent=()
        if unlike is None
        else _of_groups(
            np.maximum(loads / mean[..., None], 1.0), unlike.copy_s, unlike.group_copy_s
        ),
        replicated=float(np.mean([((part > 0).sum(axis=1) > 1).sum() for part in parts])),
        shares=tuple(tuple(float(x) for x in row) for row in shares) if keep_shares else (),
    )


def _of_groups(loads: Floats, rank_s: Floats, group_s: Floats) -> tuple[float, ...]:
    """Per node group, the load that would take it as long as the slowest of `loads` [.., ranks]
    takes its rank."""
    slowest_s = float((loads * rank_s).max(axis=-1).mean())
    return tuple(slowest_s / each if each else 1.0 for each in group_s.tolist())


def parts_of(layer: ExpertSlots, num_experts: int) -> Floats:
    """[experts, ranks]: what part of each expert's choices each rank takes."""
    found = np.zeros((num_experts, len(layer.slots)))
    for rank, experts in enumerate(layer.slots):
        for slot, expert in enumerate(experts):
            found[expert, rank] += layer.shares[rank][slot] if layer.shares else 1.0
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def _windows(routing: Routing, window: int) -> Floats:
    """[windows, layers, experts]: choices in consecutive stretches of the recording."""
    if not isinstance(routing, RoutingTrace):
        return routing.windows.astype(np.float64)
    number = max(FEWEST_WINDOWS, routing.num_tokens // max(window, 1))
    return routing.windows(number).astype(np.float64)


def routing_groups(model: ModelSpec) -> int:
    """Groups of experts to which a token's choices are limited; 1 where they are not."""
    limited = model.num_chosen_groups < model.num_expert_groups
    return model.num_expert_groups if limited else 1


def degrees_of(
    model: ModelSpec, num_devices: int, wanted: Sequence[int] = (), *, all_devices: bool = True
) -> tuple[int, ...]:
    """Degrees of `ep` that the search may take on all devices or on some of them, 1 left out."""
    return tuple(
        ep
        for ep in range(2, min(model.num_experts, num_devices) + 1)
        if model.num_experts % ep == 0
        and (not all_devices or num_devices % ep == 0)
        and (not wanted or ep in wanted)
    )


def place(
    routing: Routing,
    ranks: Ranks,
    *,
    held_out: float = HELD_OUT,
    method: Method = "auto",
    seed: int = 0,
    compare: bool = True,
) -> ExpertPlan:
    """The best placement found for all but the last `held_out` share of the tokens.

    `compare`: usual placements besides. Counts without tokens are taken whole. Raises `UserError`
    where `method` cannot solve this problem.
    """
    train, test = _parts(routing, held_out)
    problem = problem_of(train, ranks)
    try:
        solved = solve(problem, seed=seed, method=method)
    except ValueError as e:
        if method == "auto":
            raise
        raise UserError(
            f"`{method}` does not place these experts: {e}", hint="leave the method to `auto`"
        ) from None
    if solved.value is None or solved.objective is None:
        raise UserError(
            f"`{method}` finds no placement of {problem.num_experts} experts on "
            f"{ranks.num_ranks} ranks with {ranks.slots_per_rank} slots",
            hint="leave the method to `auto`",
        )

    def scores(placed: Placed) -> tuple[Score, Score | None]:
        return score(problem, placed), score(problem, placed, test.ids) if test else None

    own, unseen = scores(solved.value)
    others = {name: scores(made) for name, made in usual(problem).items()} if compare else {}
    return ExpertPlan(
        ranks=ranks,
        problem=problem,
        method=solved.method,
        layers=slots_of_layers(solved.value, ranks.num_ranks),
        placed=solved.value,
        train=own,
        held_out=unseen,
        objective_s=solved.objective,
        bound_s=solved.bound or 0.0,
        others=others,
    )


def usual(problem: Problem) -> dict[str, Placed]:
    """What systems do by themselves."""
    by_node = problem.num_groups % problem.num_nodes == 0 and problem.num_nodes > 1
    return {
        "contiguous": contiguous(problem),
        "round-robin": round_robin(problem),
        "eplb": eplb(problem, hierarchical=by_node),
    }


def _parts(routing: Routing, held_out: float) -> tuple[Routing, RoutingTrace | None]:
    if not isinstance(routing, RoutingTrace) or held_out == 0:
        return routing, None
    train, test = routing.parted(held_out)
    if not train.num_tokens or not test.num_tokens:
        raise UserError(
            f"{routing.num_tokens} tokens cannot be parted, {held_out:g} of them held out",
            hint="record more tokens, or pass `--held-out 0`",
        )
    return train, test
