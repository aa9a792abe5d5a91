"""Writing Hugging Face config files: what is written is read back as the same model, or refused."""

import json
from typing import Any

import pytest

from profiler.catalog import load_model
from profiler.catalog.load import names
from profiler.codec import replace
from profiler.config_json import config_json, first_difference
from profiler.errors import UserError
from profiler.huggingface import model_from_config
from profiler.model_support import runs_on_reference
from tests.unit.test_huggingface import EXPERTS, read
from tests.unit.test_huggingface_moe import moe


@pytest.mark.parametrize("name", names("model"))
def test_a_catalogued_model_is_written_as_it_is_read(name: str) -> None:
    model = load_model(name)
    why = runs_on_reference(model)
    if why is not None:
        with pytest.raises(UserError) as caught:
            config_json(model)
        assert caught.value.message == f"model `{name}` cannot be written as a `config.json`: {why}"
        return
    config = config_json(model)
    json.dumps(config, allow_nan=False)
    assert model_from_config(config, name, "config.json") == model


def test_a_written_model_keeps_its_dense_layers_and_its_groups() -> None:
    qwen3 = moe("qwen3_moe", mlp_only_layers=[0], norm_topk_prob=True)
    qwen2 = moe("qwen2_moe", num_key_value_heads=4, qkv_bias=False)
    dots1 = moe("dots1", num_key_value_heads=8, n_group=4, topk_group=2, first_k_dense_replace=1)
    for model in (qwen3, qwen2, dots1):
        assert model_from_config(config_json(model), "m", "config.json") == model


def test_capacity_is_no_part_of_what_is_written() -> None:
    model = moe("qwen3_moe")
    capped = replace(model, capacity_factor=1.5, capacity_group=8)
    assert config_json(capped) == config_json(model)
    assert first_difference(capped, model) is None
    assert first_difference(model, replace(model, rope_theta=5e5)) == "rope_theta"


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("llama", {"qk_norm": True}, "its `qk_norm` would be False, not True"),
        ("qwen3_moe", {"router_bias": True}, "its `router_bias` would be False, not True"),
        ("mixtral", {"norm_topk": False}, "its `norm_topk` would be True, not False"),
        ("mixtral", {"first_dense_layers": 1}, "its `first_dense_layers` would be 0, not 1"),
        ("dots1", {"shared_ffn_hidden_size": 30},
         "its `shared_ffn_hidden_size` would be 24, not 30"),
        ("dots1", {"shared_ffn_hidden_size": 0},
         "`n_shared_experts`: input should be greater than 0, not `0`"),
    ],
)  # fmt: skip
def test_what_a_family_cannot_express_is_not_written(
    family: str, changes: dict[str, Any], reason: str
) -> None:
    model = read(model_type=family, num_key_value_heads=8, **EXPERTS.get(family, {}))
    with pytest.raises(UserError) as caught:
        config_json(replace(model, **changes))
    assert caught.value.message == (
        f"model `m` cannot be written as a `{family}` model of Hugging Face: {reason}"
    )
