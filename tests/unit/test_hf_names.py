"""Names of tensors: each once, the shapes add up to the model, a few of them by hand."""

from math import prod

import pytest

from launch.runtime.hf_names import hf_name
from profiler.catalog import load_model
from profiler.catalog.load import names
from profiler.model_support import runs_on_reference
from profiler.tensors import canonical_names


@pytest.mark.parametrize(
    "name", [name for name in names("model") if runs_on_reference(load_model(name)) is None]
)
def test_shapes_add_up_to_the_parameters_and_no_name_is_used_twice(name: str) -> None:
    model = load_model(name)
    shapes = canonical_names(model)
    buffers = sum(prod(shape) for n, shape in shapes.items() if n.endswith("router.bias"))
    assert buffers == model.router_bias * model.num_moe_layers * model.num_experts
    assert sum(prod(shape) for shape in shapes.values()) - buffers == model.num_params
    assert len({hf_name(model, n) for n in shapes}) == len(shapes)


@pytest.mark.parametrize(
    ("model", "name", "on_disk"),
    [
        ("llama3-8b", "blocks.0.weight", "model.embed_tokens.weight"),
        ("llama3-8b", "blocks.1.attention.o.weight", "model.layers.0.self_attn.o_proj.weight"),
        ("llama3-8b", "blocks.32.ffn.gate.weight", "model.layers.31.mlp.gate_proj.weight"),
        ("llama3-8b", "blocks.33.norm.weight", "model.norm.weight"),
        ("llama3-8b", "blocks.33.output.weight", "lm_head.weight"),
        ("qwen2-7b", "blocks.2.attention.k.bias", "model.layers.1.self_attn.k_proj.bias"),
        ("qwen3-8b", "blocks.2.attention.q_norm.weight", "model.layers.1.self_attn.q_norm.weight"),
        ("qwen3-8b", "blocks.2.attention_norm.weight", "model.layers.1.input_layernorm.weight"),
        ("mixtral-8x7b", "blocks.1.ffn.router.weight",
         "model.layers.0.block_sparse_moe.gate.weight"),
        ("mixtral-8x7b", "blocks.1.ffn.experts.3.gate",
         "model.layers.0.block_sparse_moe.experts.3.w1.weight"),
        ("mixtral-8x7b", "blocks.1.ffn.experts.3.down",
         "model.layers.0.block_sparse_moe.experts.3.w2.weight"),
        ("qwen3-30b-a3b", "blocks.1.ffn.experts.99.up",
         "model.layers.0.mlp.experts.99.up_proj.weight"),
        ("qwen1.5-moe-a2.7b", "blocks.1.ffn.shared.up.weight",
         "model.layers.0.mlp.shared_expert.up_proj.weight"),
        ("qwen1.5-moe-a2.7b", "blocks.1.ffn.shared_gate.weight",
         "model.layers.0.mlp.shared_expert_gate.weight"),
        ("dots.llm1", "blocks.1.ffn.up.weight", "model.layers.0.mlp.up_proj.weight"),
        ("dots.llm1", "blocks.2.ffn.shared.down.weight",
         "model.layers.1.mlp.shared_experts.down_proj.weight"),
        ("dots.llm1", "blocks.2.ffn.router.bias",
         "model.layers.1.mlp.gate.e_score_correction_bias"),
    ],
)  # fmt: skip
def test_a_name_on_disk(model: str, name: str, on_disk: str) -> None:
    spec = load_model(model)
    assert name in canonical_names(spec)
    assert hf_name(spec, name) == on_disk
