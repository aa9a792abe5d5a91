"""Experts that follow the routing go from host to host over a real network."""

import pytest

from launch.observed import Observed
from planner.given import LayoutFile, plan_for
from planner.plan import Plan
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster
from profiler.job import JobSpec
from profiler.model import ModelSpec
from tests.lab.lab import Lab
from tests.lab.ranks import Ranks
from tests.lab.training import trained

pytestmark = [pytest.mark.lab, pytest.mark.distributed]

MODEL = ModelSpec(
    name="moe", family="mixtral", vocab_size=256, hidden_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=16, ffn_hidden_size=256, num_experts=8, num_experts_per_token=2,
)  # fmt: skip
JOB = JobSpec(global_batch=8, seq_len=64, precision="fp32")
LAYOUT = LayoutFile(dp_replicate=4, ep=4, micro_batch=2)
"""A rank on each of four hosts."""
EXPERT_BYTES = 12 * 3 * MODEL.hidden_size * MODEL.ffn_hidden_size
"""Weights and both moments of an expert's three matrices."""


def train(lab: Lab, ranks: Ranks, plan: Plan, every: int) -> Observed:
    """A run that looks at its routing every so many steps."""
    return trained(
        lab, ranks, plan, f"moves-{every}", [host.name for host in lab.topology.hosts],
        steps=10, learning_rate=3e-3, rebalance_experts_every=every, rebalance_experts_gain=0.0,
    )  # fmt: skip


def test_experts_move_between_hosts_and_the_curve_stays(cluster: Lab, ranks: Ranks) -> None:
    profile = analytic_profile(MODEL, JOB, resolve_cluster("cpu-4x1"))
    plan = plan_for(MODEL, JOB, profile, LAYOUT, "layout")
    still, moved = (train(cluster, ranks, plan, every) for every in (0, 4))
    assert still.moves == ()
    assert {move.step for move in moved.moves} <= {4, 8}
    assert moved.moves
    for move in moved.moves:
        assert move.num_bytes > 0
        assert move.num_bytes % EXPERT_BYTES == 0
        assert move.seconds > 0
    assert moved.losses == pytest.approx(still.losses, rel=1e-4)
    assert len({rank.host for rank in moved.ranks}) == 4
