"""Experts over ranks from measured entries: closed forms of a layer's time, memory, reductions."""

import numpy as np
import pytest

from planner.config import ParallelConfig
from planner.measured import MeasuredCosts
from planner.placed import on_hosts
from planner.plan import SearchOptions
from planner.search import make_plan
from profiler.codec import replace
from profiler.profile import BlockEntry, ExpertLoad, Timing, TransferEntry
from tests.unit import facts
from tests.unit.hosts import LATENCY, links, profiled
from tests.unit.roofline import analytic_profile

MOE = facts.model(
    family="qwen3_moe", num_experts=8, num_experts_per_token=2, expert_ffn_hidden_size=48
)
JOB = facts.job()
ALONE, EXCHANGE_S, BYTE_S = 3e-4, 2e-5, 1e-9
LAYERS = MOE.num_moe_layers


def timing(seconds: float) -> Timing:
    return Timing(median_s=seconds, repeats=3)


def profile(*loads: ExpertLoad, per_node: int = 2):
    """Measured entries of the model's blocks, of its experts alone, and of the exchange."""
    base = analytic_profile(MOE, JOB, facts.cluster(1, per_node))
    blocks = tuple(
        BlockEntry(
            block="experts", tp=1, micro_batch=m, source="measured", saved_bytes=1000 * m,
            peak_bytes=1000 * m, forward=timing(ALONE * m), input_grad=timing(ALONE * m),
            weight_grad=timing(ALONE * m), optimizer=timing(8e-5), bucket=timing(8e-6),
        )
        for m in (1, 2)
    )  # fmt: skip
    exchange = tuple(
        TransferEntry(
            op="all_to_all", ranks=(0, 1), scope="node", num_bytes=n, source="measured",
            time=timing(EXCHANGE_S + n * BYTE_S),
        )
        for n in (1, 10**7)
    )  # fmt: skip
    base = replace(base, blocks=base.blocks + blocks, transfers=base.transfers + exchange)
    return replace(profiled(base=base), expert_loads=loads)


def layout(ep: int, **changes: object) -> ParallelConfig:
    plain = {"pp": 1, "dp_replicate": 2, "tp": 1, "micro_batch": 1}
    return ParallelConfig(ep=ep, recompute="none", schedule="1f1b", **(plain | changes))


def costs(*loads: ExpertLoad) -> MeasuredCosts:
    return MeasuredCosts(MOE, JOB, profile(*loads))


def load(imbalance: float, slots: int = 4, shares=()) -> ExpertLoad:
    return ExpertLoad(
        ep=2,
        slots_per_rank=slots,
        imbalance=imbalance,
        held_imbalance=imbalance,
        shares=shares,
        replicated=2.0 * (slots - 4),
    )


SENT = JOB.seq_len * 2 * MOE.hidden_size * 4
"""Bytes of a micro-batch's choices."""


def test_level_experts_take_what_they_took_and_the_exchange():
    one, two = (costs().prepare(layout(ep)).program for ep in (1, 2))
    once, counts = EXCHANGE_S + SENT * BYTE_S, EXCHANGE_S + 8 * 8 * BYTE_S
    assert two.forward_s[0] - one.forward_s[0] == pytest.approx(LAYERS * (2 * once + counts))
    assert two.input_s[0] - one.input_s[0] == pytest.approx(LAYERS * 2 * once)


def test_the_fullest_rank_is_waited_for():
    level, skewed = (costs(*loads).prepare(layout(2)).program for loads in ((), (load(1.5),)))
    more = 0.5 * (ALONE + 2 * SENT * BYTE_S)
    assert skewed.forward_s[0] - level.forward_s[0] == pytest.approx(LAYERS * more)
    by_rank = load(1.5, shares=((0.75, 0.25),) * LAYERS)
    assert costs(by_rank).prepare(layout(2)).program.forward_s == pytest.approx(skewed.forward_s)


def test_a_rank_holds_its_slots_and_reduces_them_over_their_holders():
    one, two, replicas = (
        c.prepare(layout(ep)) for c, ep in ((costs(), 1), (costs(), 2), (costs(load(1, 5)), 2))
    )
    expert = 3 * MOE.hidden_size * 48
    fewer = one.memory[0].weight_bytes - two.memory[0].weight_bytes
    assert fewer == LAYERS * 4 * expert * 4
    assert replicas.memory[0].weight_bytes - two.memory[0].weight_bytes == LAYERS * expert * 4
    # Two ranks of ep 2 hold no expert twice, until there are replicas.
    assert one.program.sync_s[0] > replicas.program.sync_s[0] > two.program.sync_s[0] > 0
    half = one.program.optimizer_s[0] - two.program.optimizer_s[0]
    assert half == pytest.approx(LAYERS * 8e-5 / 2)


def test_over_hosts_the_slowest_pair_is_waited_for():
    config = layout(4, dp_replicate=4)
    even, bad = (
        MeasuredCosts(MOE, JOB, on_hosts(profile(), table)) for table in (links(), links((1, 2)))
    )
    assert even.hosts is not None
    within = (0, 0, 1, 1)
    shares = np.full((LAYERS, 4), 0.25)
    latency_s, byte_s = even.hosts.exchange(np.array([within]), shares)
    assert latency_s == pytest.approx(LATENCY, rel=1e-3)
    # Two ranks send a quarter to each of two ranks of the other host: all of it leaves at 1e8 B/s.
    assert byte_s == pytest.approx(np.full(LAYERS, 4 * 0.25 / 1e8))
    apart = bad.hosts.exchange(np.array([(0, 1, 2, 3)]), shares)[1]
    assert apart == pytest.approx(np.full(LAYERS, 0.25 / 1e6))
    # The host of the fullest rank takes in more.
    skewed = np.tile([0.1, 0.1, 0.4, 0.4], (LAYERS, 1))
    assert even.hosts.exchange(np.array([within]), skewed)[1] == pytest.approx(
        np.full(LAYERS, 2 * 0.8 / 1e8)
    )
    found = even.prepare(config)
    assert found is not None
    assert sum(found.forward_collective_s) > 0


def test_the_search_knows_spread_experts_where_they_were_profiled():
    free = SearchOptions(pin={"dp": ("2",)}, forbid={}, top=50)
    plan = make_plan(MOE, JOB, profile(), free)
    assert {c.config.ep for c in (plan.chosen, *plan.alternatives)} == {1, 2}
    bare = replace(profile(), blocks=tuple(b for b in profile().blocks if b.block != "experts"))
    plan = make_plan(MOE, JOB, bare, free)
    assert {c.config.ep for c in (plan.chosen, *plan.alternatives)} == {1}
