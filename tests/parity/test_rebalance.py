"""Experts follow routing that drifts, and the curve is that of one process where none moves."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import DEEP, DROP, MOE, REPLICAS, small
from compare import compare, outcome
from fork import run_ranks
from grid import Case, part_of_batch, parts_of, trainer_of

from launch.checkpoints import places_in
from launch.recipe import recipe_of
from launch.runtime.checkpoint import Checkpoints
from launch.runtime.rebalance import Rebalancer
from launch.runtime.trainer import Trainer
from planner.config import ExpertSlots
from planner.expert_moves import placed_experts
from planner.given import LayoutFile, plan_for
from planner.plan import Plan
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster
from profiler.codec import replace
from tests.unit.routed import fullest, level_places

pytestmark = pytest.mark.distributed

DRIFT_AT, EVERY, STEPS = 3, 2, 7
BIAS = {"early": (0, 1, 2), "late": (2, 6, 7)}
"""Experts that the router prefers before and after the drift: of two groups, and all on one of two
ranks, at the start and where the first move leaves them."""


def _plan(case: Case) -> Plan:
    profile = analytic_profile(case.model, case.job, resolve_cluster("cpu-1x8"))
    plan = plan_for(case.model, case.job, profile, LayoutFile(dp_replicate=8), "layout")
    chosen = replace(plan.chosen, config=case.config, placement=case.placement)
    return replace(plan, chosen=chosen)


def _prefer(trainer: Trainer, step: int) -> None:
    """Selection biases so large that they decide, where the model has them; set from outside, as a
    balancer that is no part of the optimizer does."""
    bias = torch.zeros(trainer.model.num_experts)
    bias[list(BIAS["early" if step < DRIFT_AT else "late"])] = 10.0
    trainer.set_buffers(lambda _name: bias)


def _recipe(gain: float) -> Any:
    changes = {"rebalance_experts_every": EVERY, "rebalance_experts_gain": gain}
    return recipe_of(changes | {"steps": STEPS - 2})


def _train(case: Case, gain: float | None, root: Path | None = None, first: int = 0) -> Any:
    """(losses, norms, chunks), rows of the steps, and where experts are at each step.

    `gain` None: experts stay. `root`: go on from a checkpoint after `first` steps, or write one
    after EVERY + 1.
    """
    trainer = trainer_of(case)
    if root is not None:
        checkpoints = Checkpoints(trainer, root, keep=1)
        if first:
            folder = checkpoints.newest()
            assert folder is not None
            assert checkpoints.load(folder, experts_too=True) == first
    rebalancer = None
    if gain is not None:
        device = torch.device("cpu")
        rebalancer = Rebalancer(_plan(case), _recipe(gain), trainer, device, first=first)
    losses, norms, rows, places = [], [], [], []
    for step in range(first, case.steps):
        _prefer(trainer, step)
        rows.append(rebalancer.before(step) if rebalancer else {})
        places.append(placed_experts(case.model, case.config, trainer.placement))
        result = trainer.step(*part_of_batch(trainer, case, step))
        losses += [] if result.loss is None else [result.loss.item()]
        norms.append(result.grad_norm or 0.0)
        if root is not None and not first and step == EVERY:
            checkpoints.save(step + 1)
            checkpoints.wait()
    return (losses, norms, parts_of(trainer)), rows, places


def _alone(case: Case) -> Case:
    """The same training on one process."""
    return small(model=case.model, steps=case.steps, batch=case.batch)


CASES = {
    "ep2": small(model=DEEP, dp=2, ep=2, steps=STEPS),
    "ep4, replicas, full recomputation": small(
        model=MOE, dp=4, ep=4, micro_batch=1, steps=STEPS, recompute="full",
        experts=(ExpertSlots(slots=((0, 1, 2), (2, 3, 4), (4, 5, 6), (6, 7, 0))),) * 2,
    ),
    "pp2 ep2 etp2 zero1": small(
        model=DEEP, pp=2, shard=4, zero=1, ep=2, etp=2, micro_batch=1, steps=STEPS
    ),
    "zero3 ep2 edp2, dropping": small(model=DROP, shard=4, zero=3, ep=2, steps=STEPS),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_experts_follow_the_drift_and_the_curve_stays(name: str) -> None:
    case = CASES[name]
    results = run_ranks(case.config.num_devices, _train, case, 0.0)
    alone = run_ranks(1, _train, _alone(case), None)
    errors = compare(outcome([r for r, _, _ in results]), outcome([r for r, _, _ in alone]))
    assert errors.is_small, errors
    rows, places = results[0][1], results[0][2]
    assert all(own == places for _, _, own in results)
    moved = [step for step, row in enumerate(rows) if "moved" in row]
    assert moved
    assert set(moved) <= {2, 4, 6}
    assert rows[-1]["num_moves"] == len(moved)
    for step in moved:
        assert places[step] != places[step - 1]
        sent = sum(own[step]["moved"]["received_bytes"] for _, own, _ in results)
        assert sent == 2 * rows[step]["moved"]["num_bytes"]  # float64, planned as float32
    if case.model.router_bias:  # what decides is known: preferred experts on ranks of their own
        assert {2, 4} <= set(moved)
        assert _hottest(places[0], BIAS["early"]) == 3
        assert _hottest(places[DRIFT_AT], BIAS["early"]) == 2
        assert _hottest(places[-1], BIAS["late"]) == 2


def _hottest(places: tuple[ExpertSlots, ...], hot: tuple[int, ...]) -> float:
    """Of the preferred experts, those on the rank with most, mean over layers."""
    counts = np.zeros((len(places), 8))
    counts[:, list(hot)] = 1
    return float(fullest(counts, places).mean())


def test_where_nothing_pays_nothing_moves() -> None:
    case = CASES["ep2"]
    results = run_ranks(2, _train, case, 1e15)
    assert all(row == {"num_moves": 0} for _, rows, _ in results for row in rows)
    assert all(place == own[0] for _, _, own in results for place in own)


def test_a_checkpoint_keeps_where_experts_are(tmp_path: Path) -> None:
    case = CASES["ep2"]
    whole = run_ranks(2, _train, case, 0.0, tmp_path)
    places = whole[0][2]
    assert places[EVERY] != places[0]
    folder = next(tmp_path.glob("step-*"))
    label = json.loads((folder / "training.json").read_text())["layout"]
    assert places_in(folder, label) == places[EVERY]
    assert places_in(folder, "another layout") == ()
    rest = run_ranks(2, _train, case, 0.0, tmp_path, EVERY + 1)
    assert rest[0][2][0] == places[EVERY]  # it goes on where it was
    for (losses, _, _), _, _ in rest:
        assert losses == pytest.approx(whole[0][0][0][EVERY + 1 :], rel=1e-12)


def _counted(case: Case) -> tuple[Any, int]:
    """Counts [layers, experts] of one step on this rank, and rows timed."""
    trainer = trainer_of(case)
    rebalancer = Rebalancer(_plan(case), _recipe(0.0), trainer, torch.device("cpu"), first=0)
    rebalancer.before(1)
    trainer.step(*part_of_batch(trainer, case, 0))
    taken = rebalancer._meter.take()
    return taken[:-2].view(case.model.num_moe_layers, -1), int(taken[-2])


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_every_choice_is_counted_once(recompute: Any) -> None:
    """Two choices for each of 8 x 32 tokens in each layer, wherever their experts are."""
    case = small(model=MOE, tp=2, dp=2, ep=2, recompute=recompute, experts=(REPLICAS, REPLICAS))
    found = run_ranks(4, _counted, case)
    total = sum(counts for counts, _ in found)
    assert total.sum(1).tolist() == [2 * 8 * 32] * 2
    assert sum(rows for _, rows in found) == 2 * 2 * 8 * 32
    alone = run_ranks(1, _counted, dataclasses.replace(_alone(case)))
    assert torch.equal(alone[0][0], total)


def test_equal_counts_give_equal_places() -> None:
    counts = torch.randint(0, 1000, (2, 8), generator=torch.Generator().manual_seed(1)).numpy()
    start = (REPLICAS, REPLICAS)
    places = level_places(2, 2)
    assert places.place(counts, start) == places.place(counts.copy(), start)
