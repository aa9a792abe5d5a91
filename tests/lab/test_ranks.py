"""Ranks have their quotas and their places; what goes wrong in one is told."""

import os
import statistics
import subprocess
import sys

import pytest

from tests.lab import jobs
from tests.lab.ranks import JobError

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_lab")]

PYTHON = [sys.executable, "-I", "-S", "-c"]
BURN = """
import time
begin, cpu = time.perf_counter(), time.process_time()
while time.perf_counter() - begin < 1: pass
print((time.process_time() - cpu) / (time.perf_counter() - begin))
"""
"""Prints what share of a core it got."""


def burn(lab, places):
    """Share of a core that each of these (host, local rank) gets when they compute at once."""
    running = [
        lab.popen(host, [*PYTHON, BURN], rank=rank, stdout=subprocess.PIPE, text=True)
        for host, rank in places
    ]
    return [float(process.communicate(timeout=60)[0]) for process in running]


def test_idle_ranks_lend_no_time(cluster):
    everyone = burn(cluster, [(host.name, k) for host in cluster.topology.hosts for k in (0, 1)])
    (alone,) = burn(cluster, [("host0", 0)])
    assert alone < 0.2 * 1.15
    assert statistics.median(everyone) > 0.4 * alone  # all eight at once on a busy machine


def test_a_slow_host_computes_its_share(cluster):
    cluster.set_speed("host3", 0.5)
    try:
        healthy, slow = burn(cluster, [("host0", 0), ("host3", 0)])
        (as_a_host,) = burn(cluster, [("host3", None)])
    finally:
        cluster.set_speed("host3", 1.0)
    assert slow < 0.1 * 1.15
    assert 0.35 < slow / healthy < 0.65
    assert as_a_host < 0.2 * 1.15


def test_a_rank_is_known_by_its_environment(cluster):
    """A launcher's ranks get their quota without knowing of it."""
    look = "sleep 0.5; cat /proc/self/cgroup"
    env = os.environ | {"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}
    said = cluster.run("host1", ["bash", "-c", look], env=env).stdout
    assert "/host1/rank1\n" in said


def test_a_bad_link_is_slow_for_the_order_that_crosses_it(cluster, ranks):
    orders = (("host0", "host1", "host2", "host3"), ("host0", "host1", "host3", "host2"))
    seconds = {order: [] for order in orders}
    for _ in range(2):
        for order in orders:
            placed = cluster.topology.placed(order)
            found = ranks.run(cluster, jobs.all_reduce, placed=placed, num_bytes=1 << 20, times=3)
            seconds[order] += found[0]
    crossing, around = (statistics.median(seconds[order]) for order in orders)
    assert crossing > 3 * around


def test_ranks_are_where_they_were_placed(cluster, ranks):
    placed = ("host2", "host0", "host2", "host1")
    found = ranks.run(cluster, jobs.whereabouts, placed=placed)
    assert [x["host"] for x in found] == list(placed)
    assert [x["rank"] for x in found] == [0, 1, 2, 3]
    assert [x["local_rank"] for x in found] == [0, 0, 1, 0]


def test_a_rank_that_fails_says_why(cluster, ranks):
    with pytest.raises(JobError, match="rank 5 on host2 ended with status 1") as caught:
        ranks.run(cluster, jobs.fail, rank=5)
    assert "ArithmeticError: rank 5 cannot go on" in str(caught.value)
    assert "in fail" in str(caught.value)


def test_a_rank_that_hangs_says_where(cluster, ranks):
    with pytest.raises(JobError, match=r"Timeout \(0:00:02") as caught:
        ranks.run(cluster, jobs.hang, placed=("host0", "host1"), rank=1, timeout_s=2)
    assert "in hang" in str(caught.value)
    assert len(ranks.run(cluster, jobs.whereabouts)) == 8  # the server goes on
