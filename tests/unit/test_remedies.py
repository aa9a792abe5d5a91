"""What the error of a search in which nothing fits proposes: true, and no more than is needed."""

import re

import numpy as np
import pytest

from planner.cost import cost_model
from planner.plan import SearchOptions
from planner.remedies import with_remedy
from planner.search import make_plan
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster, resolve_model
from profiler.codec import replace
from profiler.errors import UserError
from profiler.job import JobSpec
from tests.unit import facts
from tests.unit.spaces import layouts

ANY = SearchOptions(pin={}, forbid={}, top=0)
JOB = JobSpec(global_batch=64, seq_len=4096)


def failure(model, cluster, options=ANY, job=JOB):
    """The error of the search, with what would help."""
    facts_ = analytic_profile(model, job, cluster)
    with pytest.raises(UserError) as caught:
        make_plan(model, job, facts_, options)
    return with_remedy(caught.value, model, job, facts_, options)


def plan(model, cluster, options=ANY, job=JOB):
    return make_plan(model, job, analytic_profile(model, job, cluster), options)


def named(hint):
    """`n` of `(n x 8 h100)`."""
    return int(re.search(r"\((\d+) x 8 h100\)", hint)[1])


def test_states_too_large_for_the_devices_go_to_the_host_or_to_more_devices():
    big, one = resolve_model("llama3-70b"), resolve_cluster("h100-1x8")
    error = failure(big, one)
    assert "75.3 GiB more than its 74.4 GiB" in error.details[0]
    assert "optimizer 98.6 GiB, weights and gradients 49.3 GiB" in error.details[0]
    assert "with `--pin offload=optimizer` it fits" in error.hint
    assert "seq-len" not in error.hint
    assert plan(big, one, replace(ANY, pin={"offload": ("optimizer",)})).chosen
    nodes = named(error.hint)
    assert plan(big, resolve_cluster(f"h100-{nodes}x8")).chosen
    with pytest.raises(UserError, match="fits on"):
        plan(big, resolve_cluster(f"h100-{nodes - 1}x8"))


def test_long_sequences_are_cut_no_shorter_than_needed():
    model, cluster = resolve_model("llama3-8b"), resolve_cluster("h100-1x8")
    pinned = replace(ANY, pin={"cp": ("1",)})
    error = failure(model, cluster, pinned, replace(JOB, seq_len=2**20))
    length = int(re.search(r"`--seq-len (\d+)`", error.hint)[1])
    assert plan(model, cluster, pinned, replace(JOB, seq_len=length)).chosen
    with pytest.raises(UserError, match="fits on"):
        plan(model, cluster, pinned, replace(JOB, seq_len=2 * length))


REST = {"pp": ("1",), "cp": ("1",), "zero": ("1",), "mbs": ("4",)}
SHALLOW = {"pp": ("2", "4", "8"), "zero": ("1", "2", "3")}


@pytest.mark.parametrize(
    ("narrowed", "hint", "less"),
    [
        ({"pin": {"tp": ("1",), **REST}}, "--pin tp=1` it fits, with tp 2", {"pin": REST}),
        ({"pin": {"tp": ("3",)}}, "--pin tp=3` it fits, with tp ", {}),
        ({"forbid": {"tp": ("2", "4", "8"), **SHALLOW}}, "--forbid tp=2,4,8` it fits",
         {"forbid": SHALLOW}),
        ({"devices": (1,)}, "--devices 1` it fits, on 1 x 8 h100", {}),
    ],
)  # fmt: skip
def test_a_narrowing_that_is_in_the_way_is_named_first(narrowed, hint, less):
    model, cluster = resolve_model("llama3-8b"), resolve_cluster("h100-1x8")
    error = failure(model, cluster, replace(ANY, **narrowed))
    assert error.hint.startswith(f"without `{hint}")
    assert plan(model, cluster, replace(ANY, **less)).chosen


def test_narrow_nodes_are_widened_before_there_are_more():
    error = failure(resolve_model("llama3-8b"), resolve_cluster("h100-1x1"))
    assert "2 devices are enough (1 x 2 h100)" in error.hint


def test_unlike_nodes_are_taken_as_their_least_where_that_is_more():
    groups = [resolve_cluster(f"{name}-1x8").uniform for name in ("h100", "a100-80")]
    cluster = replace(resolve_cluster("h100-1x8"), name="both", groups=tuple(groups))
    asked = replace(ANY, devices=(1,), objective="devices")
    error = failure(resolve_model("llama3-8b"), cluster, asked)
    assert error.hint.startswith("without `--devices 1` it fits")
    assert plan(resolve_model("llama3-8b"), cluster, replace(asked, devices=())).chosen


def test_measured_profiles_know_no_other_devices_or_sequences():
    small = facts.cluster(device=facts.device(memory_bytes=2**20))
    profile = replace(facts.profile(), cluster=small)
    with pytest.raises(UserError) as caught:
        make_plan(facts.model(), facts.job(), profile, ANY)
    same = with_remedy(caught.value, facts.model(), facts.job(), profile, ANY)
    assert same is caught.value
    narrow = replace(ANY, pin={"tp": ("3",)})
    with pytest.raises(UserError) as caught:
        make_plan(facts.model(), facts.job(), facts.profile(), narrow)
    found = with_remedy(caught.value, facts.model(), facts.job(), facts.profile(), narrow)
    assert found.hint.startswith("without `--pin tp=3` it fits")


def test_pins_that_a_software_or_a_profile_lacks_say_so():
    model, cluster = resolve_model("llama3-8b"), resolve_cluster("h100-1x8")
    facts_ = analytic_profile(model, JOB, cluster, "megatron-2021")
    for axis, value, has in (("zero", "3", "zero 0"), ("cp", "2", "cp 1")):
        with pytest.raises(UserError) as caught:
            make_plan(model, JOB, facts_, replace(ANY, pin={axis: (value,)}))
        assert caught.value.details == (f"{axis} {value}: `megatron-2021` has {has} alone",)
    for axis, value, has in (("zero", "1", "0"), ("schedule", "zbv", "1f1b, gpipe")):
        pinned = replace(ANY, pin={axis: (value,)})
        with pytest.raises(UserError) as caught:
            make_plan(facts.model(), facts.job(), facts.profile(), pinned)
        said = f"{axis} {value}: a measured profile has {axis} {has} alone"
        assert caught.value.details == (said,)


def test_other_errors_stay_as_they_are():
    error = UserError("broken")
    profile = facts.profile()
    assert with_remedy(error, facts.model(), facts.job(), profile, ANY) is error


@pytest.mark.parametrize("analytic", [False, True])
def test_the_least_memory_of_many_layouts_is_that_of_each(analytic):
    cluster = resolve_cluster("h100-1x8")
    profile = analytic_profile(facts.model(), facts.job(), cluster) if analytic else facts.profile()
    costs = cost_model(facts.model(), facts.job(), profile)
    many = layouts(costs)
    each = [costs.least_memory(config).total_bytes for config in many.configs()]
    assert len(each) > 10
    np.testing.assert_allclose(costs.least_peaks(many), each, atol=8)
