"""Learning rates against closed forms and torch's own schedules; the groups of AdamW."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from launch.recipe import Recipe, recipe_of
from launch.runtime.optimizer import lr_at, make_adamw, set_lr
from profiler.errors import UserError

PEAK = 2e-3


def recipe(schedule: str = "constant", **changes: object) -> Recipe:
    return recipe_of({"learning_rate": PEAK, "lr_schedule": schedule, "steps": 98} | changes)


def curve(of: Recipe, num: int | None = None) -> list[float]:
    return [lr_at(t, of) for t in range(of.lr_steps if num is None else num)]


def test_constant_is_constant() -> None:
    assert set(curve(recipe(), 500)) == {PEAK}
    warm = curve(recipe(lr_warmup_steps=4), 6)
    assert warm == pytest.approx([PEAK * f for f in (0.2, 0.4, 0.6, 0.8, 1.0, 1.0)])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_the_warm_up_is_a_line_from_nothing_to_the_peak(schedule: str) -> None:
    of = recipe(schedule, lr_warmup_steps=20)
    steps = [b - a for a, b in zip([0.0, *curve(of, 20)], curve(of, 21), strict=True)]
    assert steps == pytest.approx([PEAK / 21] * 21)
    assert lr_at(20, of) == PEAK


@pytest.mark.parametrize("total", [100, 1020])
def test_cosine_has_its_endpoints_and_its_middle(total: int) -> None:
    of = recipe("cosine", lr_warmup_steps=20, lr_total_steps=total, min_lr_ratio=0.1)
    assert lr_at(20, of) == PEAK
    assert lr_at((20 + total) // 2, of) == pytest.approx(0.55 * PEAK)
    quarter = 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2
    assert lr_at(20 + (total - 20) // 4, of) == pytest.approx(quarter * PEAK)
    assert [lr_at(t, of) for t in (total, total + 1, 10 * total)] == pytest.approx([0.1 * PEAK] * 3)


def test_wsd_is_stable_then_falls_with_the_root() -> None:
    of = recipe("wsd", lr_warmup_steps=10, wsd_decay_share=0.25, min_lr_ratio=0.2)
    assert {lr_at(t, of) for t in range(10, 76)} == {PEAK}
    assert lr_at(76, of) == pytest.approx(PEAK * (1 - 0.8 * 0.2))  # the root of 1 / 25
    assert lr_at(79, of) == pytest.approx(PEAK * (1 - 0.8 * 0.4))
    assert lr_at(91, of) == pytest.approx(PEAK * (1 - 0.8 * 0.8))
    assert [lr_at(t, of) for t in (100, 200)] == pytest.approx([0.2 * PEAK] * 2)


@given(
    schedule=st.sampled_from(["constant", "cosine", "wsd"]),
    warmup=st.integers(0, 60),
    total=st.integers(1, 60),
    share=st.floats(0, 1, exclude_min=True),
    least=st.floats(0, 1),
)
def test_it_rises_to_the_peak_then_never_and_stays_between_its_ends(
    schedule: str, warmup: int, total: int, share: float, least: float
) -> None:
    try:
        of = recipe(
            schedule, lr_warmup_steps=warmup, lr_total_steps=total, wsd_decay_share=share,
            min_lr_ratio=least,
        )  # fmt: skip
    except UserError:
        assert warmup > min(total, of_decay_start(schedule, total, share))
        return
    rates = curve(of, total + 5)
    assert all(a < b for a, b in itertools.pairwise(rates[:warmup]))
    after = rates[warmup:]
    assert all(a >= b - 1e-18 for a, b in itertools.pairwise(after))
    assert all(least * PEAK * (1 - 1e-12) <= r <= PEAK for r in after)
    if schedule != "constant":
        assert rates[-1] == least * PEAK


def of_decay_start(schedule: str, total: int, share: float) -> float:
    return total * (1.0 - share) if schedule == "wsd" else total


@pytest.mark.parametrize("least", [0.0, 0.1])
def test_cosine_is_that_of_torch(least: float) -> None:
    of = recipe("cosine", min_lr_ratio=least)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=least * PEAK)
    for step in range(101):
        assert lr_at(step, of) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_matrices_decay_and_vectors_do_not() -> None:
    weights = [nn.Parameter(torch.ones(*s)) for s in ((3,), (2, 3), (4, 2, 3), (1,))]
    optimizer = make_adamw(recipe(weight_decay=0.5, beta1=0.8, beta2=0.99, epsilon=1e-6))(weights)
    matrices, vectors = optimizer.param_groups
    assert [p.ndim for p in matrices["params"]] == [2, 3]
    assert [p.ndim for p in vectors["params"]] == [1, 1]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.5, 0.0)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (PEAK, (0.8, 0.99), 1e-6)
        assert group["foreach"]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()  # no gradient: decay alone moves a weight
    assert torch.equal(weights[0], torch.ones(3))
    assert torch.allclose(weights[1], torch.full((2, 3), 1 - 0.5 * PEAK))


def test_a_step_is_that_of_plain_adamw_where_nothing_decays() -> None:
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.randn(3)]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    plain = torch.optim.AdamW(theirs, lr=PEAK, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)
    made = make_adamw(recipe(weight_decay=0.0))(ours)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        made.step()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "shapes", [(), ((0, 4),), ((0,),), ((0, 4), (3,)), ((2, 2), (0,)), ((3,),)]
)
def test_a_rank_may_hold_nothing_of_a_kind(shapes: tuple[tuple[int, ...], ...]) -> None:
    weights = [nn.Parameter(torch.ones(*s)) for s in shapes]
    optimizer = make_adamw(recipe())(weights)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert len(optimizer.param_groups) == 2
    assert all(bool((w < 1).all()) for w in weights)


def test_the_rate_is_set_in_every_group() -> None:
    of = recipe("cosine", lr_warmup_steps=3)
    optimizer = make_adamw(of)([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))])
    assert {g["lr"] for g in optimizer.param_groups} == {lr_at(0, of)}
    set_lr(optimizer, lr_at(50, of))
    assert {g["lr"] for g in optimizer.param_groups} == {lr_at(50, of)}
