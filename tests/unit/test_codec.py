"""Strict reading: every fault names its place, no text whatever raises anything but `UserError`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.plan import FORMAT_VERSION, Plan, SearchOptions
from planner.search import make_plan
from profiler.cluster import ClusterSpec
from profiler.codec import canonical, decode, decode_artifact, encode, parse, to_plain
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.profile import Profile
from tests.fuzz import fuzz
from tests.unit import facts

JOB = '{"global_batch": 8,\n "seq_len": 32,\n "precision": "fp32"}'


def failure(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    return caught.value


@pytest.fixture(scope="module")
def plan():
    options = SearchOptions(pin={}, forbid={}, top=1)
    return make_plan(facts.model(), facts.job(), facts.profile(), options)


@pytest.fixture(scope="module")
def short():
    """A plan whose file is read in an instant."""
    options = SearchOptions(pin={}, forbid={}, top=0)
    return make_plan(facts.model(), facts.job(), facts.profile(1, 1), options)


def read_plan(text, name="plan.json"):
    return decode_artifact(Plan, text, name, kind="plan", version=FORMAT_VERSION)


def test_round_trip_is_the_same_bytes(plan):
    text = encode(plan)
    again, warning = read_plan(text)
    assert again == plan
    assert encode(again) == text
    assert warning is None
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    ("text", "name", "message", "hint"),
    [
        (JOB.replace("seq_len", "seq_lem"), "j.json", "j.json:2: unknown key `seq_lem`", "did you mean `seq_len`?"),
        (JOB.replace("32,", "-1,"), "j.json", "j.json:2: `seq_len`: input should be greater than 0, not `-1`", None),
        (JOB.replace("32,", "true,"), "j.json", "j.json:2: `seq_len`: input should be a valid integer, not `true`", None),
        (JOB.replace("32,", '"32",'), "j.json", 'j.json:2: `seq_len`: input should be a valid integer, not `"32"`', None),
        (JOB.replace(',\n "seq_len": 32', ""), "j.json", "j.json:1: key `seq_len` is missing", None),
        (JOB[:-1], "j.json", "j.json:3: not JSON: expecting ',' delimiter", "the file is cut off"),
        (" \n", "j.json", "j.json: the file is empty", None),
        ('{"seq_len":', "j.json", "j.json:1: not JSON: expecting value", "the file is cut off"),
        ('{"seq_len": NaN}', "j.json", "j.json: `NaN` is not a number that JSON knows", None),
        ('{"a": 1, "a": 2}', "j.json", "j.json: key `a` is given twice", None),
        ("[" * 100_000, "j.json", "j.json: nested too deeply", None),
        ("1" * 5000, "j.json", "j.json: a number is too long to read", None),
        ("global_batch: 8\nseq_len: 3.5\n", "j.yaml", "j.yaml:2: `seq_len`: input should be a valid integer, not `3.5`", None),
        ("global_batch: 8\nglobal_batch: 9\n", "j.yaml", "j.yaml:2: key `global_batch` is given twice", None),
        ("a: &x 1\nb: *x\n", "j.yaml", "j.yaml:1: anchors and aliases are not read", None),
        ("a: !!python/object:os.system x\n", "j.yaml", "j.yaml:1: tag `tag:yaml.org,2002:python/object:os.system` is not read", None),
        ("a: [1,\n", "j.yaml", "j.yaml:2: not YAML: expected the node content, but found '<stream end>'", None),
        ("[1, 2]: 3\n", "j.yaml", "j.yaml:1: a key is not a plain word", None),
    ],
)  # fmt: skip
def test_faults_name_their_place(text, name, message, hint):
    error = failure(decode, JobSpec, text, name)
    assert str(error) == message
    assert error.hint == hint


def test_numbers_in_yaml():
    tree, lines = parse("a: 450e9\nb: 0x10\nc: 1_000\nd: '5'\ne: ~\nf: 1.5\n", "x.yaml")
    assert tree == {"a": 450e9, "b": "0x10", "c": 1000, "d": "5", "e": None, "f": 1.5}
    assert lines[("c",)] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "profile"}, "this is a `profile` file, not a `plan` file"),
        ({"kind": 3}, "not a Meshwright plan file"),
        (
            {"format_version": "2.0"},
            rf"plan format 2.0 is not one this version reads \({FORMAT_VERSION}\)",
        ),
        ({"format_version": "x"}, "`format_version` is not a version: `x`"),
    ],
)
def test_foreign_and_newer_artifacts_are_refused(plan, change, message):
    assert failure(read_plan, canonical(to_plain(plan) | change)).place == "plan.json"
    with pytest.raises(UserError, match=message):
        read_plan(canonical(to_plain(plan) | change))


def test_newer_minor_is_read_with_a_warning(plan):
    tree = to_plain(plan) | {"format_version": "1.7", "novelty": 1}
    tree["job"]["novelty"] = [1, 2]
    again, warning = read_plan(canonical(tree))
    assert again.job == plan.job
    newer = f"plan.json has format 1.7, newer than {FORMAT_VERSION}"
    assert warning == f"{newer}: what is new is left out"


def test_truncated_artifact(plan):
    text = encode(plan)
    for cut in range(0, len(text) - 2, 997):
        assert failure(read_plan, text[:cut]).kind == "invalid"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def never_a_traceback(function, *args):
    try:
        function(*args)
    except UserError as e:
        told = e
    else:
        return
    assert told.message
    assert "\n" not in told.message


def changed(tree, path, value):
    """The tree with one value replaced: each step of `path` picks a child."""
    node, parent, key = tree, tree, None
    for step in path:
        if isinstance(node, dict) and node:
            key = sorted(node)[step % len(node)]
        elif isinstance(node, list) and node:
            key = step % len(node)
        else:
            break
        parent, node = node, node[key]
    parent[key] = value
    return tree


paths = st.lists(st.integers(0, 30), min_size=1, max_size=6)


@fuzz
@given(st.text(max_size=100))
def test_any_text(text):
    for name in ("x.json", "x.yaml"):
        never_a_traceback(decode, ClusterSpec, text, name)
    never_a_traceback(read_plan, text)


@fuzz
@given(trees)
def test_any_tree(tree):
    never_a_traceback(decode, JobSpec, json.dumps(tree), "x.json")
    never_a_traceback(read_plan, json.dumps(tree))


@fuzz
@given(paths, trees)
def test_any_change_of_a_plan(short, path, value):
    never_a_traceback(read_plan, json.dumps(changed(to_plain(short), path, value)))


@fuzz
@given(paths, trees | st.sampled_from([0, 1, 3, 1e-30, 1e30, 10**6, [], {}]))
def test_any_change_of_a_profile_is_planned_with_or_refused(short, path, value):
    text = json.dumps(changed(to_plain(short.profile), path, value))

    def plan_with_it():
        profile = decode(Profile, text, "profile.json")
        make_plan(facts.model(), facts.job(), profile, SearchOptions(pin={}, forbid={}))

    never_a_traceback(plan_with_it)
