"""How software splits a chain of blocks, against rules written out and against brute force."""

import itertools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.chain import (
    BlockTimes,
    balanced_stages,
    capped_stages,
    equal_stages,
    even_stages,
    program_of,
    threshold_stages,
)
from planner.simulate import simulate

TIMES = BlockTimes(dense=(1.0, 1.5, 1.0), moe=(2.0, 2.5, 2.0), head=(3.0, 3.5, 3.0))
KINDS = st.lists(st.sampled_from(["dense", "moe"]), min_size=1, max_size=9)


def chain(layers):
    return ("embed", *layers, "head")


def dense(num):
    return chain(["dense"] * num)


def is_chain(stages, num_blocks, num_stages):
    """Whether the stages are the whole chain, in order."""
    ends = [end for _, end in stages]
    assert len(stages) == num_stages
    assert [first for first, _ in stages] == [0, *ends[:-1]]
    assert ends[-1] == num_blocks
    assert ends == sorted(ends)


@pytest.mark.parametrize(("layers", "stages"), [(8, 4), (12, 3), (4, 4), (7, 1), (96, 32)])
def test_layers_that_divide_are_dealt_out_evenly(layers, stages):
    found = equal_stages(dense(layers), stages)
    is_chain(found, layers + 2, stages)
    each = layers // stages
    inner = [end - first for first, end in found]
    inner[0] -= 1
    inner[-1] -= 1
    assert inner == [each] * stages


@pytest.mark.parametrize(("layers", "stages"), [(126, 16), (30, 8), (14, 4), (6, 8), (62, 32)])
def test_embedding_and_head_count_as_layers_where_that_divides(layers, stages):
    found = equal_stages(dense(layers), stages)
    is_chain(found, layers + 2, stages)
    assert {end - first for first, end in found} == {(layers + 2) // stages}


@pytest.mark.parametrize(("layers", "stages"), [(7, 4), (9, 2), (3, 4), (61, 16)])
def test_layers_that_do_not_divide_have_no_even_split(layers, stages):
    assert equal_stages(dense(layers), stages) is None


def nanotron_ranks(costs, num_stages):
    """Rank of each block by nanotron's loop (`build_model`): a block goes to the current rank, and
    once the sum so far is above that rank's threshold, the next block goes to the next rank."""
    total = np.cumsum(costs)
    thresholds = [total[-1] * (rank + 1) / num_stages for rank in range(num_stages)]
    ranks, rank = [], 0
    for so_far in total:
        ranks.append(rank)
        if so_far > thresholds[rank] and rank < num_stages - 1:
            rank += 1
    return ranks


@given(st.integers(1, 40), st.integers(1, 8), st.sampled_from([0.5, 1.25, 3.5, 7.0]))
def test_nanotron_splits_by_thresholds(layers, num_stages, head):
    costs = [0.0, *[1.0] * layers, head]
    if len(costs) < num_stages:
        return
    found = threshold_stages(costs, num_stages)
    is_chain(found, len(costs), num_stages)
    assert all(end > first for first, end in found)
    ranks = nanotron_ranks(costs, num_stages)
    if len(set(ranks)) < num_stages:
        return  # nanotron would leave ranks empty; here each keeps a block
    owners = [rank for rank, (first, end) in enumerate(found) for _ in range(first, end)]
    spare = [n for n, (a, b) in enumerate(zip(owners, ranks, strict=True)) if a != b]
    # Where the last blocks would not go round, they are dealt out one by one.
    assert not spare or len(costs) - spare[0] <= num_stages


def test_nanotron_example():
    # 16 layers and a head of 1.6 layers on 4 ranks: 4.4 each.
    costs = [0.0, *[1.0] * 16, 1.6]
    assert threshold_stages(costs, 4) == ((0, 6), (6, 10), (10, 15), (15, 18))
    assert nanotron_ranks(costs, 4) == [0] * 6 + [1] * 4 + [2] * 5 + [3] * 3


def brute_force(work, num_stages, most=None):
    """The least maximum over all ways to cut, or None."""
    cuts = itertools.combinations(range(1, len(work)), num_stages - 1)
    caps = most or [len(work)] * num_stages
    found = [
        max(sum(work[a:b]) for a, b in pairwise((0, *cut, len(work))))
        for cut in cuts
        if all(b - a <= n for (a, b), n in zip(pairwise((0, *cut, len(work))), caps, strict=True))
    ]
    return min(found, default=None)


@given(KINDS, st.integers(1, 6))
def test_balanced_is_the_least_maximum(layers, num_stages):
    blocks = chain(layers)
    if len(blocks) < num_stages:
        with pytest.raises(ValueError, match="do not fill"):
            balanced_stages(blocks, TIMES, num_stages)
        return
    work = [sum(TIMES.of(kind)) for kind in blocks]
    found = balanced_stages(blocks, TIMES, num_stages)
    is_chain(found, len(blocks), num_stages)
    reached = max(sum(work[a:b]) for a, b in found)
    assert reached == pytest.approx(brute_force(work, num_stages))


@given(KINDS, st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_capped_is_the_least_maximum_within_the_caps(layers, most):
    blocks = chain(layers)
    work = [sum(TIMES.of(kind)) for kind in blocks]
    found, best = capped_stages(blocks, TIMES, most), brute_force(work, len(most), most)
    if found is None:
        assert best is None
        return
    assert all(end - first <= n for (first, end), n in zip(found, most, strict=True))
    assert max(sum(work[a:b]) for a, b in found) == pytest.approx(best)


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2))
def test_even_stages_differ_by_one_layer(layers, num_stages, mtp):
    if layers < num_stages:
        return
    blocks = layers + 2 + mtp
    found = even_stages(layers, blocks, num_stages)
    is_chain(found, blocks, num_stages)
    sizes = [end - first for first, end in found]
    sizes[0] -= 1
    sizes[-1] -= 1 + mtp
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_program_of_a_chain():
    """Sums of stages, messages between ranks alone, and shares of reduction and update."""
    blocks = chain(["dense", "dense", "moe", "mtp"])
    program = program_of(
        blocks=blocks, stages=((0, 2), (2, 3), (3, 4), (4, 6)), times=TIMES, schedule="interleaved",
        pp=2, vpp=2, num_microbatches=4, send_s=0.25, exposed_send=0.0, late=2.0, sync_s=0.5,
        update_s=0.1, base_s=7.0,
    )  # fmt: skip
    assert program.forward_s == (2.0, 2.0, 4.0, 10.0)
    assert program.input_s == (3.0, 3.0, 5.0, 12.0)
    assert program.send_forward_s == (0.5, 0.5, 0.5, 0.0)
    assert program.send_backward_s == (0.0, 0.5, 0.5, 0.5)
    assert program.optimizer_s == pytest.approx((0.1, 0.1))
    assert program.sync_s == pytest.approx((1 / 3, 1 / 6, 1 / 6, 1 / 3))
    assert simulate(program).step_s > 7 + 4 * 2 * (10 + 12 + 10) / 2


def test_a_held_up_rank_pays_for_its_messages():
    given_ = {
        "blocks": dense(4), "stages": ((0, 3), (3, 6)), "times": TIMES, "schedule": "1f1b",
        "pp": 2, "vpp": 1, "num_microbatches": 8, "send_s": 0.25, "late": 1.0, "sync_s": 0.0,
        "update_s": 0.0, "base_s": 0.0,
    }  # fmt: skip
    free, paid = (simulate(program_of(**given_, exposed_send=e)).step_s for e in (0.0, 1.0))
    assert paid == pytest.approx(free + 2 * 0.25 * 9)
