"""Reading the config files of models with experts: what each family says of its routing."""

from typing import Any

from profiler.model import ModelSpec
from tests.unit.test_huggingface import EXPERTS, LLAMA, error_of, read


def moe(family: str, **changes: Any) -> ModelSpec:
    return read(model_type=family, **{**EXPERTS[family], **changes})


def test_qwen2_moe_has_a_gated_shared_expert() -> None:
    model = moe("qwen2_moe", num_key_value_heads=4)
    assert (model.num_experts, model.num_experts_per_token, model.expert_width) == (60, 4, 24)
    assert (model.shared_ffn_hidden_size, model.shared_gate) == (48, True)
    assert (model.qkv_bias, model.qk_norm, model.norm_topk) == (True, False, False)
    assert (model.router_score, model.router_bias, model.routed_scale) == ("softmax", False, 1.0)
    assert not moe("qwen2_moe", num_key_value_heads=4, qkv_bias=False).qkv_bias
    assert moe("qwen2_moe", num_key_value_heads=4, norm_topk_prob=True).norm_topk


def test_qwen3_moe_has_no_shared_expert() -> None:
    model = moe("qwen3_moe")
    assert (model.num_experts, model.num_experts_per_token, model.expert_width) == (128, 8, 24)
    assert (model.shared_ffn_hidden_size, model.shared_gate) == (0, False)
    assert (model.qkv_bias, model.qk_norm, model.norm_topk) == (False, True, False)
    assert (model.num_kv_heads, model.head_dim) == (4, 8)


def test_dots1_chooses_experts_as_deepseek_v3_does() -> None:
    groups = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
    model = moe("dots1", num_key_value_heads=None, first_k_dense_replace=1, **groups)
    assert model.blocks == ("embed", "dense", "moe", "head")
    assert (model.num_experts, model.num_experts_per_token, model.expert_width) == (16, 3, 24)
    assert (model.shared_ffn_hidden_size, model.shared_gate) == (48, False)
    assert (model.router_score, model.router_bias, model.norm_topk) == ("sigmoid", True, True)
    assert (model.num_expert_groups, model.num_chosen_groups, model.routed_scale) == (4, 2, 2.5)
    assert (model.qkv_bias, model.qk_norm) == (False, True)
    plain = moe("dots1", num_key_value_heads=None)
    assert (plain.num_expert_groups, plain.num_chosen_groups, plain.routed_scale) == (1, 1, 1.0)
    assert (plain.first_dense_layers, plain.norm_topk) == (0, False)


def test_dense_layers_first_are_read_from_either_key() -> None:
    assert moe("qwen3_moe", mlp_only_layers=[]).layer_kinds == ("moe",)
    assert moe("qwen3_moe", mlp_only_layers=[0]).layer_kinds == ("dense", "moe")
    assert moe("qwen3_moe", mlp_only_layers=[1, 0, 1]).layer_kinds == ("dense",)


def test_the_number_of_experts_has_the_key_of_either_version() -> None:
    assert moe("qwen3_moe", num_experts=16) == moe("qwen3_moe", num_local_experts=16)
    heads = {"num_key_value_heads": 8}
    mixtral = read(model_type="mixtral", num_local_experts=4, **heads)
    assert mixtral == read(model_type="mixtral", num_experts=4, **heads)


def test_a_dots1_window_begins_at_its_layer() -> None:
    few = {"num_key_value_heads": 8, "num_hidden_layers": 62, "max_position_embeddings": 8192}
    many = {**few, "num_hidden_layers": 63}
    assert moe("dots1", **few).num_layers == 62
    model = moe("dots1", **many)
    assert model.attention_pattern == ("full",) * 62 + ("sliding",)
    assert (model.window, moe("dots1", **few).attention_pattern) == (4096, ("full",))
    assert moe("dots1", **many, sliding_window=None).num_layers == 63
    assert moe("dots1", **many, max_window_layers=63).num_layers == 63
    assert moe("dots1", **many, layer_types=["full_attention"] * 63).window == 0


def test_moe_layers_at_even_distances_are_read_and_others_refused() -> None:
    four = {"num_hidden_layers": 4}
    assert moe("qwen3_moe", **four, decoder_sparse_step=2).layer_kinds == ("dense", "moe")
    assert moe("qwen3_moe", **four, decoder_sparse_step=2).moe_every == 2
    assert moe("qwen3_moe", **four, mlp_only_layers=[0, 1]).first_dense_layers == 2
    last = moe("qwen3_moe", **four, mlp_only_layers=[0, 1, 2])
    assert last.blocks == ("embed", "dense", "dense", "dense", "moe", "head")
    dots = moe("dots1", **four, num_key_value_heads=8, first_k_dense_replace=1, moe_layer_freq=2)
    assert dots.blocks[1:-1] == ("dense", "dense", "moe", "dense")
    tree = {**LLAMA, "model_type": "qwen3_moe", **EXPERTS["qwen3_moe"], "num_hidden_layers": 5}
    assert error_of({**tree, "mlp_only_layers": [2]}).message == (
        "MoE layers at uneven distances are not supported: after the first dense layers, each "
        "n-th must be MoE"
    )
