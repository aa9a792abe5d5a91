"""Parameters and FLOPs: catalogued models against what is published, parts against sums by hand."""

from typing import Any

import pytest

from profiler import catalog
from profiler.catalog.load import MODEL_ALIASES, load_model_file, names
from profiler.codec import replace
from profiler.errors import UserError
from profiler.model import ModelSpec

PLAIN: dict[str, Any] = {
    "name": "m", "family": "llama", "vocab_size": 100, "hidden_size": 16, "num_layers": 4,
    "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "ffn_hidden_size": 20,
}  # fmt: skip
MLA = {
    "num_kv_heads": 4, "q_lora_rank": 7, "kv_lora_rank": 5, "rope_head_dim": 2,
    "value_head_dim": 3,
}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 3,
    "linear_value_head_dim": 5, "linear_conv_kernel": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_token": 2, "expert_ffn_hidden_size": 9}
PLAIN_ATTENTION = 16 * (24 + 12 + 12 + 24)
DENSE_LAYER = PLAIN_ATTENTION + 3 * 16 * 20 + 2 * 16
MOE_LAYER = PLAIN_ATTENTION + 8 * 3 * 16 * 9 + 16 * 8 + 2 * 16


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec(**PLAIN | changes)


@pytest.mark.parametrize("name", names("model"))
def test_a_model_has_its_published_number_of_parameters(name: str) -> None:
    published = load_model_file(name).num_params
    difference = catalog.load_model(name).num_params - published.value
    assert abs(difference) <= published.rounding / 2
    if published.rounding:
        assert published.source.startswith("rounded: ")
        assert published.rounding <= published.value / 3


@pytest.mark.parametrize("name", names("model"))
def test_blocks_add_up_to_the_model(name: str) -> None:
    model = catalog.load_model(name)
    total = sum(model.block_params(kind) for kind in model.blocks)
    assert 0 <= total - model.num_params < len(model.blocks)  # a mean is rounded up
    layers = sum(model.layer_params(i) for i in range(model.num_layers))
    ends = model.block_params("embed") + model.block_params("head")
    assert layers + ends + model.num_mtp_layers * model.block_params("mtp") == model.num_params
    assert (len(model.attentions), model.attentions[-1]) == (
        model.num_layers, model.attention_of(model.num_layers),
    )  # fmt: skip


ACTIVE = {
    "mixtral-8x7b": 12.9e9, "deepseek-v2": 21e9, "deepseek-v2-lite": 2.4e9, "kimi-k2": 32e9,
    "gpt-oss-120b": 5.13e9, "gpt-oss-20b": 3.61e9, "llama4-scout": 17e9, "llama4-maverick": 17e9,
    "qwen3-235b-a22b": 22e9, "qwen3-30b-a3b": 3.3e9, "qwen3-next-80b-a3b": 3.9e9,
}  # fmt: skip
"""Parameters that a token passes, as the models' reports round them; the embedding is one of two
vocabulary matrices that some count (DeepSeek, Qwen) and some do not (gpt-oss)."""


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_are_those_of_the_report(name: str) -> None:
    model = catalog.load_model(name)
    without = model.flops_per_token(1) / 6 - model.vocab_size * model.hidden_size
    embeddings = 2 * model.vocab_size * model.hidden_size
    assert without * 0.97 <= ACTIVE[name] <= (without + embeddings) * 1.03


def test_names_of_the_same_shape_point_to_one_file() -> None:
    assert catalog.load_model("llama3.1-70b").num_params == 70_553_706_496
    assert catalog.load_model("gpt3-125m").num_params == 125_262_336
    assert set(MODEL_ALIASES.values()) <= set(names("model"))


def test_mla_by_hand() -> None:
    attention = 16 * 7 + 7 + 7 * 4 * (6 + 2)  # q: down, norm, up
    attention += 16 * (5 + 2) + 5 + 5 * 4 * (6 + 3)  # kv: down with k's rotary part, norm, up
    attention += 4 * 3 * 16
    model = spec(**MLA)
    assert (model.attention_params, model.is_mla) == (attention, True)
    assert (model.qk_head_dim, model.v_head_dim) == (8, 3)
    straight = attention - 16 * 7 - 7 - 7 * 4 * 8 + 16 * 4 * 8
    assert spec(**{**MLA, "q_lora_rank": 0}).attention_params == straight
    matrices = 4 * (attention - 12 + 3 * 16 * 20) + 100 * 16  # without the two norms
    assert model.flops_per_token(10) == 6 * matrices + 4 * 3 * 4 * (8 + 3) * 10


def test_multi_token_prediction_by_hand() -> None:
    model = spec(num_mtp_layers=2, first_dense_layers=2, **EXPERTS)
    assert model.blocks == ("embed", "dense", "dense", "moe", "moe", "mtp", "mtp", "head")
    assert model.layer_kinds == ("dense", "moe", "mtp")
    assert model.block_params("mtp") == 2 * 16 * 16 + 3 * 16 + MOE_LAYER
    without = replace(model, num_mtp_layers=0)
    assert model.num_params - without.num_params == 2 * model.block_params("mtp")
    added = (model.flops_per_token(8) - without.flops_per_token(8)) / 2
    active = PLAIN_ATTENTION + 2 * 3 * 16 * 9 + 16 * 8 + 2 * 16 * 16 + 100 * 16
    assert added == 6 * active + 6 * 8 * 24
    assert (model.num_moe_layers, model.num_dense_layers) == (2, 2)


@pytest.mark.parametrize(
    ("first", "every", "layers"),
    [
        (0, 1, "mmmm"),
        (1, 1, "dmmm"),
        (0, 2, "dmdm"),
        (1, 2, "ddmd"),
        (0, 4, "dddm"),
        (4, 1, "dddd"),
    ],
)
def test_moe_layers_are_placed(first: int, every: int, layers: str) -> None:
    model = spec(first_dense_layers=first, moe_every=every, **EXPERTS)
    assert "".join(kind[0] for kind in model.blocks[1:-1]) == layers
    assert model.num_moe_layers == layers.count("m")
    expected = layers.count("d") * DENSE_LAYER + layers.count("m") * MOE_LAYER + 2 * 1600 + 16
    assert model.num_params == expected


def test_linear_attention_by_hand() -> None:
    keys, values = 2 * 3, 4 * 5
    matrices = 16 * (2 * keys + 2 * values + 2 * 4) + 4 * (2 * keys + values) + values * 16
    linear = matrices + 4 + 4 + 5  # decay and step bias a head, norm of a head
    model = spec(attention_pattern=("linear", "linear", "linear", "full"), **LINEAR)
    assert model.linear_attention_params == linear
    rest = 3 * 16 * 20 + 2 * 16
    assert [model.layer_params(i) for i in range(4)] == [linear + rest] * 3 + [DENSE_LAYER]
    assert model.block_params("dense") == -(-(3 * (linear + rest) + DENSE_LAYER) // 4)
    full, none = model.mean_context("full", 64), model.mean_context("linear", 64)
    assert (full, none) == (32.0, 0.0)
    more = model.flops_per_token(64) - model.flops_per_token(32)
    assert more == 6 * 24 * 32  # the one full layer
    state = 18 * 4 * 3 * 5
    matrix_flops = 6 * (3 * matrices + PLAIN_ATTENTION + 4 * 960 + 1600)
    assert model.flops_per_token(32) == matrix_flops + 3 * state + 6 * 24 * 32


def test_windows_bound_what_a_token_sees() -> None:
    model = spec(attention_pattern=("sliding", "full"), window=4)
    assert [model.attention_of(i) for i in range(4)] == ["sliding", "full", "sliding", "full"]
    seen = sum(min(i + 1, 100) for i in range(1000)) / 1000
    wide = replace(model, window=100)
    assert wide.mean_context("sliding", 1000) == pytest.approx(seen, rel=1e-3)
    assert model.mean_context("sliding", 3) == 1.5
    chunks = replace(model, chunked_window=True)
    assert chunks.mean_context("sliding", 10) == (2 * 8 + 2) / 10
    assert spec().flops_per_token(10) - model.flops_per_token(10) == pytest.approx(
        2 * 12 * 24 * (5 - model.mean_context("sliding", 10))
    )


def test_biases_norms_and_positions_by_hand() -> None:
    model = spec(
        num_kv_heads=4, gated_ffn=False, activation="gelu", tie_embeddings=True, qkv_bias=True,
        out_bias=True, ffn_bias=True, head_bias=True, layer_norm=True, embed_norm=True,
        position="learned", max_positions=50,
    )  # fmt: skip
    attention = 4 * 16 * 24 + 3 * 24 + 16
    layer = attention + 2 * 16 * 20 + 20 + 16 + 2 * 32
    assert model.block_params("dense") == layer
    assert model.block_params("embed") == 150 * 16 + 32
    assert model.block_params("head") == 32 + 100
    assert replace(model, norm_bias=False).block_params("dense") == layer - 32
    assert replace(model, norms_per_layer=1).block_params("dense") == layer - 32
    sinks = spec(attention_sinks=True, attention_gate=True, qk_norm=True)
    assert sinks.attention_params == PLAIN_ATTENTION + 16 * 24 + 4 + 2 * 6
    biased = spec(expert_bias=True, router_linear_bias=True, **EXPERTS)
    assert biased.block_params("moe") == MOE_LAYER + 8 * (9 + 9 + 16) + 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_lora_rank": 3}, "`q_lora_rank` and `rope_head_dim` need `kv_lora_rank`"),
        ({"kv_lora_rank": 3}, "`kv_lora_rank` needs `rope_head_dim`"),
        ({**MLA, "num_kv_heads": 2}, "with `kv_lora_rank`, 4 heads have as many key/value heads"),
        (
            {**MLA, "qk_norm": True},
            "`kv_lora_rank` goes with none of `qkv_bias`, `qk_norm` and `attention_gate`",
        ),
        ({"window": 4}, "`sliding` in `attention_pattern` and `window` go together"),
        (
            {"attention_pattern": ("sliding",)},
            "`sliding` in `attention_pattern` and `window` go together",
        ),
        ({"chunked_window": True}, "`chunked_window` needs `window`"),
        (
            {"attention_pattern": ("full",) * 5},
            "a pattern of 5 attentions, but only 4 layers",
        ),
        (
            {"attention_pattern": ("linear",)},
            "`linear` in `attention_pattern` needs all of the fields `linear_*`",
        ),
        (
            {"attention_pattern": ("linear",), **LINEAR, "linear_num_key_heads": 3},
            "4 value heads of linear attention do not divide into 3 key heads",
        ),
        (LINEAR, "fields `linear_*` need `linear` in `attention_pattern`"),
        ({"position": "learned"}, "`max_positions` and a learned `position` go together"),
        (
            {"position": "alibi", "rope_scaling": "yarn"},
            "`rope_scaling` needs `position` `rope`",
        ),
        (
            {**EXPERTS, "moe_every": 4, "first_dense_layers": 1},
            "a MoE layer each 4 layers, but too few layers",
        ),
    ],
)
def test_fields_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        spec(**changes)
    assert caught.value.message == f"model `m`: {message}"
