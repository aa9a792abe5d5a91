"""Our file of routing: what is written is read as it was; anything else is one clear error."""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.catalog import resolve_model
from profiler.errors import UserError
from profiler.routing.arrays import npz_bytes, read_arrays, smallest
from profiler.routing.checks import check_model, counts_of, trace_of
from profiler.routing.readers import Wanted, read_routing, routing_of_bytes
from profiler.routing.store import routing_bytes
from profiler.routing.trace import RoutingCounts, RoutingTrace
from tests.fuzz import fuzz
from tests.unit.made_routing import drawn_ids, drawn_trace


def refused(data: bytes, **wanted: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        routing_of_bytes(data, "t.npz", Wanted(**wanted))
    assert caught.value.place is not None
    assert caught.value.place.startswith("t.npz")
    return caught.value


def read(data: bytes, **wanted: Any) -> RoutingTrace | RoutingCounts:
    return routing_of_bytes(data, "t.npz", Wanted(**wanted))


def changed(**arrays: Any) -> bytes:
    """Our file with other arrays in it; `...` takes one out."""
    trace = dataclasses.replace(drawn_trace(9, 2, 4, 2), step=np.arange(9))
    held = read_arrays(routing_bytes(trace), "t") | arrays
    return npz_bytes({name: value for name, value in held.items() if value is not ...})


@pytest.mark.parametrize("experts", [4, 200, 256, 300, 5000])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("steps", [False, True])
def test_a_trace_is_read_as_it_was_written(experts: int, dropped: bool, steps: bool) -> None:
    ids = drawn_ids(50, 3, experts, 2)
    if dropped:
        ids[::7, 1, 0] = -1
    step = np.array([3] * 20 + [10**12] * 30) if steps else None
    trace = RoutingTrace(ids=ids, num_experts=experts + 1, model="m", step=step)
    back = read(routing_bytes(trace))
    assert isinstance(back, RoutingTrace)
    assert (back.num_experts, back.model) == (experts + 1, "m")
    assert np.array_equal(back.ids, ids)
    assert back.ids.dtype == np.int16
    assert (back.step is None) == (step is None)
    assert step is None or (back.step is not None and np.array_equal(back.step, step))
    assert routing_bytes(back) == routing_bytes(trace)


def test_counts_are_read_as_they_were_written(tmp_path: Path) -> None:
    counts = RoutingCounts(windows=np.arange(1, 25).reshape(2, 3, 4) * 1000, model="m")
    (tmp_path / "c.npz").write_bytes(routing_bytes(counts))
    back = read_routing(tmp_path / "c.npz")
    assert isinstance(back, RoutingCounts)
    assert np.array_equal(back.windows, counts.windows)
    assert back.model == "m"


def test_the_file_is_small_and_its_bytes_are_the_trace_s_alone() -> None:
    trace = drawn_trace(20_000, 6, 16, 2)
    data = routing_bytes(trace)
    assert len(data) < 20_000 * 12 * 0.65  # 4 bits each, and what deflate needs beside them
    assert data == routing_bytes(dataclasses.replace(trace))


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"ids": np.full((9, 2, 2), 7)}, "expert 7 of token 0 in layer 0 is out of range"),
    ({"ids": np.full((9, 2, 1), -2)}, "no token has an expert: all choices are dropped"),
    ({"ids": np.zeros((9, 2, 2), np.uint8)}, "token 0 chooses expert 0 twice in layer 0"),
    ({"ids": np.zeros((0, 2, 2), np.uint8)}, "there are no tokens"),
    ({"ids": np.zeros((9, 2), np.uint8)}, "expert ids have the shape [9, 2], not [tokens, lay"),
    ({"ids": np.full((9, 2, 1), np.nan)}, "expert ids at [0, 0, 0] are no number"),
    ({"ids": np.full((9, 2, 1), 0.5)}, "expert ids are no whole numbers"),
    ({"ids": np.full((9, 2, 1), "a")}, "expert ids are no numbers"),
    ({"ids": ...}, "array `ids` is missing"),
    ({"model": ...}, "array `model` is missing"),
    ({"model": np.zeros(3)}, "`model` is no text"),
    ({"num_experts": np.array(0)}, "`num_experts` is no number above 0"),
    ({"num_experts": np.array(2**20)}, "there are 1,048,576 experts, more than 32,767"),
    ({"step": np.zeros(8, np.int64)}, "there are 8 steps for 9 tokens"),
    ({"step": np.array([-1] * 9)}, "steps fall: tokens are not in the order of time"),
    ({"step": np.full(9, "a")}, "`step` holds no whole numbers"),
    ({"kind": np.array("plan")}, "this is a `plan` file, not a `routing` file"),
    ({"format_version": np.array("2.0")}, "routing format 2.0 is not one this version reads"),
    ({"windows": np.zeros((1, 2, 3), np.int64)}, "nothing was routed: all counts are 0"),
    ({"windows": np.ones((1, 2, 3), np.int64)}, "there are counts of 3 experts, not of 4"),
]


@pytest.mark.parametrize(("arrays", "message"), ERRORS)
def test_what_is_not_whole_is_refused(arrays: dict[str, Any], message: str) -> None:
    assert refused(changed(**arrays)).message.startswith(message)


def test_counts_that_are_none() -> None:
    for values, message in (
        ([[1, -2]], "the count of expert 1 of layer 0 is negative: -2"),
        ([[1, np.nan]], "counts at [0, 1] are no number"),
        ([[1, np.inf]], "counts at [0, 1] are no number"),
        ([[1e300, 1]], "counts are out of range"),
        ([1, 2], "counts have the shape [2], not"),
    ):
        with pytest.raises(UserError) as caught:
            counts_of(np.array(values), "f")
        assert caught.value.message.startswith(message)
    assert counts_of(np.array([[0.25, 0.75]]), "f").windows.tolist() == [[[333333, 1000000]]]


def test_the_expert_count_of_a_model_and_of_the_file_must_agree() -> None:
    assert refused(changed(), num_experts=5).message == "the routing is of 4 experts, not of 5"
    assert refused(changed(), keys=("ids",)).message == "our own file has no keys to choose"


def test_a_trace_of_another_model_is_refused() -> None:
    model = resolve_model("mixtral-8x7b")
    check_model(drawn_trace(4, 32, 8, 2), model, "t")
    check_model(RoutingCounts(windows=np.ones((1, 32, 8), np.int64)), model, "t")
    for trace, message in (
        (drawn_trace(4, 31, 8, 2), "the routing is of 31 MoE layers, mixtral-8x7b has 32"),
        (drawn_trace(4, 32, 9, 2), "the routing is of 9 experts, mixtral-8x7b has 8"),
        (drawn_trace(4, 32, 8, 3), "the routing is of 3 choices per token, mixtral-8x7b has 2"),
    ):
        with pytest.raises(UserError) as caught:
            check_model(trace, model, "t")
        assert (caught.value.message, caught.value.kind) == (message, "stale")
    with pytest.raises(UserError) as caught:
        check_model(drawn_trace(4, 32, 7, 2), model, "t")
    assert "experts import t --experts 8" in str(caught.value.hint)
    with pytest.raises(UserError, match="llama3-8b has no experts"):
        check_model(drawn_trace(4, 32, 8, 2), resolve_model("llama3-8b"), "t")


def test_nothing_in_a_file_is_believed_before_it_is_there() -> None:
    """A header that claims terabytes, an object array, a bomb, a password."""
    out = io.BytesIO()
    header = io.BytesIO()
    claims: Any = {"descr": "<i8", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(header, claims)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("ids.npy", header.getvalue())
    assert refused(out.getvalue()).message == "array `ids` is cut off or damaged"
    held = io.BytesIO()
    np.savez(held, ids=np.array([{}], dtype=object))
    assert refused(held.getvalue()).message == "array `ids` holds objects, not numbers"
    whole = changed()
    for length in (len(whole) - 30, len(whole) // 2, 30):
        assert refused(whole[:length]).message == "the file is cut off or damaged"
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    assert refused(b"PK\x03\x04" + empty.getvalue()).message == "it holds no arrays"
    assert refused(b"").message == "the file is empty"


def test_integers_take_the_smallest_type() -> None:
    for values, kind in (
        ([0, 255], "u1"), ([0, 256], "u2"), ([-1, 127], "i1"), ([-1, 128], "i2"),
        ([0, 2**32], "u8"), ([], "u1"), ([-(2**40)], "i8"),
    ):  # fmt: skip
        small = smallest(np.array(values, np.int64))
        assert small.dtype == np.dtype(kind)
        assert small.tolist() == values


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no", "no such file"), (tmp_path, "cannot read the file")):
        with pytest.raises(UserError, match=message):
            read_routing(path)


@fuzz
@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=4)), max_size=6),
    cut=st.integers(0, 2000),
)
def test_any_change_of_a_file_gives_routing_or_a_user_error(
    changes: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray(changed())
    for at, word in changes:
        at %= len(data)
        data[at : at + len(word)] = word
    whole = bytes(data[: max(1, len(data) - cut)] if cut < 200 else data)
    error: UserError | None = None
    try:
        found = routing_of_bytes(whole, "t.npz", Wanted())
    except UserError as e:
        error = e
    if error is None:
        assert found.num_layers > 0
        assert found.num_experts > 0
    else:
        assert error.message
        assert str(error.place).startswith("t.npz")


@fuzz
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 99), low=st.integers(-3, 0), high=st.integers(1, 9),
    kind=st.sampled_from(["i2", "u1", "f4", "f8", "i8"]),
)  # fmt: skip
def test_any_array_gives_a_sound_trace_or_a_user_error(
    shape: tuple[int, int, int], seed: int, low: int, high: int, kind: str
) -> None:
    values = np.random.default_rng(seed).integers(low, high, shape).astype(kind)
    try:
        trace = trace_of(values, "f", num_experts=6)
    except UserError:
        return
    assert trace.num_tokens == shape[0]
    assert -1 <= trace.ids.min() <= trace.ids.max() < 6
    assert trace.counts().sum() == (trace.ids >= 0).sum()
