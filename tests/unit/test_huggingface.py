"""Reading Hugging Face config files: shapes, family defaults, one clear error for each fault."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UserError
from profiler.huggingface import FAMILIES, model_from_config, read_model
from profiler.model import ModelSpec
from tests.fuzz import fuzz

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {"moe_intermediate_size": 24},
    "dots1": {
        "moe_intermediate_size": 24, "n_routed_experts": 16, "n_shared_experts": 2,
        "num_experts_per_tok": 3,
    },
}  # fmt: skip
"""Keys without a default, by family."""
EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"


def read(**changes: Any) -> ModelSpec:
    return model_from_config({**LLAMA, **changes}, "m", "config.json")


def error_of(tree: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        model_from_config(tree, "m", "config.json")
    return caught.value


def write(folder: Path, text: str) -> Path:
    path = folder / "config.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_llama_defaults_are_those_of_transformers() -> None:
    assert read() == ModelSpec(
        name="m",
        family="llama",
        vocab_size=100,
        hidden_size=64,
        num_layers=2,
        num_heads=8,
        num_kv_heads=8,
        head_dim=8,
        ffn_hidden_size=96,
        norm_eps=1e-6,
        rope_theta=10000.0,
    )


def test_a_given_value_wins_over_its_default() -> None:
    model = read(
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_theta=5e5,
    )
    assert (model.num_kv_heads, model.head_dim, model.tie_embeddings) == (2, 16, True)
    assert (model.norm_eps, model.rope_theta) == (1e-5, 5e5)


def test_each_family_has_its_own_traits_and_defaults() -> None:
    heads = {"num_attention_heads": 32, "hidden_size": 320}
    qwen2 = read(model_type="qwen2", **heads)
    assert (qwen2.qkv_bias, qwen2.qk_norm, qwen2.head_dim, qwen2.num_kv_heads) == (
        True, False, 10, 32,
    )  # fmt: skip
    qwen3 = read(model_type="qwen3", **heads)
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim) == (False, True, 128)
    mixtral = read(model_type="mixtral", **heads)
    assert (mixtral.num_experts, mixtral.num_experts_per_token) == (8, 2)
    assert (mixtral.num_kv_heads, mixtral.rope_theta, mixtral.norm_eps) == (8, 1e6, 1e-5)
    assert mixtral.layer_kinds == ("moe",)
    assert (mixtral.norm_topk, mixtral.router_score, mixtral.expert_width) == (True, "softmax", 96)


def test_null_key_value_heads_means_one_per_head() -> None:
    assert read(model_type="mixtral", num_key_value_heads=None).num_kv_heads == 8
    assert read(model_type="qwen2", num_key_value_heads=None).num_kv_heads == 8
    assert read(num_key_value_heads=None, head_dim=None).num_kv_heads == 8


def test_newer_files_keep_rope_theta_apart() -> None:
    parameters = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}
    assert read(rope_parameters=parameters).rope_theta == 5e5


def test_keys_without_a_cost_are_passed_over() -> None:
    more = {"architectures": ["X"], "torch_dtype": "bfloat16", "rope_scaling": None}
    assert read(**more, sliding_window=12, num_local_experts="no") == read()


def test_a_scaled_rotary_embedding_is_a_fact_of_the_model() -> None:
    for kind in ("rope_type", "type"):
        assert read(rope_scaling={"factor": 32.0, kind: "llama3"}).rope_scaling == "llama3"
    parameters = {"rope_theta": 5e5, "rope_type": "yarn", "factor": 8.0}
    assert read(rope_parameters=parameters).rope_scaling == "yarn"
    assert read(rope_parameters={"rope_type": "default"}) == read()
    assert error_of({**LLAMA, "rope_scaling": 3}).message.startswith("`rope_scaling`")


def test_biases_and_activations_are_facts_of_the_model() -> None:
    biased = read(attention_bias=True)
    assert (biased.qkv_bias, biased.out_bias, biased.ffn_bias) == (True, True, False)
    assert read(mlp_bias=True).ffn_bias
    assert read(hidden_act="gelu").activation == "gelu"
    qwen = read(model_type="qwen3", attention_bias=True, num_key_value_heads=8)
    assert (qwen.qkv_bias, qwen.out_bias, qwen.qk_norm) == (True, True, True)


def test_windows_are_facts_of_the_model() -> None:
    some = {"sliding_window": 4096, "use_sliding_window": True, "num_key_value_heads": 8}
    assert read(model_type="qwen2", **some).attention_pattern == ("full",)  # from layer 28 on
    late = read(model_type="qwen2", **some, max_window_layers=1)
    assert (late.attention_pattern, late.window) == (("full", "sliding"), 4096)
    listed = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}
    assert read(model_type="qwen3", num_key_value_heads=8, **listed).window == 8
    off = {"sliding_window": 0, "use_sliding_window": False, "num_key_value_heads": 8}
    none = read(model_type="qwen2", **off)
    assert none == read(model_type="qwen2", num_key_value_heads=8)  # as transformers writes it
    assert read(model_type="mixtral", sliding_window=0).attention_pattern == ("full",)
    every = read(model_type="mixtral", sliding_window=4096)
    assert (every.attention_pattern, every.window) == (("sliding",), 4096)


def test_the_example_is_the_catalogue_model() -> None:
    from profiler.catalog import load_model

    assert read_model(EXAMPLE) == load_model("tiny-llama")
    assert read_model(EXAMPLE / "config.json").num_params == 5_935_360


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "`hidden_size`: input should be greater than 0, not `0`"),
        ({"hidden_size": "64"}, '`hidden_size`: input should be a valid integer, not `"64"`'),
        ({"hidden_size": True}, "`hidden_size`: input should be a valid integer, not `true`"),
        (
            {"num_hidden_layers": 10**6},
            "`num_hidden_layers`: input should be less than or equal to 100000, not `1000000`",
        ),
        (
            {"tie_word_embeddings": 1},
            "`tie_word_embeddings`: input should be a valid boolean, not `1`",
        ),
        ({"rope_theta": -1.0}, "`rope_theta`: input should be greater than 0, not `-1.0`"),
        (
            {"hidden_act": "tanh"},
            "activation `tanh` is not supported: only gelu, gelu_fast, gelu_new, "
            "gelu_pytorch_tanh, relu2, silu, swish are",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
            "there are sliding layers, but `sliding_window` is not given",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention"]},
            "`layer_types` names 1 layers, but there are 2",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "mamba"]},
            "layers of type `mamba` are not supported: only full_attention, sliding_attention, "
            "chunked_attention, linear_attention are",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "linear_attention"]},
            "`qwen3` has no layers of type `linear_attention`",
        ),
        ({"num_attention_heads": 7}, "`hidden_size` 64 does not divide into 7 heads"),
        (
            {"num_key_value_heads": 3},
            "model `m`: 8 heads do not divide into 3 key/value heads",
        ),
        ({"model_type": "qwen2_moe"}, "key `moe_intermediate_size` is missing"),
        (
            {"model_type": "qwen2_moe", "moe_intermediate_size": 8},
            "key `shared_expert_intermediate_size` is missing",
        ),
        ({"model_type": "dots1"}, "key `n_routed_experts` is missing"),
        (
            {"model_type": "dots1", "n_routed_experts": 8},
            "key `num_experts_per_tok` is missing",
        ),
        (
            {"model_type": "dots1", "scoring_func": "softmax"},
            "experts scored by `softmax` are not supported: only `sigmoid` is",
        ),
        (
            {"model_type": "dots1", "topk_method": "group_limited_greedy"},
            "experts chosen by `group_limited_greedy` are not supported: only `noaux_tc` is",
        ),
        (
            {"model_type": "dots1", **EXPERTS["dots1"], "num_key_value_heads": 8, "n_group": 3},
            "model `m`: 16 experts in 3 groups do not make equal groups of two or more",
        ),
        (
            {
                "model_type": "dots1",
                **EXPERTS["dots1"],
                "num_key_value_heads": 8,
                "first_k_dense_replace": 3,
            },
            "model `m`: 3 dense layers first, but only 2 layers",
        ),
        (
            {"model_type": "mixtral", "num_experts_per_tok": 9},
            "model `m`: 9 experts per token, but only 8 experts",
        ),
    ],
)
def test_each_fault_has_one_message(changes: dict[str, Any], message: str) -> None:
    error = error_of({**LLAMA, **changes})
    assert error.message == message
    assert error.place == "config.json"


def test_a_mixtral_window_as_long_as_the_context_is_no_window() -> None:
    window = {"sliding_window": 4096, "max_position_embeddings": 4096}
    assert read(model_type="mixtral", **window) == read(model_type="mixtral")


@pytest.mark.parametrize("key", sorted(LLAMA))
def test_a_missing_size_is_not_invented(key: str) -> None:
    error = error_of({k: v for k, v in LLAMA.items() if k != key})
    assert error.message == f"key `{key}` is missing"


def test_an_unsupported_model_type_is_named_with_the_supported_ones() -> None:
    error = error_of({**LLAMA, "model_type": "t5"})
    assert error.message == "model type `t5` is not supported"
    supported = f"supported: {', '.join(FAMILIES)}, llama4, gemma3"
    assert error.hint == supported
    error = error_of({**LLAMA, "model_type": "qwen3_mo"})
    assert error.hint == f"{supported}; did you mean `qwen3_moe`?"
    assert error_of({**LLAMA, "model_type": ["llama"]}).message == (
        "model type `['llama']` is not supported"
    )


@pytest.mark.parametrize("tree", [None, [], "llama", 3])
def test_a_config_that_is_no_object(tree: Any) -> None:
    assert error_of(tree).message == "a model config is a JSON object"


def test_errors_name_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({**LLAMA, "vocab_size": 1.5}, indent=2))
    with pytest.raises(UserError) as caught:
        read_model(path)
    assert str(caught.value) == (
        f"{path}:3: `vocab_size`: input should be a valid integer, not `1.5`"
    )
    path = write(tmp_path, json.dumps({**LLAMA, "hidden_act": "tanh"}, indent=2))
    with pytest.raises(UserError) as caught:
        read_model(tmp_path)
    assert caught.value.place == f"{path}:8"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "the file is empty"),
        ('{"model_type": "llama",\n', 2, "not JSON: expecting property name enclosed in double"),
        ('{"model_type": "llama"} x', 1, "not JSON: extra data"),
    ],
)
def test_a_broken_file(tmp_path: Path, text: str, line: int | None, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_model(path)
    assert caught.value.place == (f"{path}:{line}" if line else str(path))
    assert caught.value.message.startswith(message)


def test_a_folder_gives_its_name_and_must_hold_a_config(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_model(tmp_path)
    assert str(caught.value) == f"{tmp_path}: the folder holds no `config.json`"
    folder = tmp_path / "my-model"
    folder.mkdir()
    write(folder, json.dumps(LLAMA))
    assert read_model(folder).name == "my-model"
    other = folder / "small.json"
    other.write_text(json.dumps(LLAMA), encoding="utf-8")
    assert read_model(other).name == "small"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_model(tmp_path / "no.json")
    assert caught.value.message == f"no such file: `{tmp_path / 'no.json'}`"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([0, 1, 8, 64, 2**31, 10**400, "llama", "qwen3", "silu"])
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3)
)
KEYS = st.sampled_from(
    [
        *LLAMA, "num_key_value_heads", "head_dim", "rope_theta", "rope_parameters", "layer_types",
        "sliding_window", "num_local_experts", "num_experts_per_tok", "rms_norm_eps", "hidden_act",
        "tie_word_embeddings", "attention_bias", "max_position_embeddings", "other",
        "num_experts", "n_routed_experts", "moe_intermediate_size", "n_shared_experts", "n_group",
        "shared_expert_intermediate_size", "decoder_sparse_step", "mlp_only_layers", "topk_group",
        "first_k_dense_replace", "norm_topk_prob", "routed_scaling_factor", "scoring_func",
    ]
)  # fmt: skip


@fuzz
@given(
    family=st.sampled_from(FAMILIES),
    changes=st.dictionaries(KEYS, VALUES, max_size=4),
)
def test_any_content_gives_a_model_or_a_user_error(family: str, changes: dict[str, Any]) -> None:
    error: UserError | None = None
    try:
        tree = {**LLAMA, "model_type": family, **EXPERTS.get(family, {}), **changes}
        model = model_from_config(tree, "m", "f.json")
    except UserError as e:
        error = e
    if error is None:
        assert model.num_params > 0
    else:
        assert (bool(error.message), error.place) == (True, "f.json")


@fuzz
@given(tree=VALUES)
def test_any_json_value_gives_a_model_or_a_user_error(tree: Any) -> None:
    assert error_of(tree).message
