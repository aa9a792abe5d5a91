"""Tokens that go to experts in chunks are waited for less, on a network that takes its time."""

from statistics import mean

import pytest

from launch.observed import Observed
from planner.given import LayoutFile, plan_for
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster
from profiler.job import JobSpec
from profiler.model import ModelSpec
from tests.lab.lab import Lab
from tests.lab.ranks import Ranks
from tests.lab.topology import shipped
from tests.lab.training import trained

pytestmark = [pytest.mark.lab, pytest.mark.distributed]

MODEL = ModelSpec(
    name="moe", family="mixtral", vocab_size=256, hidden_size=64, num_layers=1, num_heads=4,
    num_kv_heads=2, head_dim=16, ffn_hidden_size=1024, num_experts=8, num_experts_per_token=2,
)  # fmt: skip
JOB = JobSpec(global_batch=8, seq_len=256, precision="fp32")
MBIT_PER_S = 20.0
"""Four exchanges of 256 KiB a step: 0.1 s each, about what experts compute between two."""


def test_chunks_hide_an_exchange(can_lab: None, ranks: Ranks) -> None:
    """Three quarters at best; 35 % to 62 % were measured while others used the machine."""
    profile = analytic_profile(MODEL, JOB, resolve_cluster("cpu-2x1"))
    with Lab(shipped("uniform")) as lab:
        hosts = [host.name for host in lab.topology.hosts[:2]]
        lab.set_rate(*hosts, MBIT_PER_S)

        def run(overlap: int) -> Observed:
            layout = LayoutFile(dp_replicate=2, ep=2, micro_batch=4, ep_overlap=overlap)
            plan = plan_for(MODEL, JOB, profile, layout, "layout")
            return trained(lab, ranks, plan, f"overlap-{overlap}", hosts, steps=5)

        whole, chunks = run(1), run(4)
    waited = [mean(rank.collective_by_axis["ep"] for rank in o.ranks) for o in (whole, chunks)]
    assert waited[1] < 0.85 * waited[0]
    assert chunks.losses == pytest.approx(whole.losses, rel=1e-5)
