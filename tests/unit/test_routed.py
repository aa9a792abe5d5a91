"""Uneven routing in the cost model: what the fullest rank of each ep does to time and memory."""

import numpy as np
import pytest

from planner.analytic import AnalyticCosts
from planner.config import ParallelConfig
from planner.plan import SearchOptions
from planner.routed import EVEN, Routed
from planner.search import make_plan
from planner.simulate import simulate
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster, resolve_model
from profiler.codec import build, replace
from profiler.job import JobSpec
from profiler.profile import ExpertLoad

MIXTRAL = replace(resolve_model("mixtral-8x7b"), num_layers=8)
JOB = JobSpec(global_batch=64, seq_len=4096)
CLUSTER = resolve_cluster("h100-2x8")
FREE = SearchOptions(pin={}, forbid={}, top=5)


def load(ep: int, imbalance: float, slots: int | None = None) -> ExpertLoad:
    slots_per_rank = 8 // ep if slots is None else slots
    return ExpertLoad(
        ep=ep,
        slots_per_rank=slots_per_rank,
        imbalance=imbalance,
        held_imbalance=imbalance,
        replicated=max(0, slots_per_rank * ep - 8),
    )


def profile(*loads: ExpertLoad):
    return replace(analytic_profile(MIXTRAL, JOB, CLUSTER, None), expert_loads=loads)


def layout(ep: int, **changes: object) -> ParallelConfig:
    plain = {
        "pp": 1, "dp_replicate": 1, "dp_shard": 16, "zero": 1, "tp": 1, "micro_batch": 1,
        "recompute": "full",
    }  # fmt: skip
    return ParallelConfig(ep=ep, schedule="1f1b", **(plain | changes))


def prepared(config: ParallelConfig, *loads: ExpertLoad):
    ready = AnalyticCosts(MIXTRAL, JOB, profile(*loads)).prepare(config)
    assert ready is not None
    return ready


def step_s(config: ParallelConfig, *loads: ExpertLoad) -> float:
    ready = prepared(config, *loads)
    return simulate(ready.program, ready.sharing).step_s


def test_what_is_not_recorded_is_level():
    table = Routed(8, (load(4, 1.5, slots=3),))
    ep, etp = np.array([1, 2, 4, 8]), np.array([1, 1, 1, 2])
    assert table.load(ep, etp).tolist() == [1, 1, 1.5, 1]
    assert table.copies(ep, etp).tolist() == [1, 1, 1.5, 1]
    assert table.shared(ep, etp).tolist() == [0, 0, 0.5, 0]
    assert table.own(ep, etp).tolist() == [1, 1, 1, 1]
    assert EVEN.load(ep, etp) == EVEN.kept(ep, etp) == EVEN.copies(ep, etp) == 1.0
    assert EVEN.shared(ep, etp) == 0.0


def test_each_etp_has_its_own_load():
    """One that is not in the table is as the least etp of its ep, as in files without any."""
    loads = (load(4, 1.5), replace(load(4, 1.2), etp=2), replace(load(2, 1.1), etp=4))
    ep, etp = np.array([4, 4, 4, 4, 2, 2, 8]), np.array([1, 2, 4, 9, 1, 4, 2])
    found = Routed(8, loads).load(ep, etp)
    assert found.tolist() == [1.5, 1.2, 1.5, 1.5, 1.1, 1.1, 1]
    assert Routed(8, loads[::-1]).load(ep, etp).tolist() == found.tolist()
    assert step_s(layout(4, tp=2, etp=2, dp_shard=8), *loads) < step_s(
        layout(4, tp=2, etp=2, dp_shard=8), loads[0]
    )


def test_unlike_nodes_compute_and_receive_what_takes_them_as_long():
    own = replace(load(8, 1.5), group_computed=(0.5, 2.0), group_sent=(1.0, 1.6))
    whole = profile(own)
    one = whole.of_group(0, 2)
    (seen,) = one.expert_loads
    assert (seen.group_computed, seen.group_sent, one.of_group(0).expert_loads) == (
        (0.5,), (1.0,), (seen,),
    )  # fmt: skip
    table, at = Routed(8, (seen,)), (np.array([8]), np.array([1]))
    assert (table.load(*at), table.own(*at), table.kept(*at)) == (1.0, 0.5, 1.5)
    even, less = step_s(layout(8)), step_s(layout(8), seen)
    assert less < even  # its rank computes half of the mean


def test_all_wait_for_the_fullest_rank():
    even, level, skewed = (
        step_s(layout(8)), step_s(layout(8), load(8, 1.0)), step_s(layout(8), load(8, 1.3))
    )  # fmt: skip
    assert even == level
    # Experts are most of Mixtral's work, yet not all: attention and the head do not change.
    assert 1.1 < skewed / even < 1.3
    assert step_s(layout(4), load(8, 1.3)) == step_s(layout(4))
    alone = layout(1, zero=3)
    assert step_s(alone, load(1, 1.3)) == step_s(alone)


def test_the_fullest_rank_keeps_more_tokens():
    plain = layout(8, recompute="none", zero=3)
    even, skewed = (prepared(plain, load(8, x)).memory[0] for x in (1.0, 1.5))
    assert skewed.activation_bytes > even.activation_bytes
    assert skewed.weight_bytes == even.weight_bytes


def test_replicas_cost_memory_and_a_reduction():
    one, two = (prepared(layout(8), load(8, 1.0, slots=s)) for s in (1, 2))
    experts = MIXTRAL.num_layers * 3 * MIXTRAL.hidden_size * MIXTRAL.expert_width
    more = two.memory[0].weight_bytes - one.memory[0].weight_bytes
    assert more == pytest.approx(2 * experts, rel=1e-6)
    ends = [ready.program.sync_s[0] for ready in (one, two)]
    assert ends[1] > ends[0]


def test_skew_changes_the_best_ep():
    even = make_plan(MIXTRAL, JOB, profile(), FREE)
    best = even.chosen.config.ep
    assert best > 1
    skewed = make_plan(MIXTRAL, JOB, profile(load(best, 4.0)), FREE)
    assert skewed.chosen.config.ep != best
    assert skewed.chosen.cost.step_s >= even.chosen.cost.step_s


def test_loads_of_older_files_are_of_any_etp():
    old = {"ep": 8, "slots_per_rank": 1, "imbalance": 1.3, "held_imbalance": 1.1}
    known = build(ExpertLoad, old, "profile.json")
    assert (known.etp, known.group, known.group_computed, known.group_sent) == (1, None, (), ())
    found = Routed(8, (known,)).load(np.array([8, 8]), np.array([1, 4]))
    assert found.tolist() == [1.3, 1.3]
