"""When experts move, and where to: by hand, and against all that could be done."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.config import ExpertSlots
from planner.expert_moves import MoveRates, expert_transfers, state_bytes
from planner.holdings import contiguous_slots
from planner.rebalance import Look, decide
from planner.routed_places import keep_in_place
from profiler.codec import replace

from .layouts import MODELS, layout
from .routed import fullest, level_places

MOE = MODELS[2]
"""Two MoE layers of four experts."""
SKEWED = np.array([[500, 300, 150, 50], [250, 250, 250, 250]])
"""Contiguous on two ranks: 800 and 200, then level; at best 550 and 450."""


def slots_of(*ranks: tuple[int, ...], shares: tuple[tuple[float, ...], ...] = ()) -> ExpertSlots:
    return ExpertSlots(slots=ranks, shares=shares)


def look(counts=SKEWED, **changes: object) -> Look:
    plain = {
        "counts": counts, "num_steps": 10, "steps_left": 100,
        "rates": MoveRates(inside=1e9, between=(1e9,), source="by hand"),
    }  # fmt: skip
    return Look(**(plain | changes))


CONFIG, PLACEMENT = layout(MOE, dp_replicate=2, ep=2)
LEVEL = level_places(2, 2, 1e-3)
"""A millisecond per choice."""


def test_the_fullest_rank_goes_by_the_shares():
    counts = np.array([[90, 10, 20]])
    assert fullest(counts, (slots_of((0, 1), (0, 2)),)).tolist() == [65.0]
    shared = slots_of((0, 1), (0, 2), shares=((2.0, 1.0), (1.0, 5.0)))
    assert fullest(counts, (shared,)).tolist() == [70.0]


def test_what_pays_moves_and_says_what_it_costs():
    found = decide(MOE, CONFIG, PLACEMENT, look(), LEVEL)
    assert found.experts is not None
    assert fullest(SKEWED, found.experts).tolist() == [550.0, 500.0]
    assert found.experts[1] == contiguous_slots(4, 2)  # level: stays
    assert found.step_s == pytest.approx((800 + 500) / 10 * 1e-3)
    assert found.gain_s == pytest.approx(250 / 10 * 1e-3)
    sent = expert_transfers(MOE, CONFIG, PLACEMENT, found.experts)
    assert found.num_bytes == state_bytes(sent) > 0
    assert found.move_s == pytest.approx(found.num_bytes / 2 / 1e9)


class Given:
    """Places by hand, of which the first layer's cost its second rank's slots, the other's 2 s."""

    def __init__(self, *places: ExpertSlots) -> None:
        self.places = places

    def place(self, _counts, _current):
        return self.places

    def price(self, _counts, experts):
        second = 2.0 if experts[1].slots == ((0, 2), (1, 3)) else 3.0
        return np.array([7.0 - len(experts[0].slots[1]), second])


def test_the_price_decides():
    """A second less for the second layer's places, whatever the load."""
    places = contiguous_slots(4, 2), slots_of((0, 2), (1, 3))
    found = decide(MOE, CONFIG, PLACEMENT, look(), Given(*places))
    assert found.experts == places
    assert (found.step_s, found.new_step_s) == (pytest.approx(0.8), pytest.approx(0.7))


def test_level_experts_stay():
    level = np.full((2, 4), 250)
    found = decide(MOE, CONFIG, PLACEMENT, look(level), LEVEL)
    assert (found.experts, found.num_bytes, found.gain_s) == (None, 0, 0.0)


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"slowdown": 0.999}, True),
        ({"slowdown": 1.001}, False),
        ({"steps_left": 0}, False),
    ],
)
def test_what_does_not_pay_stays(changes, moves):
    """A link so slow that the move costs just what 100 steps save."""
    free = decide(MOE, CONFIG, PLACEMENT, look(), LEVEL)
    rate = free.num_bytes / 2 / (100 * free.gain_s)
    slow = MoveRates(inside=rate, between=(rate,), source="by hand")
    found = decide(MOE, CONFIG, PLACEMENT, look(rates=slow, **changes), LEVEL)
    assert (found.experts is not None) == moves
    if moves:
        twice = decide(MOE, CONFIG, PLACEMENT, look(rates=slow, **changes), LEVEL, gain=2.0)
        assert twice.experts is None


def test_between_nodes_the_nics_count():
    slow = MoveRates(inside=1e12, between=(1e3, 1e3), source="by hand")
    nodes = {"same": (0, 0), "apart": (0, 1)}
    found = {
        name: decide(MOE, CONFIG, PLACEMENT, look(rates=slow), LEVEL, node_of_rank=each)
        for name, each in nodes.items()
    }
    assert found["same"].experts is not None
    assert found["apart"].experts is None


def test_only_the_slowest_pipeline_rank_counts():
    """Both layers are skewed alike, on one pipeline rank or on two."""
    counts = np.stack([SKEWED[0], SKEWED[0]])
    one = decide(MOE, CONFIG, PLACEMENT, look(counts), LEVEL)
    config, placement = layout(MOE, {"stages": ((0, 3), (3, 5))}, pp=2, dp_replicate=2, ep=2)
    two = decide(MOE, config, placement, look(counts), LEVEL)
    assert one.step_s == pytest.approx(2 * two.step_s)
    assert one.gain_s == pytest.approx(2 * two.gain_s)


def test_ranks_of_several_groups_share_the_choices():
    config, placement = layout(MOE, dp_replicate=4, ep=2)
    found = decide(MOE, config, placement, look(), LEVEL)
    assert found.step_s == pytest.approx((800 + 500) / 10 / 2 * 1e-3)


def test_a_layer_that_does_not_pay_alone_stays_behind():
    """The second layer would save less than it costs, the first more than both."""
    counts = np.array([[500, 300, 150, 50], [260, 250, 240, 250]])
    free = decide(MOE, CONFIG, PLACEMENT, look(counts), LEVEL)
    assert free.experts is not None
    assert free.experts[1] != contiguous_slots(4, 2)
    rate = 0.99 * free.num_bytes / 4 / (100 * 1e-3)  # the second saves 1e-3 s in each of 100 steps
    rates = MoveRates(inside=rate, between=(1.0,), source="by hand")
    found = decide(MOE, CONFIG, PLACEMENT, look(counts, rates=rates), LEVEL)
    assert found.experts is not None
    assert found.experts == (free.experts[0], contiguous_slots(4, 2))
    assert found.num_bytes == free.num_bytes / 2


COUNTS = st.lists(st.integers(0, 1000), min_size=6, max_size=6)


@settings(deadline=None)
@given(counts=COUNTS, extra=st.integers(0, 3))
def test_a_placing_is_never_worse_and_needs_no_more_slots(counts, extra):
    old = slots_of((0, 1), (2, 3, *range(extra)[:2]), (4, 5, *range(extra)[2:]))
    row = np.array([counts])
    (new,) = level_places(1, 3).place(row, (old,))
    assert max(map(len, new.slots)) <= max(map(len, old.slots))
    assert {e for r in new.slots for e in r} == set(range(6))
    assert all(len(set(r)) == len(r) for r in new.slots)
    assert fullest(row, (new,)) <= fullest(row, (old,))
    assert level_places(1, 3).place(row, (new,)) == (new,)


@settings(deadline=None)
@given(counts=COUNTS)
def test_a_placing_is_the_best_of_all_for_pairs(counts):
    """Two experts on each of three ranks, against all ways to put them there."""
    row = np.array([counts])
    best = min(
        fullest(row, (slots_of(order[:2], order[2:4], order[4:]),))[0]
        for order in itertools.permutations(range(6))
    )
    start = slots_of((0, 1), (2, 3), (4, 5))
    assert fullest(row, level_places(1, 3).place(row, (start,)))[0] == pytest.approx(best)


def test_copies_are_shared_out_freely():
    """The case of FlashLB on 8 ranks with 2 slots each: 181.25 where shares are free."""
    counts = np.array([[600, 560, 120, 120, 20, 10, 10, 10]])
    start = slots_of(*((r, (r + 1) % 8) for r in range(8)))
    (found,) = level_places(1, 8).place(counts, (start,))
    assert fullest(counts, (found,))[0] == pytest.approx(181.25)
    assert all(len(set(own)) == len(own) for own in found.slots)


def test_what_zero_shards_is_never_empty():
    """Places that leave a rank without experts are left alone where they cannot be taken."""
    config, placement = layout(MOE, dp_shard=4, zero=1, ep=2)
    places = Given(slots_of((0,), (1, 2, 3)), contiguous_slots(4, 2))
    assert decide(MOE, config, placement, look(), places).experts == places.places
    places = Given(slots_of((), (0, 1, 2, 3)), contiguous_slots(4, 2))
    assert decide(MOE, CONFIG, PLACEMENT, look(), places).experts == places.places
    assert decide(MOE, config, placement, look(), places).experts is None


@given(data=st.data())
def test_most_experts_stay(data):
    order, other = (data.draw(st.permutations(range(8))) for _ in range(2))
    alike = data.draw(st.sampled_from((None, (0, 0, 1, 1))))
    old, new = (slots_of(*(tuple(o[i : i + 2]) for i in range(0, 8, 2))) for o in (order, other))

    def kept(slots: ExpertSlots) -> int:
        return sum(len({*a} & {*b}) for a, b in zip(slots.slots, old.slots, strict=True))

    allowed = [
        turn
        for turn in itertools.permutations(range(4))
        if alike is None or all(alike[a] == alike[b] for a, b in enumerate(turn))
    ]
    best = max(kept(replace(new, slots=tuple(new.slots[r] for r in turn))) for turn in allowed)
    found = keep_in_place(old, new, alike)
    assert kept(found) == best
    assert sorted(found.slots) == sorted(new.slots)


def test_shares_go_with_their_slots():
    old = slots_of((2, 3), (0, 1))
    new = slots_of((0, 1), (2, 3), shares=((1.0, 2.0), (3.0, 4.0)))
    assert keep_in_place(old, new) == slots_of((2, 3), (0, 1), shares=((3.0, 4.0), (1.0, 2.0)))
