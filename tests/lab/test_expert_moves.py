"""Experts that follow the routing go from host to host over a real network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.expert_looks import read_looks
from launch.observed import Observed
from planner.expert_placement import parts_of
from planner.given import LayoutFile, plan_for
from planner.holdings import contiguous_slots
from planner.plan import Plan
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster
from profiler.codec import replace
from profiler.job import JobSpec
from profiler.model import ModelSpec
from tests.lab import measure
from tests.lab.lab import Lab
from tests.lab.ranks import Ranks
from tests.lab.topology import Nic, shipped
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


def train(lab: Lab, ranks: Ranks, plan: Plan, every: int, steps: int = 10) -> tuple[Observed, Path]:
    """A run that looks at its routing every so many steps, and its folder."""
    name = f"moves-{every}"
    observed = trained(
        lab, ranks, plan, name, [host.name for host in lab.topology.hosts],
        steps=steps, learning_rate=3e-3, rebalance_experts_every=every, rebalance_experts_gain=0.0,
    )  # fmt: skip
    return observed, lab.shared(name)


def test_experts_move_between_hosts_and_the_curve_stays(cluster: Lab, ranks: Ranks) -> None:
    profile = analytic_profile(MODEL, JOB, resolve_cluster("cpu-4x1"))
    plan = plan_for(MODEL, JOB, profile, LAYOUT, "layout")
    still, moved = (train(cluster, ranks, plan, every)[0] for every in (0, 4))
    assert still.moves == ()
    assert {move.step for move in moved.moves} <= {4, 8}
    assert moved.moves
    for move in moved.moves:
        assert move.num_bytes > 0
        assert move.num_bytes % EXPERT_BYTES == 0
        assert move.seconds > 0
    assert moved.losses == pytest.approx(still.losses, rel=1e-4)
    assert len({rank.host for rank in moved.ranks}) == 4


SLOW, SLOW_MBIT = 2, 20


@pytest.fixture(scope="module")
def slow_to_receive(can_lab: None) -> Iterator[Lab]:
    """Four hosts, of which one's NIC receives at a tenth of its rate."""
    plain = shipped("uniform")
    hosts = tuple(
        replace(host, nics=(Nic(
            name="eth0", mbit_per_s=10 * SLOW_MBIT,
            receive_mbit_per_s=SLOW_MBIT if number == SLOW else None,
        ),))
        for number, host in enumerate(plain.hosts[:4])
    )  # fmt: skip
    with Lab(replace(plain, name="slow-to-receive", hosts=hosts)) as lab:
        yield lab


def test_experts_leave_the_host_whose_nic_is_slow(slow_to_receive: Lab, ranks: Ranks) -> None:
    """Links measured: what is routed most goes to the other hosts, though they are fuller then."""
    links = measure.links_of(slow_to_receive, 1e9)
    assert links.in_bytes_per_s[SLOW] == pytest.approx(SLOW_MBIT * 1e6 / 8, rel=0.3)
    profile = analytic_profile(MODEL, JOB, resolve_cluster("cpu-4x1"))
    plan = plan_for(MODEL, JOB, replace(profile, links=links.stored()), LAYOUT, "layout")
    observed, folder = train(slow_to_receive, ranks, plan, 4, steps=6)
    (look,) = [each for each in read_looks(folder) if each.step == 4]
    assert [move.step for move in observed.moves][:1] == [4]
    even = contiguous_slots(MODEL.num_experts, 4)
    for counts, layer in zip(look.table, look.layers, strict=True):
        before, after = (counts @ parts_of(slots, MODEL.num_experts) for slots in (even, layer))
        # Level, it would have the mean: the load of others is only worth so much.
        assert after[SLOW] == after.min() < 0.8 * after.mean()
        assert after[SLOW] < before[SLOW]
        print(f"load of the slow host: {before[SLOW]:.0f} -> {after[SLOW]:.0f} of {counts.sum()}")
    gains = [(move.predicted_gain_s, move.gain_s) for move in observed.moves]
    print(f"seconds of a step saved, predicted and observed: {gains}")
    assert gains[0][0] > 0
