"""What exchanging tokens in chunks costs and hides, against a line of chunks over two resources."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.analytic import AnalyticCosts
from planner.config import ParallelConfig
from planner.plan import SearchOptions
from planner.search import make_plan
from planner.timing.layer import layer_times
from planner.timing.quantities import Software
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster
from profiler.catalog.load import load_model
from profiler.job import JobSpec
from tests.unit.timing import FITTED, H100, IDEAL, SEQ, exact, shape, split

MIXTRAL = shape("mixtral-8x7b")
CHUNKS = st.sampled_from([1, 2, 4, 8])
SHARE = st.floats(0, 1)
SECONDS = st.floats(1e-6, 1.0)


def moe(machine, constants, overlap, *, chunked=1.0, sizes=MIXTRAL, **degrees):
    degrees = {"replicas": 8, "ep": 8} | degrees
    layout = split(ep_overlap=float(overlap), **degrees)
    software = dataclasses.replace(Software(), chunked_exchange=chunked)
    return layer_times(sizes, layout, machine, software, constants)[1]


def made(send_s, compute_s, start_s, exposed=0.0):
    """A machine whose exchanges move all bytes in `send_s`, start in `start_s` each, and whose
    experts compute in `compute_s`; memory, other kernels and sorting take no time."""
    rows = SEQ * MIXTRAL.topk
    flops = 6.0 * rows * MIXTRAL.hidden * MIXTRAL.expert_ffn
    num_bytes = IDEAL.element_bytes * rows * MIXTRAL.hidden * 7 / 8
    machine = dataclasses.replace(
        IDEAL, peak=flops / compute_s, peak_low=flops / compute_s, inner_rate=num_bytes / send_s
    )
    return machine, exact(exchange_base_s=start_s, exposed_exchange=exposed)


def line_s(overlap, exchange_s, compute_s):
    """Seconds until all chunks are back: the network takes what is ready in the order of its start,
    all that is sent before what returns; `exchange_s` and `compute_s` are of one chunk."""
    arrived = [exchange_s * (k + 1) for k in range(overlap)]
    network, device = arrived[-1], 0.0
    for k in range(overlap):
        device = max(device, arrived[k]) + compute_s
        network = max(network, device) + exchange_s
    return network


@settings(deadline=None)
@given(CHUNKS, SECONDS, SECONDS, SECONDS)
def test_chunks_in_a_line(overlap, send_s, compute_s, start_s):
    found = moe(*made(send_s, compute_s, start_s), overlap)
    each = send_s / overlap + start_s
    expected = line_s(overlap, each, compute_s / overlap)
    assert found.expert_s + compute_s == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(CHUNKS, SECONDS, SECONDS, SECONDS, SHARE)
def test_never_below_what_either_resource_takes(overlap, send_s, compute_s, start_s, exposed):
    found = moe(*made(send_s, compute_s, start_s, exposed), overlap)
    busy = 2 * overlap * (send_s / overlap + start_s)
    for talk, compute in ((found.expert_s, compute_s), (found.expert_back_s, 2 * compute_s)):
        assert talk <= busy * (1 + 1e-9)
        assert talk + compute >= max(busy, compute) * (1 - 1e-9)


@settings(deadline=None)
@given(SECONDS, SECONDS, SECONDS, SHARE)
def test_one_chunk_is_an_exchange_a_computation_and_an_exchange(send_s, compute_s, start_s, share):
    found = moe(*made(send_s, compute_s, start_s, share), 1)
    assert found.expert_s == found.expert_back_s == pytest.approx(2 * (send_s + start_s))
    plain = moe(*made(send_s, compute_s, start_s, share), 1, chunked=0.0)
    for name in (f.name for f in dataclasses.fields(found)):
        assert np.array_equal(getattr(found, name), getattr(plain, name)), name


def test_where_starts_are_dear_one_chunk_wins():
    times = [moe(*made(1e-3, 2e-3, 1e-2), d).forward_s for d in (1, 2, 4, 8)]
    assert times == sorted(times)
    assert times[0] < times[1]


def test_where_the_exchange_takes_as_long_as_computing_chunks_win():
    times = [moe(*made(1e-3, 2e-3, 1e-6, exposed=0.5), d).forward_s for d in (1, 2, 4)]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[1]


def test_half_of_what_is_covered_stays_where_half_is_exposed():
    hidden, half = (moe(*made(1e-3, 5e-3, 0.0, exposed=e), 2).expert_s for e in (0.0, 0.5))
    assert (hidden, half) == (pytest.approx(1e-3), pytest.approx(1.5e-3))


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3"])
@pytest.mark.parametrize("ep", [8, 32])
def test_software_that_runs_nothing_side_by_side_gains_nothing(name, ep):
    def total(overlap):
        layer = moe(
            H100, FITTED, overlap, chunked=0.0, sizes=shape(name), ep=ep, replicas=32,
            micro_batch=4,
        )  # fmt: skip
        return float(layer.forward_s + layer.input_s + layer.weight_s)

    times = [total(d) for d in (1, 2, 4)]
    assert times == sorted(times)
    assert times[0] < times[2]


def costs(cluster, software):
    model, job = load_model("mixtral-8x7b"), JobSpec(global_batch=64, seq_len=4096)
    target = resolve_cluster(cluster)
    return AnalyticCosts(model, job, analytic_profile(model, job, target, software))


@pytest.mark.parametrize(
    ("cluster", "software", "has"),
    [("h100-2x8", "pytorch", True), ("h100-2x8", "megatron", False), ("cpu-2x8", "pytorch", False)],
)
def test_chunks_are_searched_where_they_can_hide_anything(cluster, software, has):
    coverage = costs(cluster, software).coverage
    assert coverage.has("ep_overlap", 1)
    assert coverage.has("ep_overlap", 2) == has


def test_chunks_take_no_more_memory():
    layout = ParallelConfig(
        pp=1, dp_replicate=1, dp_shard=16, zero=3, tp=1, ep=8, micro_batch=1, recompute="full",
        schedule="1f1b",
    )  # fmt: skip
    found = costs("h100-2x8", "pytorch")
    one, two = (
        found.prepare(dataclasses.replace(layout, ep_overlap=overlap)) for overlap in (1, 2)
    )
    assert one.memory == two.memory
    assert one.program != two.program


def test_the_search_takes_chunks_where_they_pay():
    model, job = load_model("qwen3-30b-a3b"), JobSpec(global_batch=256, seq_len=4096)
    profile = analytic_profile(model, job, resolve_cluster("h100-4x8"), "pytorch")
    pins = {"tp": ("1",), "pp": ("2",), "cp": ("1",), "zero": ("2",), "mbs": ("2",)}
    plan = make_plan(model, job, profile, SearchOptions(pin=pins, forbid={}))
    known = plan.by_axis["ep_overlap"]
    assert set(known) == {"1", "2", "4"}
    assert plan.chosen.config.ep_overlap == int(min(known, key=known.__getitem__)) > 1
    whole = SearchOptions(pin=pins | {"ep_overlap": ("1",)}, forbid={})
    assert make_plan(model, job, profile, whole).chosen.cost.step_s == known["1"]
    assert known["1"] > plan.chosen.cost.step_s
