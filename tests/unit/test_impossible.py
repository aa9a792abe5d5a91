"""Pins that no layout can have: the sentences against an enumeration of the space."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.axes import Coverage
from planner.impossible import impossible_pins
from planner.plan import SearchOptions
from planner.space import enumerate_layouts
from profiler.catalog.load import load_model
from profiler.job import JobSpec

DENSE, MOE = load_model("tiny-llama"), load_model("mixtral-8x7b")
JOB = JobSpec(global_batch=16, seq_len=2048)


def said(model=DENSE, sizes=(16,), **pins):
    options = SearchOptions(pin={k: tuple(v.split(",")) for k, v in pins.items()}, forbid={})
    return impossible_pins(model, JOB, options, sizes)


@pytest.mark.parametrize(
    ("pins", "sentence"),
    [
        ({"tp": "3"}, "tp 3 does not divide the 16 devices"),
        ({"tp": "3,5"}, "tp 3 or 5 does not divide the 16 devices"),
        ({"tp": "8", "pp": "4"}, "tp 8 x pp 4 does not divide the 16 devices"),
        ({"ep": "4"}, "ep 4: `tiny-llama` has no experts"),
        ({"ep_overlap": "2"}, "ep_overlap 2: `tiny-llama` has no experts"),
        ({"ep_overlap": "3"}, "ep_overlap 3 is none of 1, 2, 4, 8"),
        ({"mbs": "3"}, "mbs 3 does not divide the global batch of 16"),
        ({"pp": "1", "schedule": "zbv"}, "schedule zbv needs pp above 1"),
        ({"pp": "1", "vpp": "2"}, "vpp 2 needs pp above 1"),
        ({"schedule": "1f1b", "vpp": "2"}, "schedule 1f1b cannot have vpp 2"),
        ({"schedule": "interleaved", "vpp": "1"}, "schedule interleaved cannot have vpp 1"),
        ({"zero": "1,2", "dp_shard": "1"}, "zero 1 or 2 needs dp_shard above 1"),
        ({"zero": "0", "dp_shard": "2"}, "zero 0 shards nothing, so dp_shard is 1, not 2"),
    ],
)
def test_sentences(pins, sentence):
    assert said(**pins) == (sentence,)


def test_experts_of_a_model_that_has_some():
    most = MOE.num_experts
    assert said(MOE, ep=str(most)) == ()
    assert said(MOE, (4 * most,), ep=str(2 * most)) == (
        f"ep {2 * most} is more than the {most} experts",
    )
    assert said(MOE, ep="1", ep_overlap="2,4") == ("ep_overlap 2 or 4 needs ep above 1",)
    assert said(MOE, ep="2", ep_overlap="8") == said(MOE, ep="1", ep_overlap="1,2") == ()


def test_of_several_numbers_of_devices_one_is_enough():
    assert said(sizes=(8, 12, 16), tp="3") == ()
    assert said(sizes=(8, 16), tp="3") == ("tp 3 does not divide the 8 or 16 devices",)
    assert said(sizes=(2, 4, 8, 16), tp="3") == ("tp 3 does not divide the 2 to 16 devices",)


_NUMBER = st.integers(1, 6).map(str)
_PINS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("tp", "pp", "cp", "dp", "dp_shard", "ep", "etp", "ep_overlap", "mbs", "vpp"), _NUMBER
        ),
        "zero": st.integers(0, 3).map(str),
        "schedule": st.sampled_from(["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv"]),
    },
)


@given(_PINS, st.sampled_from([DENSE, MOE]), st.sampled_from([4, 8, 12]))
def test_what_is_said_to_be_impossible_is_not_in_the_space(pins, model, num_devices):
    if said(model, (num_devices,), **pins):
        options = SearchOptions(pin={k: (v,) for k, v in pins.items()}, forbid={})
        layouts = enumerate_layouts(
            num_devices, JOB, model, options, Coverage(), devices_per_node=4, rules=()
        )
        assert sum(len(chunk) for chunk in layouts) == 0


def test_nothing_is_said_where_nothing_is_pinned():
    assert said() == ()
    narrow = dataclasses.replace(SearchOptions(pin={}, forbid={}), pin={"split": ("4", "4")})
    assert impossible_pins(DENSE, JOB, narrow, (16,)) == ()
