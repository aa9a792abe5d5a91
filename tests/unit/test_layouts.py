"""Arrays of layouts: the rules on them, and the joint space against plain Python."""

from collections import Counter
from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import space
from planner.axes import AXES, MOST_TOKENS, NAME_AXES, Coverage, check_options, divisors
from planner.config import CpMethod, Offload, ParallelConfig, Recompute, ScheduleName
from planner.layouts import FIELDS, NAMES, Layouts, is_one_of
from planner.plan import SearchOptions
from planner.rules import CONFIG_RULES
from planner.schedules import allows_vpp
from planner.space import RULES, enumerate_layouts
from profiler.codec import replace
from profiler.errors import UserError
from tests.unit import facts

ANY = SearchOptions(pin={}, forbid={})
ALL = Coverage()
DENSE = facts.model()  # 6 layers, 4 heads, vocabulary 512
MOE = facts.model(
    family="qwen2_moe", num_layers=5, num_experts=6, num_experts_per_token=2,
    expert_ffn_hidden_size=30, shared_ffn_hidden_size=64, first_dense_layers=1,
)  # fmt: skip
CAPPED = replace(MOE, capacity_factor=1.0, capacity_group=16)
GQA = facts.model(num_kv_heads=2, num_layers=3)
MODELS = st.sampled_from([DENSE, MOE, CAPPED, GQA])
JOB = facts.job(global_batch=12, seq_len=4096)

degrees = st.sampled_from([1, 1, 2, 2, 3, 4, 6, 8])
configs = st.builds(
    ParallelConfig,
    **{name: degrees for name in FIELDS if name not in (*NAMES, "zero")},
    zero=st.integers(0, 3),
    recompute=st.sampled_from(get_args(Recompute)),
    schedule=st.sampled_from(get_args(ScheduleName)),
    cp_method=st.sampled_from(get_args(CpMethod)),
    offload=st.sampled_from(get_args(Offload)),
)


def enumerated(num_devices, model, options=ANY, coverage=ALL, job=JOB, **more):
    return list(
        enumerate_layouts(num_devices, job, model, options, coverage, devices_per_node=4, **more)
    )


def configs_of(chunks):
    return [config for chunk in chunks for config in chunk.configs()]


def pins(**axes):
    return SearchOptions(pin={k: tuple(map(str, v)) for k, v in axes.items()}, forbid={})


@given(st.lists(configs, min_size=1, max_size=30), MODELS, st.sampled_from([31, 32, 48, 4096]))
def test_rules_on_arrays_equal_rules_on_each(layouts, model, seq_len):
    job = facts.job(global_batch=2**15, seq_len=seq_len)
    arrays = Layouts.from_configs(layouts)
    for rule in RULES:
        each = [bool(rule.broken(c, model, job)) for c in layouts]
        assert rule.mask(arrays, model, job).tolist() == each, rule.id


@given(configs, configs, MODELS)
def test_rules_of_the_mesh_look_at_the_mesh_alone(config, other, model):
    steps = ("micro_batch", "schedule", "vpp", "recompute", "offload")
    changed = replace(config, **{name: getattr(other, name) for name in steps})
    for rule in RULES:
        if rule.of_mesh:
            assert rule.broken(config, model, JOB) == rule.broken(changed, model, JOB), rule.id


def test_the_space_asks_every_rule_of_the_degrees():
    assert set(CONFIG_RULES) < set(RULES)
    ids = [rule.id for rule in RULES]
    assert len(ids) == len(set(ids))


@given(st.lists(configs, max_size=8))
def test_arrays_mean_what_the_layouts_mean(layouts):
    arrays = Layouts.from_configs(layouts)
    assert len(arrays) == len(layouts)
    assert list(arrays.configs()) == layouts
    for name in ("num_devices", "stage_ranks", "num_replicas", "edp", "num_stages"):
        assert getattr(arrays, name).tolist() == [getattr(c, name) for c in layouts]
    assert arrays.num_microbatches(JOB).tolist() == [c.num_microbatches(JOB) for c in layouts]
    for field, names in NAMES.items():
        for some in (names[:1], names[1:]):
            answers = [is_one_of(c, field, *some) for c in layouts]
            assert is_one_of(arrays, field, *some).tolist() == answers
    parts = [arrays.take(slice(0, 2)), arrays.take(np.arange(len(layouts)) >= 2)]
    assert list(Layouts.concat(parts).configs()) == layouts
    assert list(arrays.take(np.arange(len(layouts))[::-1]).configs()) == layouts[::-1]


def test_arrays_refuse_what_they_cannot_hold():
    plain = ParallelConfig(
        pp=2**16, dp_replicate=2**15, tp=1, micro_batch=1, recompute="none", schedule="1f1b"
    )
    with pytest.raises(ValueError, match="too large"):
        Layouts.from_configs([plain])
    assert len(Layouts.concat([])) == 0


def _is_usual_shard(shard, replicas, ranks, node=4):
    """Everything, or a power of two times what fills the fewest whole nodes."""
    fill = next(s for s in range(1, node + 1) if s * ranks % node == 0)
    return shard in (1, replicas) or shard in [fill * 2**k for k in range(20)]


def _meshes(num_devices, model, job):
    """Fields of every mesh of the usual values."""
    ways = range(1, num_devices + 1)
    for tp, pp, cp, shard in product(ways, repeat=4):
        if num_devices % (tp * pp * cp * shard) or cp > max(1, job.seq_len // 1024):
            continue
        replicas, replicate = num_devices // (tp * pp * cp), num_devices // (tp * pp * cp * shard)
        if job.global_batch % replicas or not _is_usual_shard(shard, replicas, cp * tp):
            continue
        ranks = replicas * cp * tp
        for method, zero, ep, etp, overlap in product(
            ("ring", "all_gather", "ulysses") if cp > 1 else ("ring",),
            (1, 2, 3) if shard > 1 else (0,),
            range(1, max(1, model.num_experts) + 1),
            ways if model.num_experts else (1,),
            (1, 2, 4),
        ):
            if ranks % (ep * etp) == 0 and tp % etp == 0 and (ep > 1 or overlap == 1):
                yield {
                    "tp": tp, "pp": pp, "cp": cp, "dp_shard": shard, "dp_replicate": replicate,
                    "cp_method": method, "zero": zero, "ep": ep, "etp": etp,
                    "ep_overlap": overlap,
                }  # fmt: skip


def _steps(mesh, model, job):
    """Fields of every step that goes with a mesh."""
    pp, layers = mesh["pp"], model.num_layers
    replicas = mesh["dp_replicate"] * mesh["dp_shard"]
    names = ("1f1b",) if pp == 1 else ("1f1b", "interleaved", "zero_bubble", "zbv", "dualpipev")
    for mbs, name, recompute in product(range(1, 40), names, get_args(Recompute)):
        if job.global_batch // replicas % mbs or mbs * job.seq_len > MOST_TOKENS * mesh["cp"]:
            continue
        shortest = layers + 1
        for vpp in range(1, max(2, layers) + 1):
            longest = -(-layers // (pp * vpp))
            shorter, shortest = longest < shortest, min(longest, shortest)
            v_shaped = name in ("zbv", "dualpipev")
            fits = v_shaped or vpp == 1 or (shorter and pp * vpp <= layers)
            if fits and allows_vpp(name, vpp) and (name, vpp) != ("interleaved", 1):
                yield {"micro_batch": mbs, "schedule": name, "vpp": vpp, "recompute": recompute}


def brute_force(num_devices, model, job=JOB):
    return [
        ParallelConfig(**mesh, **step)
        for mesh in _meshes(num_devices, model, job)
        for step in _steps(mesh, model, job)
    ]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 4, 6, 8, 12]), MODELS, st.integers(1, 8),
    st.sampled_from([1, 4, 12, 30]),
)  # fmt: skip
def test_the_space_equals_brute_force(num_devices, model, layers, batch):
    model = replace(model, num_layers=max(layers, 1 + model.first_dense_layers))
    job = replace(JOB, global_batch=batch)
    expected = brute_force(num_devices, model, job)
    everything = configs_of(enumerated(num_devices, model, job=job, rules=()))
    assert len(everything) == len(expected)
    assert set(everything) == set(expected)
    first = [next((r.id for r in RULES if r.broken(c, model, job)), None) for c in everything]
    rejected = Counter()
    valid = configs_of(enumerated(num_devices, model, job=job, rejected=rejected))
    assert valid == [c for c, rule in zip(everything, first, strict=True) if rule is None]
    assert rejected == Counter(rule for rule in first if rule)
    assert len(valid) + rejected.total() == len(expected)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_chunks_are_small_and_in_one_order(monkeypatch, size):
    whole = configs_of(enumerated(4, MOE))
    rejected, again = Counter(), Counter()
    enumerated(4, MOE, rejected=rejected)
    monkeypatch.setattr(space, "CHUNK", size)
    monkeypatch.setattr(space, "_BATCH", size)
    chunks = enumerated(4, MOE, rejected=again)
    assert max(map(len, chunks)) <= size
    assert configs_of(chunks) == whole
    assert again == rejected


FIELD_OF = {"dp": "num_replicas", "mbs": "micro_batch"}


def _has(config, axis, values):
    """The layout has one of the values, or nothing that the axis speaks of."""
    if axis == "cp_method" and config.cp == 1:
        return True
    return str(getattr(config, FIELD_OF.get(axis, axis))) in values


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("tp", ["2"]), ("pp", ["2", "4"]), ("vpp", ["2"]), ("dp", ["2", "4"]),
        ("zero", ["0", "2"]), ("cp", ["2"]), ("cp_method", ["ulysses"]), ("ep", ["2", "3"]),
        ("etp", ["1"]), ("ep_overlap", ["2"]), ("mbs", ["1", "3"]), ("recompute", ["full"]),
        ("schedule", ["zbv", "1f1b"]),
    ],
)  # fmt: skip
def test_a_pin_equals_a_filter_and_forbidding_its_complement(axis, values):
    whole = configs_of(enumerated(6, MOE, rules=()))
    kept = [c for c in whole if _has(c, axis, values)]
    assert 0 < len(kept) < len(whole)
    assert configs_of(enumerated(6, MOE, pins(**{axis: values}), rules=())) == kept
    others = {str(getattr(c, FIELD_OF.get(axis, axis))) for c in whole} - set(values)
    options = SearchOptions(pin={}, forbid={axis: tuple(others)})
    assert configs_of(enumerated(6, MOE, options, rules=())) == kept
    if axis != "dp":
        typed = {v if axis in NAME_AXES else int(v) for v in values}
        coverage = Coverage({axis: frozenset(typed)})
        assert configs_of(enumerated(6, MOE, coverage=coverage, rules=())) == kept


def test_a_pin_opens_what_is_not_usual():
    usual = configs_of(enumerated(8, DENSE))
    assert {c.schedule for c in usual}.isdisjoint({"gpipe", "table"})
    assert {(c.cp_method == "hybrid", c.offload) for c in usual} == {(False, "none")}
    asked = configs_of(enumerated(8, DENSE, pins(schedule=["gpipe"], offload=["optimizer"])))
    assert {(c.schedule, c.offload) for c in asked} == {("gpipe", "optimizer")}
    assert all(c.pp > 1 for c in asked)
    hybrid = configs_of(enumerated(8, DENSE, pins(cp_method=["hybrid"], cp=[4], tp=[1])))
    assert {(c.cp_method, c.cp_heads) for c in hybrid} == {("hybrid", 2)}
    job = replace(JOB, global_batch=64)
    shards = [
        {c.dp_shard for c in configs_of(enumerated(16, DENSE, options, job=job)) if c.pp == 1}
        for options in (pins(tp=[1]), pins(tp=[1], dp_shard=[2]), pins(tp=[1], dp_replicate=[8]))
    ]
    assert shards == [{1, 2, 4, 8, 16}, {2}, {1, 2}]
    deep = facts.model(num_layers=12)
    depths = [
        {c.vpp for c in configs_of(enumerated(2, deep, options)) if c.schedule == "interleaved"}
        for options in (pins(pp=[2]), pins(pp=[2], vpp=[5]))
    ]
    assert depths == [{2, 3, 6}, {5}]


def test_a_pinned_split_leaves_as_many_stages():
    found = configs_of(enumerated(4, DENSE, pins(split=[1, 2, 2, 1])))
    assert {(c.pp, c.vpp) for c in found} == {(4, 1), (2, 2)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (pins(schedule=["1f2b"]), "`--pin` does not know schedule `1f2b`"),
        (pins(schedule=["table"]), "`--pin` does not know schedule `table`"),
        (
            SearchOptions(pin={}, forbid={"tp": ("two",)}),
            "`--forbid tp=two` is no whole number from 1 on",
        ),
        (pins(mbs=["1" * 10]), "is no whole number from 1 on"),
    ],
)
def test_values_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        check_options(options, DENSE)


def test_every_axis_is_one_of_the_layout():
    others = {"dp": "num_replicas", "mbs": "micro_batch", "split": "num_stages"}
    for axis in AXES:
        assert hasattr(ParallelConfig, others.get(axis, axis))
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
