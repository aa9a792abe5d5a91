"""Screening against simulating, bounds; profiles of a software, and precisions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.config import ParallelConfig
from planner.cost import cost_model
from planner.distinct import KEY, distinct_layers
from planner.layouts import FIELDS, NAMES, Layouts
from planner.search import make_plan
from planner.simulate import simulate
from profiler.analytic import analytic_profile
from profiler.catalog import cluster_from_name, load_device
from profiler.catalog.constants import load_all_software, load_constants, resolve_constants
from profiler.codec import decode, encode, replace
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.profile import Profile
from tests.unit import facts
from tests.unit.spaces import ANY, analytic, layouts, pins, with_memory
from tests.unit.test_search_exact import KINDS, WIDE, asked

MODEL = facts.model(num_layers=16, vocab_size=512, **WIDE)
JOB = JobSpec(global_batch=32, seq_len=2048)
MOE = replace(MODEL, **KINDS["moe"])
BIG = replace(MODEL, hidden_size=8192, num_heads=64, num_kv_heads=64, ffn_hidden_size=32768)
H100 = cluster_from_name("h100-1x8")
SCHEDULES = {
    "gpipe": 1, "1f1b": 1, "interleaved": 2, "zero_bubble": 1, "zbv": 2, "dualpipev": 2
}  # fmt: skip


def layout(**changes) -> ParallelConfig:
    """One of eight devices."""
    plain = ParallelConfig(
        pp=1, dp_replicate=8, tp=1, micro_batch=1, recompute="none", schedule="1f1b"
    )
    return replace(plain, **changes)


def costs_of(model=MODEL, job=JOB, cluster=H100, software="pytorch"):
    return cost_model(model, job, analytic(model, job, with_memory(cluster, 2**50), software))


def seconds_of(costs, config) -> float:
    return simulate(costs.prepare(config).program).step_s


def screen_one(costs, config):
    return costs.screen(Layouts.from_configs([config]), np.inf)


def gaps(schedule, pp, recompute):
    """(micro-batches per rank, closed form over simulation - 1) of layouts of equal stages."""
    costs, found = costs_of(), []
    for replicas, size in itertools.product((1, 8 // pp), (1, 2, 4)):
        config = layout(
            pp=pp, vpp=SCHEDULES[schedule], schedule=schedule, micro_batch=size,
            recompute=recompute, dp_replicate=replicas, tp=8 // pp // replicas,
        )  # fmt: skip
        ratio = float(screen_one(costs, config).step_s[0]) / seconds_of(costs, config)
        found.append((config.num_microbatches(JOB) / pp, ratio - 1))
    return found


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("pp", [2, 4, 8])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_closed_form_is_near_the_simulation_of_equal_stages(schedule, pp, recompute):
    found = gaps(schedule, pp, recompute)
    assert max(m for m, _ in found) >= 2
    for micro_batches, gap in found:
        if schedule in ("zbv", "dualpipev"):
            limit = 0.08 if micro_batches >= 4 else 0.17
        else:
            limit = 0.03 if micro_batches >= 1 else 0.1
        assert abs(gap) < limit, micro_batches


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_pipeline_the_closed_form_is_the_simulation(kind):
    model = replace(facts.model(num_layers=5, **KINDS[kind]), **WIDE)
    costs = costs_of(model)
    space = layouts(costs, pins(pp=[1], mbs=[1, 4], offload=["none", "optimizer"]))
    screened = costs.screen(space, np.inf)
    assert len(screened.index) == len(space) > 50
    for position in range(0, len(space), len(space) // 20):
        config = space.config(position)
        assert screened.step_s[position] == pytest.approx(seconds_of(costs, config), rel=1e-9)
        peak = costs.prepare(config).peak_bytes
        assert screened.peak_bytes[position] == pytest.approx(peak, abs=8)


@settings(max_examples=60, deadline=None)
@given(asked(), st.data())
def test_bounds_are_bounds(question, data):
    """No layout is faster than its bounds; one that fits is screened as fitting."""
    model, job, cluster, options = question
    plenty = cost_model(model, job, analytic(model, job, with_memory(cluster, 2**50)))
    space = layouts(plenty, options)
    if not len(space):
        return
    chosen = data.draw(st.lists(st.integers(0, len(space) - 1), min_size=1, max_size=20))
    space = space.take(np.array(chosen))
    share = data.draw(st.sampled_from([0.1, 0.5, 0.9]))
    room = int(np.quantile(plenty.screen(space, np.inf).peak_bytes, share) / 0.94) + 1
    costs = cost_model(model, job, analytic(model, job, with_memory(cluster, room)))
    screened = costs.screen(space, np.inf)
    bounds = dict(zip(screened.index.tolist(), screened.bound_s.tolist(), strict=True))
    for position, config in enumerate(space.configs()):
        prepared = costs.prepare(config)
        if prepared is None:
            continue
        assert prepared.peak_bytes <= costs.capacity_bytes
        seconds = simulate(prepared.program).step_s
        assert bounds[position] <= seconds * (1 + 1e-12)
        assert prepared.bound_s <= seconds * (1 + 1e-9)


def test_what_is_screened_does_not_depend_on_its_neighbours():
    """Layers are timed once per distinct key: each layout alone gives the same figures."""
    costs = costs_of(replace(MOE, num_layers=6))
    space = layouts(costs, pins(mbs=[1, 2], cp=[1, 2], pp=[1, 2]))
    order = np.random.default_rng(0).permutation(len(space))
    space = space.take(order)
    whole = costs.screen(space, np.inf)
    assert whole.index.tolist() == list(range(len(space)))
    for size in (7, 100):
        parts = [
            costs.screen(space.take(slice(a, a + size)), np.inf)
            for a in range(0, min(len(space), 40 * size), size)
        ]
        for name in ("step_s", "bound_s", "peak_bytes"):
            joined = np.concatenate([getattr(p, name) for p in parts])
            np.testing.assert_allclose(joined, getattr(whole, name)[: len(joined)], rtol=1e-12)
    for position in range(0, len(space), 50):
        alone = costs.screen(space.take(slice(position, position + 1)), np.inf)
        assert alone.step_s[0] == pytest.approx(whole.step_s[position], rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([1, 2, 40]), st.booleans())
def test_layouts_of_one_key_are_timed_together(pick, variety, huge):
    """Also where there are more combinations of values than fit a table."""

    def some(name, num):
        most = 2**22 if huge and name == "micro_batch" else variety
        top = min(most, len(NAMES[name]) - 1) if name in NAMES else most
        return np.array([pick.randint(name not in NAMES, top) for _ in range(num)], dtype=np.int32)

    space = Layouts(**{name: some(name, 60) for name in FIELDS})
    code, unique = distinct_layers(space, 8)
    keys = [
        (space.pp[i] > 1, *(getattr(space, name)[i] for name in KEY),
         space.num_devices[i] > 8)
        for i in range(60)
    ]  # fmt: skip
    assert [keys[i] for i in unique[code]] == keys
    assert len(unique) == len(set(keys))


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1), memory=st.sampled_from([2**50, 6 * 2**30]))
def test_a_cut_removes_what_is_slower_alone(share, memory):
    costs = cost_model(MODEL, JOB, analytic(MODEL, JOB, with_memory(H100, memory)))
    space = layouts(costs, pins(mbs=[1, 2]))
    whole = costs.screen(space, np.inf)
    assert (whole.num_cut, whole.least_cut_s) == (0, np.inf)
    assert len(whole.index) + whole.num_unfit == len(space)
    cut_s = float(np.quantile(whole.bound_s, share))
    cut = costs.screen(space, cut_s)
    assert len(cut.index) + cut.num_unfit + cut.num_cut == len(space)
    assert cut.least_cut_s > cut_s
    gone = ~np.isin(whole.index, cut.index)
    assert (whole.step_s[gone] > cut_s).all()
    assert (whole.bound_s[gone] >= cut.least_cut_s).all()
    kept = np.isin(whole.index, cut.index)
    np.testing.assert_allclose(cut.step_s, whole.step_s[kept], rtol=1e-12)


def test_an_analytic_profile_is_read_back_as_it_was():
    profile = analytic(MODEL, JOB, H100)
    assert profile.is_analytic
    assert profile.constants
    assert decode(Profile, encode(profile), "profile.json") == profile


def test_software_changes_time_and_memory():
    found = {}
    for name in load_all_software():
        prepared = costs_of(BIG, software=name).prepare(layout(micro_batch=4))
        found[name] = (simulate(prepared.program).step_s, prepared.peak_bytes)
    assert len({seconds for seconds, _ in found.values()}) > len(found) / 2
    assert found["megatron-2021"][0] > found["megatron"][0]  # no FlashAttention
    assert found["megatron-deepspeed"][1] > found["megatron"][1]  # keeps scores


def test_unknown_software_names_the_nearest():
    with pytest.raises(UserError, match="no training software `megatrn`") as caught:
        analytic_profile(MODEL, JOB, H100, "megatrn")
    assert caught.value.hint == "did you mean `megatron`?"


def test_a_device_that_was_not_fitted_uses_its_own_efficiency():
    fitted = load_constants().constants["matrix_efficiency"].of
    group = H100.groups[0]
    assert resolve_constants(group, "pytorch")["matrix_efficiency"] == fitted["h100"].value
    reached = [
        resolve_constants(
            replace(group, device=replace(group.device, name="new", gemm_efficiency=efficiency)),
            "pytorch",
        )["matrix_efficiency"]
        for efficiency in (0.4, 0.8)
    ]
    assert reached[1] == pytest.approx(2 * reached[0])
    mean = np.mean([f.value / load_device(n).device.gemm_efficiency for n, f in fitted.items()])
    assert reached[0] == pytest.approx(0.4 * mean)


def test_eight_bits_are_faster_where_the_device_has_them():
    bf16, fp8 = (
        seconds_of(costs_of(BIG, replace(JOB, precision=p)), layout(micro_batch=2))
        for p in ("bf16", "fp8")
    )
    assert fp8 < 0.85 * bf16


def test_a_precision_that_the_device_lacks_is_refused():
    job, cluster = replace(JOB, precision="fp8"), cluster_from_name("a100-80-1x8")
    with pytest.raises(UserError, match="does not compute in fp8") as caught:
        make_plan(MODEL, job, analytic(MODEL, job, cluster), ANY)
    assert "--precision" in caught.value.hint


def test_tokens_of_a_micro_batch_may_exceed_32_bits():
    job = JobSpec(global_batch=2**13, seq_len=2**20)
    config = layout(dp_replicate=1, micro_batch=2**12)
    costs = costs_of(job=job, cluster=cluster_from_name("h100-1x1"))
    half = costs.least_memory(replace(config, micro_batch=2**11)).total_bytes
    assert costs.least_memory(config).total_bytes > 1.9 * half > 2**40
