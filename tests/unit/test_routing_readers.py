"""Routing in the forms of others, each as its maker documents it; and any change of a text."""

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UserError
from profiler.routing.readers import (
    Wanted,
    is_torch_file,
    routing_of_bytes,
    routing_of_recording,
)
from profiler.routing.trace import RoutingCounts, RoutingTrace
from tests.fuzz import changed, fuzz
from tests.unit.made_routing import drawn_ids

TOKEN, OTHER = [[0, 1], [2, 3], [1, 0]], [[3, 2], [1, 0], [2, 1]]
VLLM = {
    "prompt_routed_experts": [TOKEN, [[-1, -1]] * 3],
    "choices": [{"index": 0, "routed_experts": [OTHER]}, {"index": 1, "routed_experts": None}],
}
MEGATRON = [
    {"step": s, "stage": "pre_dispatch", "block": "decoder", "layer": layer, "rank": 0,
     "num_tokens": 1, "topk": 2, "top_indices": [token[number]]}
    for s, token in ((0, TOKEN), (4, OTHER)) for number, layer in enumerate((2, 3, 5))
]  # fmt: skip
EPLB = [[90, 132, 40, 61], [20, 107, 104, 64]]


def read(content: Any, **wanted: Any) -> RoutingTrace | RoutingCounts:
    """Of bytes, a text, lines of values, or one value."""
    if isinstance(content, tuple):
        content = "\n".join(json.dumps(value) for value in content)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    data = content.encode() if isinstance(content, str) else content
    return routing_of_bytes(data, "f", Wanted(**wanted))


def refused(content: Any, **wanted: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(content, **wanted)
    return f"{caught.value.place}: {caught.value.message}"


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        (TOKEN, OTHER),
        ([TOKEN, OTHER],),
        ([TOKEN], [OTHER]),
        ({"routed_experts": [TOKEN]}, {"experts": OTHER}),
        ({"ids": TOKEN, "text": "a"}, {"expert_ids": [OTHER], "id": 3}),
        [TOKEN, OTHER],
        VLLM,
        (VLLM,),
        tuple(MEGATRON),
        tuple(reversed(MEGATRON)),
        npz(a=np.array([TOKEN], np.uint8), b=np.array([OTHER], np.uint8)),
        npz(trace=np.asfortranarray([TOKEN, OTHER])),
        npy(np.array([TOKEN, OTHER], np.float32)),
        "\ufeff" + json.dumps(TOKEN) + "\r\n\n" + json.dumps(OTHER) + "\n",
    ],
)
def test_the_same_two_tokens_in_many_forms(content: Any) -> None:
    trace = read(content)
    assert isinstance(trace, RoutingTrace)
    assert trace.ids.tolist() == [TOKEN, OTHER]
    assert trace.num_experts == 4
    other = read(content, num_experts=9)
    assert other.num_experts == 9


def test_steps_of_megatron_are_kept_and_its_mtp_layers_left_out() -> None:
    extra = MEGATRON[0] | {"mtp_idx": 0, "layer": 0}
    trace = read((*MEGATRON, extra))
    assert isinstance(trace, RoutingTrace)
    assert trace.step is not None
    assert trace.step.tolist() == [0, 4]


@pytest.mark.parametrize(
    "content",
    [
        EPLB,
        {"weight": EPLB, "num_replicas": 16},
        {"logical_count": [EPLB]},
        npz(weight=np.array(EPLB)),
        npz(logical_count=np.array([EPLB, np.zeros((2, 4))])),
        npy(np.array(EPLB, np.float64)),
    ],
)
def test_the_weights_of_eplb(content: Any) -> None:
    counts = read(content)
    assert isinstance(counts, RoutingCounts)
    assert counts.counts().tolist() == EPLB
    assert len(counts.windows) == 1


def test_arrays_of_an_npz_are_joined_unless_some_are_chosen() -> None:
    a, b, raw = (drawn_ids(n, 3, 8, 2, seed=n) for n in (5, 4, 3))
    data = npz(a=a, b=b, routing_raw=raw)
    assert read(data).counts().sum() == 12 * 6
    trace = read(data, keys=("b", "a"))
    assert isinstance(trace, RoutingTrace)
    assert np.array_equal(trace.ids, np.concatenate([b, a]))
    assert refused(data, keys=("c",)) == "f: there is no array `c`"
    assert refused(npz(a=a, b=b[:, :2])) == "f: array `b` has the shape [4, 2, 2], `a` [5, 3, 2]"
    assert refused(npz(a=a, b=np.array("x"))) == "f: array `b` is not of numbers"
    assert refused(npz(a=np.ones((2, 4)), b=np.ones((2, 4)))) == (
        "f: there are several arrays of counts"
    )


TEXTS: list[tuple[Any, str]] = [
    ("hello", "f: this is no record of routing"),
    (b"\xff\xfe", "f: this is no record of routing"),
    ("{", "f:1: not JSON: expecting property name enclosed in double quotes"),
    ((TOKEN, [[0, 1], [2]]), "f:2: the lists are ragged: not all have the same length"),
    (
        (TOKEN, [[0, 1], [2, 3]]),
        "f: tokens have 2 layers of 2 experts here, 3 of 2 there",
    ),
    ((TOKEN, OTHER, "x"), "f:3: expert ids are encoded as text, without their shape"),
    ((TOKEN, {"a": 1}), "f:2: there are no expert ids"),
    ((TOKEN, [1, 2]), "f:2: neither a token [layers][k] nor a sequence of them"),
    (({"routed_experts": "AAAA"},), "f:1: expert ids are encoded as text, without their shape"),
    (({"routed_experts": None},), "f:1: there are no expert ids"),
    (([[[-1, -1]]],), "f: there are no tokens"),
    ('[[0, 1], [2, NaN]]', "f: counts at [1, 1] are no number"),
    ([[1, 2], [3, -4]], "f: the count of expert 1 of layer 1 is negative: -4"),
    ({"weight": [[[[1]]]]}, "f: counts have the shape [1, 1, 1, 1], not [layers, experts] or"
     " [windows, layers, experts]"),
    ((TOKEN, [[0, 4000000], [2, 3], [1, 0]]), "f: there are 4,000,001 experts, more than 32,767"),
    ((TOKEN, [[0, 10**30], [2, 3], [1, 0]]), "f:2: there is something that is no number"),
    ((*MEGATRON[:5],), "f: step 4 has no layer 5"),
    ((*MEGATRON, MEGATRON[1]), "f:7: layer 3 of step 0 is there twice"),
    ((*MEGATRON, {"step": 1}), "f:7: this is no record with `top_indices` and `layer`"),
    ((MEGATRON[0] | {"layer": "x"},), "f:1: `layer` is no number from 0"),
    ((MEGATRON[0] | {"top_indices": [[1], [2, 3]]},),
     "f:1: `top_indices` is not a list [tokens][k] of ids"),
    ((*MEGATRON, MEGATRON[0] | {"step": 9}, MEGATRON[1] | {"step": 9},
      MEGATRON[2] | {"step": 9, "top_indices": [[1, 2], [2, 1]]}),
     "f: step 9 has 2 tokens in layer 5, 1 in layer 2"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), TEXTS)
def test_what_is_not_whole_is_refused_with_its_line(content: Any, message: str) -> None:
    assert refused(content) == message


def test_ids_beyond_the_model_are_refused() -> None:
    assert refused([TOKEN], num_experts=3) == ("f: expert 3 of token 0 in layer 1 is out of range")
    assert refused(EPLB, num_experts=5) == "f: there are counts of 4 experts, not of 5"


# SGLang's recordings, as `torch.load` gives them


def per_token(**more: Any) -> dict[str, Any]:
    """Two passes of a model whose first layer is dense; 5 physical experts, two are expert 0."""
    logical = np.array([[0, 1, 2, 3, 0]] * 4)

    def one(number: int, token: Any) -> dict[str, Any]:
        ids = np.full((4, 1, 8), -1, np.int32)
        ids[1:, 0, :2] = token
        return {"forward_pass_id": number, "rank": 0, "topk_ids_of_layer": ids,
                "global_physical_count": np.zeros((4, 5), np.int32)}  # fmt: skip

    replica = [[4, 1], [2, 3], [1, 4]]  # physical expert 4 is a replica of expert 0
    return {
        "records": [one(8, OTHER), one(3, replica)], "last_physical_to_logical_map": logical
    } | more  # fmt: skip


def test_sglang_tokens_are_ordered_by_pass_and_replicas_are_one_expert() -> None:
    trace = routing_of_recording(per_token(), "f", None)
    assert isinstance(trace, RoutingTrace)
    assert trace.ids.tolist() == [TOKEN, OTHER]
    assert trace.num_experts == 4
    assert trace.step is not None
    assert trace.step.tolist() == [0, 1]


def test_sglang_counts_lose_dense_layers_and_unused_steps() -> None:
    ring = np.zeros((5, 3, 4), np.int32)
    ring[:2, 1:] = EPLB
    counts = routing_of_recording({"rank": 0, "logical_count": ring}, "f", None)
    assert isinstance(counts, RoutingCounts)
    assert counts.windows.tolist() == [EPLB, EPLB]
    bare = routing_of_recording(np.array(EPLB), "f", None)
    assert isinstance(bare, RoutingCounts)
    assert bare.windows.tolist() == [EPLB]


def test_sglang_passes_sum_replicas() -> None:
    physical = np.array([[5, 1, 2, 3, 7], [0, 0, 0, 0, 0]])
    tree = {
        "records": [{"forward_pass_id": 0, "global_physical_count": physical}],
        "last_physical_to_logical_map": np.array([[0, 1, 2, 3, 0]] * 2),
    }
    counts = routing_of_recording(tree, "f", None)
    assert isinstance(counts, RoutingCounts)
    assert counts.windows.tolist() == [[[12, 1, 2, 3]]]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "this is no recording of expert distribution"),
        ([1], "this is no recording of expert distribution"),
        ({"records": []}, "`last_physical_to_logical_map` is missing, or no tensor"),
        (per_token(records=[]), "there are no records of passes"),
        (per_token(records=[{"forward_pass_id": "x"}]), "`forward_pass_id` is no number"),
        (per_token(records=[{}]), "`global_physical_count` is missing, or no tensor"),
        (
            per_token(last_physical_to_logical_map=np.zeros((4, 2), np.int64)),
            "`topk_ids_of_layer` has experts out of range",
        ),
        (
            per_token(last_physical_to_logical_map=np.full((4, 5), -1)),
            "`last_physical_to_logical_map` has experts out of range",
        ),
        ({"logical_count": np.zeros((2, 3, 4))}, "nothing was routed: all counts are 0"),
        ({"logical_count": np.zeros(3)}, "counts have 1 axes"),
        ({"logical_count": np.full((1, 2), np.nan)}, "counts at [0, 1] are no number"),
    ],
)
def test_recordings_that_are_none(tree: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        routing_of_recording(tree, "f", None)
    assert caught.value.message == message.replace("[0, 1]", "[0, 0]")


def test_files_of_torch_are_known_and_sent_to_where_torch_is() -> None:
    for data in (b"PK\x03\x04" + b"\0" * 26 + b"archive/data.pkl", b"\x80\x02\x8a\x0al\xfc"):
        assert is_torch_file(data)
        assert refused(data) == "f: this is a file of `torch.save`"
    assert not is_torch_file(npz(a=np.zeros(3)))


@fuzz
@given(
    base=st.sampled_from(
        [json.dumps(x) for x in (VLLM, EPLB, [TOKEN], {"weight": EPLB})]
        + ["\n".join(json.dumps(x) for x in rows) for rows in (MEGATRON, [TOKEN, OTHER])]
    ),
    changes=st.lists(
        st.tuples(
            st.integers(0, 2000), st.integers(0, 12),
            st.sampled_from(["[", "]", "{", "}", ",", "-1", "1e999", "NaN", "null", '"', "\n",
                             "[[", "true", "0.5", "99999999999999999999"]) | st.text(max_size=3),
        ), max_size=4,
    ),
)  # fmt: skip
def test_any_change_of_a_text_gives_routing_or_a_user_error(
    base: str, changes: list[tuple[int, int, str]]
) -> None:
    data = changed(base, changes).encode("utf-8", "surrogatepass")
    error: UserError | None = None
    try:
        found = routing_of_bytes(data, "f", Wanted())
    except UserError as e:
        error = e
    if error is None:
        assert found.counts().sum() > 0
    else:
        assert error.message
        assert str(error.place).startswith("f")
