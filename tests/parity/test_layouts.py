"""Every layout trains the same model: losses, gradient norms and weights against one process.

Tolerances in float64 (`compare.py`). Layouts add up the same numbers in different orders, each sum
with a relative error of a few times 2^-53 = 1e-16. A loss or norm is one such sum, of weights that
differ as below: at most 1e-12 off (measured: 6e-14). A weight is held against how far its tensor
moved in the three steps, not against its size, so that a wrong gradient of a tensor that hardly
moves shows. AdamW divides a gradient by its own size, so that an entry whose parts nearly cancel is
off by more than a sum of its size would be: at most 1e-8 of the largest movement (measured: 1e-10).
A gradient that is wrong by a thousandth is five orders of magnitude above that.
"""

import itertools
from collections.abc import Hashable

import pytest
import torch
from cases import CASES, small
from compare import (
    LOSS_TOLERANCE,
    NORM_TOLERANCE,
    assemble,
    compare,
    errors_of,
    outcome,
)
from fork import RankError, run_ranks
from grid import Case, first_weights, reference, train_rank
from mixed import MIXED

from planner.schedules import SPLIT_BACKWARD

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("name", CASES)
def test_layout_trains_as_one_process_does(name: str) -> None:
    errors = errors_of(CASES[name])
    assert errors.is_small, errors


@pytest.mark.parametrize(
    "case",
    [
        small(tp=2, pp=2, optimizer="sgd", dtype=torch.float32),
        small(shard=2, zero=3, cp=2, optimizer="sgd", dtype=torch.float32),
    ],
    ids=["tp2 pp2", "zero3 ring"],
)
def test_float32_trains_as_float64_does(case: Case) -> None:
    """As above with 2^-24 = 6e-8; a weight of the size of 1 that moves by 1e-4 is itself rounded to
    1e-3 of that."""
    errors = errors_of(case)
    assert errors.loss <= 1e-6
    assert errors.norm <= 1e-6
    assert errors.weight <= 2e-3, errors.where


@pytest.mark.parametrize(
    "case",
    [
        small(tp=2, pp=2, lr=1e-5, dtype=torch.bfloat16),
        small(shard=2, zero=2, cp=2, lr=1e-5, dtype=torch.bfloat16),
    ],
    ids=["tp2 pp2", "zero2 ring"],
)
def test_bf16_keeps_what_bf16_cannot_hold(case: Case) -> None:
    """Steps of 1e-5 are below half of what separates most weights in bf16 (2^-8 of their size), so
    that without float32 masters they would be lost. With them, every tensor's movement is that of
    float64 to a quarter: gradients are as exact as bf16, but AdamW makes as much of small ones."""
    got, expected = outcome(run_ranks(4, train_rank, case)), reference(case)
    assert got[0] == pytest.approx(expected[0], rel=1e-3)
    assert got[1] == pytest.approx(expected[1], rel=1e-2)
    true, first = expected[2], first_weights(expected[2])
    for name, weight in got[2].items():
        assert weight.dtype == torch.float32
        moved = (true[name] - first[name]).norm()
        assert (weight.double() - true[name]).norm() <= 0.25 * moved, name
        assert (true[name].bfloat16().double() - true[name]).norm() > 0.9 * moved, name


def test_the_comparison_refuses_what_differs() -> None:
    losses, norms, weights = expected = reference(small())
    assert compare(expected, expected).weight == 0
    name = "blocks.1.ffn.up.weight"
    rolled = weights | {name: weights[name].roll(1, 0)}
    errors = compare((losses, norms, rolled), expected)
    assert errors.weight > 1
    assert errors.where == name
    late = [loss * (1 + 1e-11) for loss in losses]
    assert compare((late, norms, weights), expected).loss > LOSS_TOLERANCE
    assert compare((losses, late, weights), expected).norm > NORM_TOLERANCE
    with pytest.raises(AssertionError, match="not finite"):
        compare((losses, norms, weights | {name: weights[name] * torch.nan}), expected)
    with pytest.raises(AssertionError, match=r"up\.weight"):
        compare((losses, norms, {n: w for n, w in weights.items() if n != name}), expected)
    with pytest.raises(ValueError, match="longer"):
        compare((losses[:-1], norms, weights), expected)
    part = (name, tuple(rolled[name].shape), (0, 0))
    ranks = [(losses, norms, [(*part, w[name])]) for w in (weights, rolled)]
    with pytest.raises(AssertionError, match="copies differ"):
        assemble(ranks)


def _options(case: Case) -> dict[str, Hashable]:
    """What a case chooses of each kind, where it is not the plain choice."""
    kinds: dict[str, Hashable] = {
        "tp": case.tp > 1,
        "pp": case.pp > 1,
        "dp_replicate": case.dp > 1,
        "dp_shard": case.zero,
        "cp": case.cp > 1 and case.cp_method,
        "ep": case.ep > 1,
        "etp": case.etp > 1,
        "ep_overlap": case.ep_overlap > 1,
        "edp": case.model.num_experts > 0 and case.config.edp > 1,
        "schedule": case.pp > 1 and case.schedule,
        "recompute": case.recompute != "none" and case.recompute,
        "tied": case.model.tie_embeddings,
        "dropping": case.model.capacity_group > 0,
        "shared": case.model.shared_ffn_hidden_size > 0,
        "experts": bool(case.experts),
        "ranks": bool(case.ranks),
    }
    return {kind: choice for kind, choice in kinds.items() if choice}


def _pairs(cases: dict[str, Case]) -> set[tuple[Hashable, ...]]:
    return {
        pair
        for case in cases.values()
        for pair in itertools.combinations(sorted(_options(case).items(), key=str), 2)
    }


def test_every_pair_of_options_is_in_the_table() -> None:
    every = CASES | MIXED
    chosen = {option for case in every.values() for option in _options(case).items()}
    possible = {
        (a, b) for a, b in itertools.combinations(sorted(chosen, key=str), 2) if a[0] != b[0]
    }
    impossible = {
        (("dp_shard", zero), ("schedule", name)) for zero in (2, 3) for name in SPLIT_BACKWARD
    }
    assert _pairs(every) == possible - impossible


def test_every_pair_of_axes_is_in_every_run() -> None:
    axes = ("tp", "pp", "dp_replicate", "dp_shard", "cp", "ep", "etp", "schedule", "recompute")
    found = {(a, b) for (a, _), (b, _) in _pairs(CASES)}
    assert found >= set(itertools.combinations(sorted(axes), 2))


def _raise_on_one(rank_that_fails: int) -> None:
    if torch.distributed.get_rank() == rank_that_fails:
        raise ValueError("this one")
    torch.distributed.barrier()


def test_a_failing_rank_is_named_and_the_others_end() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1 of 2 failed.*this one"):
        run_ranks(2, _raise_on_one, 1, timeout_s=20)
