"""Who waits for whom, by hand-made moments whose split is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.waits import Waits, split_step
from planner.config import ParallelConfig, Placement
from tests.unit.records import step


def layout(ranks=(), stages=None, **degrees):
    """A config and a placement that nothing else has checked."""
    plain = {"pp": 1, "dp_replicate": 1, "tp": 1, "micro_batch": 1} | degrees
    config = ParallelConfig(**{"recompute": "none", "schedule": "1f1b"} | plain)
    n = config.num_stages
    return config, Placement(stages=stages or tuple((s, s + 1) for s in range(n)), ranks=ranks)


def divided(laid_out, rows, begins, hosts=None):
    """Split and collectives by axis of each rank; `rows` are (end, actions, collectives)."""
    config, placement = laid_out
    waits = Waits(config, placement, hosts or ["h"] * config.num_devices)
    steps = tuple(step(1, b, e, a, c) for b, (e, a, c) in zip(begins, rows, strict=True))
    return split_step(waits, steps, begins)


def splits(*args):
    return [split for split, _ in divided(*args)]


def parts(split):
    return split.compute_s, split.p2p_s, split.collective_s, split.idle_s


def test_several_stages_per_rank_wait_for_the_holder_of_the_next_stage():
    # Interleaved: rank 0 has stages 0 and 2, rank 1 has 1 and 3.
    made = layout(pp=2, vpp=2, schedule="interleaved")
    first = [["F", 0, 0, 0, 1], ["F", 2, 0, 4, 5], ["B", 2, 0, 10, 11]]
    other = [["F", 1, 0, 2, 3], ["F", 3, 0, 6, 7], ["B", 3, 0, 7, 9], ["B", 1, 0, 12, 13]]
    a, b = splits(made, [(11, first, []), (13, other, [])], [0, 0])
    assert parts(a) == (3, 1 + 1, 0, 2 + 4)
    assert parts(b) == (1 + 1 + 2 + 1, 1 + 1 + 1, 0, 1 + 2 + 2)


def test_a_v_of_stages_waits_for_no_message_at_its_turn():
    # Rank 1 has stages 1 and 2: stage 2 takes the output of stage 1 where it is.
    made = layout(pp=2, vpp=2, schedule="zbv")
    rows = [(0, [], []), (6, [["F", 1, 0, 0, 1], ["F", 2, 0, 3, 4]], [])]
    assert parts(splits(made, rows, [0, 0])[1]) == (6, 0, 0, 0)


def test_the_gradient_is_sent_by_i_and_w_waits_for_nobody():
    made = layout(pp=2, schedule="zero_bubble")
    first = [["F", 0, 0, 0, 1], ["I", 0, 0, 6, 7], ["W", 0, 0, 9, 10]]
    last = [["F", 1, 0, 2, 3], ["I", 1, 0, 3, 5], ["W", 1, 0, 5, 9]]
    a, b = splits(made, [(10, first, []), (9, last, [])], [0, 0])
    assert parts(a) == (1 + 1 + 2 + 1, 1, 0, 4)
    assert parts(b) == (7, 1, 0, 1)


def test_a_map_of_ranks_says_who_the_neighbours_are():
    made = layout(pp=2, dp_replicate=2, ranks=(3, 2, 1, 0))  # stage 0 is on ranks 3 and 2
    row = [["F", 1, 0, 5, 6]]
    rows = [(6, row, []), (6, row, []), (6, [["F", 0, 0, 0, 4]], []), (6, [["F", 0, 0, 0, 2]], [])]
    by_rank = splits(made, rows, [0, 0, 0, 0])
    assert parts(by_rank[1]) == (1, 3, 0, 2)  # follows rank 3
    assert parts(by_rank[0]) == (1, 1, 0, 4)


@pytest.mark.parametrize(
    ("axis", "group"),
    [("fsdp", {0, 2, 4, 6}), ("dp", {0, 2, 4, 6}), ("cp", {0, 2}), ("world", set(range(8))),
     ("ep", {0, 2, 4, 6}), ("etp", {0, 1}), ("edp", {0})],
)  # fmt: skip
def test_in_every_group_the_wait_is_idle_until_the_last_member_issued(axis, group):
    made = layout(
        dp_shard=2, cp=2, tp=2, ep=4, etp=2, cp_method="all_gather", stages=((0, 3),)
    )  # fmt: skip
    for late in range(8):
        rows = [(9, [], [[axis, 0, 7 if r == late else 1, 2, 8]]) for r in range(8)]
        split, by_axis = divided(made, rows, [0] * 8)[0]
        assert split.collective_s == (1 if late in group else 6), late
        assert split.idle_s == 6 - split.collective_s
        assert by_axis == {axis: split.collective_s}


def test_a_ring_waits_for_its_neighbours_alone():
    made = layout(cp=5, stages=((0, 3),))
    for late in range(5):
        rows = [(9, [], [["cp", 0, 7 if r == late else 1, 2, 8]]) for r in range(5)]
        found = [s.idle_s for s in splits(made, rows, [0] * 5)]
        assert found == [5 if (r - late) % 5 in (0, 1, 4) else 0 for r in range(5)]


def test_copies_of_the_embedding_are_summed_by_the_ends_of_the_chain():
    made = layout(pp=4, stages=((0, 2), (2, 3), (3, 4), (4, 4)))  # the last stage is empty
    moments = (1, 5, 3, 5)
    rows = [(9, [], [["tied", 0, issued, 2, 8]] if r in (0, 2) else [])
            for r, issued in enumerate(moments)]  # fmt: skip
    assert [s.idle_s for s in splits(made, rows, [0] * 4)] == [1, 0, 1, 0]


def test_moments_of_another_host_cut_nothing():
    made = layout(pp=2, dp_replicate=2)
    late = [["dp", 0, 500, 505, 506]]
    rows = [
        (9, [], [["dp", 0, 1, 2, 8]]),
        (509, [], late),
        (9, [["F", 1, 0, 3, 9]], []),
        (9, [], []),
    ]
    hosts = ["h", "i", "i", "i"]
    by_rank = splits(made, rows, [0, 500, 0, 0], hosts)
    assert parts(by_rank[0]) == (3, 0, 6, 0)
    assert parts(by_rank[2]) == (6, 3, 0, 0)  # stage 0 is on host h


def test_a_collective_inside_a_gap_counts_once():
    made = layout(pp=2)
    sums = [["fsdp", 0, 1, 1, 3], ["unknown", 0, 6, 6, 7]]
    rows = [(9, [["F", 0, 0, 0, 4]], []), (9, [["F", 1, 0, 8, 9]], sums)]
    # Idle till 4 but for 1 to 3, p2p from 4 to 8 but for 6 to 7.
    assert parts(splits(made, rows, [0, 0])[1]) == (1, 3, 3, 2)


MOMENT = st.integers(0, 40).map(lambda n: n / 4)
AXES = st.sampled_from(["tp", "cp", "ep", "fsdp", "dp", "world", "tied", "0"])


@st.composite
def any_rows(draw):
    """A layout of four ranks and what they wrote, orderly or not."""
    made = draw(st.sampled_from([
        layout(pp=2, vpp=2, schedule="zbv", dp_shard=2),
        layout(pp=4, schedule="zero_bubble", ranks=(2, 0, 3, 1)),
        layout(pp=2, tp=2, schedule="gpipe"),
        layout(cp=2, dp_shard=2, ep=4, stages=((0, 3),)),
    ]))  # fmt: skip
    rows = []
    for _ in range(4):
        pairs = st.tuples(MOMENT, MOMENT).map(sorted)
        actions = [
            [draw(st.sampled_from("FBIW")), draw(st.integers(0, 3)), 0, *pair]
            for pair in draw(st.lists(pairs, max_size=6))
        ]
        waits = [
            [draw(AXES), k, draw(MOMENT), *pair]
            for k, pair in enumerate(draw(st.lists(pairs, max_size=6)))
        ]
        rows.append((10.0, actions, waits))
    return made, rows, draw(st.lists(MOMENT, min_size=4, max_size=4))


@given(any_rows())
def test_components_add_up_to_the_period_whatever_was_written(drawn):
    made, rows, begins = drawn
    for (split, by_axis), begin in zip(divided(made, rows, begins), begins, strict=True):
        assert min(parts(split)) >= 0
        assert sum(parts(split)) == pytest.approx(10.0 - begin)
        assert sum(by_axis.values()) == pytest.approx(split.collective_s)
