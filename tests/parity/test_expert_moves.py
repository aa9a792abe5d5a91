"""Experts change their places while training: losses and weights stay those of one process."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from cases import CROWD, DEEP, DROP, HALVES, MOE, ONE_EMPTY, REPLICAS, SHARED, layers, small
from compare import assemble, errors_of
from fork import run_ranks
from grid import MIXTRAL, Case, Parts, part_of_batch, reference, trainer_of

from launch.runtime.checkpoint import Checkpoints
from launch.runtime.expert_moves import Moved, move_experts
from launch.runtime.trainer import Trainer
from planner.config import ExpertSlots
from planner.expert_moves import expert_transfers, state_bytes
from planner.holdings import Holdings
from planner.moves import moves_of
from planner.where import nodes_of_devices
from profiler.errors import UserError
from tests.unit import facts

pytestmark = pytest.mark.distributed

TURNED = ExpertSlots(slots=((4, 5, 6, 7), (0, 1, 2, 3)))
MIXED = ExpertSlots(slots=((0, 6, 2, 5), (4, 1, 3, 7)))
CROSSED = ExpertSlots(
    slots=((7, 6, 5, 4, 3), (2, 1, 0, 3, 6)), shares=((1, 0.25, 1, 1, 2), (1, 1, 1, 1, 1))
)
EMPTY = ExpertSlots(slots=((), tuple(range(8))))
UNEVEN = ExpertSlots(slots=((7,), (6, 5, 4, 3, 2, 1, 0)))
FOUR = ExpertSlots(slots=((0, 4), (1, 5), (2, 6), (3, 7)))
BACK = ExpertSlots(slots=((7, 3), (6, 2), (5, 1), (4, 0)))
OTHER_SHARES = ExpertSlots(slots=REPLICAS.slots, shares=((1, 1, 2, 1, 3), (1, 1, 1, 1, 0.25)))
CASES = {
    "ep2, other shares alone": small(
        model=MOE, dp=2, ep=2, experts=(REPLICAS, REPLICAS),
        moves=((1, (OTHER_SHARES, REPLICAS)), (2, (REPLICAS, OTHER_SHARES))),
    ),
    "ep2": small(model=MOE, dp=2, ep=2, moves=((1, (TURNED, MIXED)), (2, (MIXED, TURNED)))),
    "ep2, dropping, replicas come and go": small(
        model=DROP, dp=2, ep=2, experts=(HALVES, REPLICAS),
        moves=((1, (REPLICAS, HALVES)), (3, (HALVES, CROSSED))), steps=5,
    ),
    "ep4, ranks without experts": small(
        model=SHARED, dp=4, ep=4, micro_batch=1, moves=((1, (ONE_EMPTY, CROWD)), (2, (CROWD, FOUR)))
    ),
    "ep2 edp2, ranks mixed up": small(
        model=MOE, dp=4, ep=2, micro_batch=1, ranks=(3, 0, 2, 1),
        moves=((1, (MIXED, REPLICAS)), (2, (TURNED, MIXED))),
    ),
    "pp2 ep2": small(
        model=layers(MIXTRAL, 3), pp=2, dp=2, ep=2,
        moves=((1, (TURNED, REPLICAS, MIXED)), (2, (TURNED, MIXED, REPLICAS))),
    ),
    "pp2 ep2 zero bubble": small(
        model=MOE, pp=2, dp=2, ep=2, schedule="zero_bubble", moves=((1, (TURNED, REPLICAS)),)
    ),
    "ep2 etp2": small(model=MOE, dp=4, ep=2, etp=2, moves=((1, (TURNED, REPLICAS)),)),
    "tp2 ep2, dense layer first": small(
        model=DEEP, tp=2, ep=2, moves=((1, (REPLICAS, TURNED)), (2, (CROSSED, REPLICAS)))
    ),
    "zero1 ep2, experts whole": small(
        model=MOE, shard=2, zero=1, ep=2, moves=((1, (REPLICAS, TURNED)), (2, (TURNED, MIXED)))
    ),
    "zero1 ep2 edp2": small(
        model=MOE, shard=4, zero=1, ep=2, experts=(REPLICAS, MIXED),
        moves=((1, (CROSSED, TURNED)), (2, (REPLICAS, MIXED))),
    ),
    "zero3 ep2 edp2": small(
        model=DROP, shard=4, zero=3, ep=2, experts=(CROSSED, MIXED),
        moves=((1, (REPLICAS, TURNED)), (2, (CROSSED, TURNED))),
    ),
    "hsdp ep2 edp2, full recomputation": small(
        model=MOE, dp=2, shard=2, zero=2, ep=2, recompute="full", micro_batch=1,
        moves=((1, (MIXED, TURNED)),),
    ),
    "zero1 ep2 edp2, other numbers of slots": small(
        model=MOE, shard=4, zero=1, ep=2, experts=(HALVES, REPLICAS),
        moves=((1, (REPLICAS, UNEVEN)), (2, (UNEVEN, CROSSED)), (3, (HALVES, TURNED))), steps=5,
    ),
    "zero3 ep2 edp2, other numbers of slots, recomputation": small(
        model=DROP, shard=4, zero=3, ep=2, recompute="full", micro_batch=1,
        moves=((1, (UNEVEN, REPLICAS)), (3, (REPLICAS, UNEVEN))), steps=5,
    ),
    "hsdp pp2 ep2 edp2, other numbers of slots": small(
        model=MOE, pp=2, dp=2, shard=2, zero=2, ep=2, micro_batch=1,
        moves=((1, (UNEVEN, REPLICAS)), (2, (TURNED, UNEVEN))),
    ),
    "zero3 ep2 etp2, sgd": small(
        model=MOE, shard=4, zero=3, ep=2, etp=2, optimizer="sgd", moves=((1, (MIXED, REPLICAS)),)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_training_goes_on_as_if_nothing_had_moved(name: str) -> None:
    errors = errors_of(CASES[name])
    assert errors.is_small, errors


BYTES = {
    "two nodes of two": small(
        model=MOE, dp=4, ep=2, micro_batch=1, moves=((1, (TURNED, REPLICAS)),)
    ),
    "ep2 edp2, sharded": small(
        model=MOE, shard=4, zero=1, ep=2, moves=((1, (TURNED, MIXED)),), ranks=(3, 0, 2, 1)
    ),
    "ep2 edp2, sharded, other numbers of slots": small(
        model=MOE, shard=4, zero=3, ep=2, moves=((1, (UNEVEN, REPLICAS)),)
    ),
    "pp2 ep2 etp2": small(
        model=MOE, pp=2, dp=4, ep=2, etp=2, micro_batch=1, moves=((1, (REPLICAS, TURNED)),)
    ),
}


def _step(trainer: Trainer, case: Case, step: int) -> float:
    loss = trainer.step(*part_of_batch(trainer, case, step)).loss
    return float("nan") if loss is None else loss.item()


def _moved(case: Case) -> Moved:
    """In float32, so that what is sent is what the planner counts."""
    trainer = trainer_of(case)
    _step(trainer, case, 0)
    nodes = [rank // 2 for rank in range(case.config.num_devices)]
    return move_experts(trainer, case.moves[0][1], nodes)


@pytest.mark.parametrize("name", BYTES)
def test_the_bytes_sent_are_those_that_the_planner_counts(name: str) -> None:
    case = dataclasses.replace(BYTES[name], dtype=torch.float32)
    config, placement = case.config, case.placement
    cluster = facts.cluster(num_nodes=config.num_devices // 2, per_node=2)
    new = dataclasses.replace(placement, experts=case.moves[0][1])
    before, after = (Holdings(case.model, config, p) for p in (placement, new))
    same = {device: device for device in range(config.num_devices)}
    moves = moves_of(case.model, before, after, same, cluster)
    found = run_ranks(config.num_devices, _moved, case)
    assert [m.received_bytes for m in found] == [r.fetched_bytes for r in moves.ranks]
    assert sum(m.sent_bytes for m in found) == moves.fetched_bytes > 0
    nodes = nodes_of_devices(cluster)
    transfers = expert_transfers(case.model, config, placement, new.experts, nodes)
    assert state_bytes(transfers) == moves.fetched_bytes
    flows: Counter[tuple[int, int]] = Counter()
    for each in transfers:
        flows[nodes[each.source], nodes[each.target]] += state_bytes([each])
    assert flows == {(f.source, f.target): f.num_bytes for f in moves.flows}


def test_nothing_is_sent_where_nothing_changes() -> None:
    case = small(model=MOE, dp=2, ep=2, experts=(MIXED, HALVES), dtype=torch.float32)
    case = dataclasses.replace(case, moves=((1, case.experts),))
    assert [m.sent_bytes for m in run_ranks(2, _moved, case)] == [0, 0]


BF16 = {
    "sizes change": small(model=MOE, dp=2, ep=2, moves=((1, (HALVES, REPLICAS)),)),
    "zero2 edp2": small(model=MOE, shard=4, zero=2, ep=2, moves=((1, (TURNED, MIXED)),)),
    "zero3 edp2, sizes change": small(
        model=MOE, shard=4, zero=3, ep=2, moves=((1, (UNEVEN, REPLICAS)),)
    ),
    "zero1, experts whole": small(
        model=DROP, shard=2, zero=1, ep=2, moves=((1, (REPLICAS, HALVES)),)
    ),
}


def _states(case: Case) -> list[tuple[list[float], list[float], Parts]]:
    """Weights and moments of this rank before and after a move, in bf16 with float32 masters."""
    trainer = trainer_of(case)
    _step(trainer, case, 0)
    found = [([1.0], [], _state(trainer))]
    move_experts(trainer, case.moves[0][1])
    for held, weight in zip(trainer.held, trainer.weights, strict=True):
        assert held.local.shape == weight.shape
        assert torch.equal(held.local, weight.detach().to(held.local.dtype))
    return [*found, ([1.0], [], _state(trainer))]


def _state(trainer: Trainer) -> Parts:
    kept = ("exp_avg", "exp_avg_sq")
    return [
        (f"{kind}/{c.name}", c.shape, c.offset, value[c.where].clone())
        for held, weight in zip(trainer.held, trainer.weights, strict=True)
        for kind, value in [
            ("weight", weight.detach()),
            *((kind, trainer.optimizer.state[weight][kind]) for kind in kept),
        ]
        for c in held.chunks
    ]


@pytest.mark.parametrize("name", BF16)
def test_weights_and_moments_are_the_same_bits_elsewhere(name: str) -> None:
    case = dataclasses.replace(BF16[name], dtype=torch.bfloat16)
    results = run_ranks(case.config.num_devices, _states, case)
    before, after = (assemble([own[i] for own in results]) for i in (0, 1))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == torch.float32
        assert not value.isnan().any()
        assert torch.equal(value, after[key]), key


SAVED = {
    "zero3 edp2, other numbers of slots": small(
        model=MOE, shard=4, zero=3, ep=2, moves=((1, (UNEVEN, REPLICAS)),)
    ),
    "zero1 edp2, replicas gone": small(
        model=MOE, shard=4, zero=1, ep=2, experts=(REPLICAS, CROSSED),
        moves=((1, (TURNED, UNEVEN)),),
    ),
}  # fmt: skip


def _saved(case: Case, root: Path) -> tuple[list[float], list[float], bool]:
    """Losses after a move, of the trainer and of one that goes on from its checkpoint; whether
    experts are in the same places there."""
    trainer, again = trainer_of(case), trainer_of(case)
    _step(trainer, case, 0)
    move_experts(trainer, case.moves[0][1])
    checkpoints = Checkpoints(trainer, root, keep=1)
    checkpoints.save(1)
    checkpoints.wait()
    resumed = Checkpoints(again, root, keep=1)
    folder = resumed.newest()
    assert folder is not None
    assert resumed.load(folder, experts_too=True) == 1
    losses = [[_step(each, case, step) for step in (1, 2)] for each in (trainer, again)]
    return losses[0], losses[1], again.placement == trainer.placement


@pytest.mark.parametrize("name", SAVED)
def test_training_goes_on_from_a_checkpoint_after_a_move(name: str, tmp_path: Path) -> None:
    case = SAVED[name]
    for still, resumed, same in run_ranks(case.config.num_devices, _saved, case, tmp_path):
        assert same
        assert resumed == pytest.approx(still, rel=1e-12, nan_ok=True)


def _refused(case: Case) -> tuple[str, list[float]]:
    """What is said, and the losses of two steps around it: nothing was moved."""
    trainer = trainer_of(case)
    losses = [_step(trainer, case, 0)]
    with pytest.raises(UserError) as error:
        move_experts(trainer, case.moves[0][1])
    return error.value.message, [*losses, _step(trainer, case, 1)]


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (small(model=MOE, shard=4, zero=2, ep=2, moves=((1, (EMPTY, MIXED)),)), "its last"),
        (small(model=MOE, dp=2, ep=2, moves=((1, (HALVES,)),)), "1 layers are placed"),
        (small(model=MOE, dp=4, ep=4, moves=((1, (HALVES, HALVES)),)), "slots for 2 ranks"),
    ],
    ids=["zero-empty", "layers", "ranks"],
)
def test_what_cannot_be_is_refused_before_anything_moves(case: Case, why: str) -> None:
    still = dataclasses.replace(case, moves=())
    found = run_ranks(case.config.num_devices, _refused, case)
    assert all(why in message for message, _ in found)
    curve = reference(dataclasses.replace(still, steps=2))[0]
    assert all(losses == pytest.approx(curve, rel=1e-12) for _, losses in found)
