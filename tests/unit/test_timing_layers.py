"""Layers of the time model: products, parameters, hosts, recomputation, experts."""

import dataclasses

import pytest

from planner.layouts import RECOMPUTES
from planner.timing.layer import layer_times
from planner.timing.quantities import Software
from planner.timing.step import rank_params, step_times
from profiler import model_counts as counts
from profiler.catalog.load import load_model
from tests.unit.timing import FREE, IDEAL, MODELS, ONE, SEQ, exact, shape, split

# Layers and parameters: nothing is forgotten


def products(spec, kind):
    """Elements of the matrices that a token passes in a layer, the mean over its attentions."""
    linear = sum(a == "linear" for a in spec.attentions) / spec.num_layers
    mixer = (1 - linear) * counts.attention_matrix(spec)
    if linear:
        keys = spec.linear_num_key_heads * spec.linear_key_head_dim
        values = spec.linear_num_value_heads * spec.linear_value_head_dim
        taps = spec.linear_conv_kernel * (2 * keys + values)
        mixer += linear * (counts.linear_matrix(spec) - taps)
    if kind == "dense":
        return mixer + counts.ffn_matrix(spec, spec.ffn_hidden_size)
    routed = spec.num_experts_per_token * counts.ffn_matrix(spec, spec.expert_width)
    shared = counts.ffn_matrix(spec, spec.shared_ffn_hidden_size)
    return mixer + routed + shared + spec.hidden_size * spec.num_experts


@pytest.mark.parametrize("name", MODELS)
def test_products_of_a_layer_are_twice_its_parameters(name):
    spec = load_model(name)
    dense, moe = layer_times(shape(name), ONE, FREE, Software(), exact())
    assert dense.matrix_s == pytest.approx(2 * SEQ * products(spec, "dense") / 1e15)
    if spec.num_experts:
        assert moe.matrix_s == pytest.approx(2 * SEQ * products(spec, "moe") / 1e15)


@pytest.mark.parametrize("name", ["llama3-8b", "qwen3-30b-a3b", "deepseek-v3"])
def test_model_flops_of_a_step(name):
    """With everything else free, a step takes the model's FLOPs and no more; flash attention's
    backward computes the scores again, 2.5 times forward for 2."""
    spec = load_model(name)
    took = step_times(shape(name), ONE, FREE, Software(), exact()).step_s
    again = sum(counts.attention_flops_per_token(spec, a, SEQ) / 6 for a in spec.attentions)
    again += spec.num_mtp_layers * counts.attention_flops_per_token(spec, "full", SEQ) / 6
    flops = spec.flops_per_token(SEQ) + again
    # Multi-token prediction's projection of 2 h^2 is left out of the time model.
    flops -= spec.num_mtp_layers * 12 * spec.hidden_size**2
    assert took == pytest.approx(flops * SEQ / 1e15, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_a_rank(name):
    spec = load_model(name)
    whole = rank_params(shape(name), ONE)
    positions = spec.max_positions * spec.hidden_size
    assert whole.dense + whole.experts == pytest.approx(spec.num_params - positions, rel=0.01)
    parts = rank_params(shape(name), split(tp=2, ep=4, etp=2))
    assert parts.dense * 2 == pytest.approx(whole.dense)
    assert parts.experts * 8 == pytest.approx(whole.experts)
    # A pipeline's first and last ranks hold embedding and head, each whole also where they are one.
    table = spec.vocab_size * spec.hidden_size
    ends = rank_params(shape(name), split(pp=2))
    layers = whole.dense - table * (1 if spec.tie_embeddings else 2)
    assert ends.dense == pytest.approx(layers / 2 + table)


def test_tensor_parallelism_shares_the_products():
    s = shape("gpt3-175b", 2048)
    one, _ = layer_times(s, ONE, FREE, Software(), exact())
    eight, _ = layer_times(s, split(tp=8), FREE, Software(), exact())
    assert eight.matrix_s * 8 == pytest.approx(one.matrix_s)
    # Two all-reduces of the tokens' states forward, as many backward.
    real, _ = layer_times(s, split(tp=8), IDEAL, Software(), exact())
    assert real.tensor_s == pytest.approx(2 * 2 * 7 / 8 * 2 * 2048 * s.hidden / 400e9)


def test_recomputation_runs_forward_again():
    s = shape()
    none, _ = layer_times(s, ONE, FREE, Software(), exact())
    full, _ = layer_times(s, split(recompute=RECOMPUTES.index("full")), FREE, Software(), exact())
    some, _ = layer_times(
        s, split(recompute=RECOMPUTES.index("selective")), FREE, Software(), exact()
    )
    assert full.input_s - none.input_s == pytest.approx(none.forward_s)
    assert some.input_s - none.input_s == pytest.approx(none.attention_s)


def test_the_host_is_the_least_time_of_a_layer():
    s = shape("gpt3-126m", 128)
    c = exact(host_op_s=1.0, dense_ops=10.0)
    layer, _ = layer_times(s, ONE, FREE, Software(), c)
    assert layer.forward_s == pytest.approx(10)
    assert layer.input_s + layer.weight_s == pytest.approx(20)
    graphs, _ = layer_times(s, ONE, FREE, Software(graph=1.0), c)
    assert graphs.forward_s < 1


def test_dropless_routing_waits_for_its_counts():
    s, c = shape("qwen3-30b-a3b"), exact(host_op_s=1e-6, expert_ops=10.0, fused_expert_ops=0.5)
    free = dataclasses.replace(c, expert_ops=0.0)

    def waits(**given):
        seconds = [
            layer_times(s, split(ep=8), FREE, Software(**given), k)[1].forward_s for k in (c, free)
        ]
        return seconds[0] - seconds[1]

    # 128 experts on 8 ranks, beside whatever the device computes.
    assert waits() == pytest.approx(16 * 10e-6)
    assert waits(fused_exchange=1.0) == pytest.approx(8 * 10e-6)
    assert waits(graph=0.7) == pytest.approx(16 * 10e-6)
    assert waits(graph=1.0) == 0
    assert waits(drops=1.0) == 0


def test_modules_that_run_again_cost_their_forward():
    slow = dataclasses.replace(FREE, memory_rate=1e12)
    s, c = shape("deepseek-v3"), exact()

    def more(hw=FREE, **given):
        plain, again = (layer_times(s, ONE, hw, Software(**g), c) for g in ({}, given))
        return [b.input_s - a.input_s for a, b in zip(plain, again, strict=True)]

    norms = 4 * 2 * SEQ * 7168 / 1e12
    assert more(slow, recompute_norms=1.0) == pytest.approx([norms, norms])
    up = 2 * SEQ * 128 * (512 * (128 + 128) + 1536 * 192) / 1e15
    assert more(recompute_latent=1.0) == pytest.approx([up, up])
    ffn = 3 * 2 * SEQ * 7168 * 18432 / 1e15
    assert more(recompute_ffn=1.0) == pytest.approx([ffn, 0])
    activation = 3 * 2048 * 2 * SEQ * 8 / 1e12
    assert more(slow, recompute_expert_activation=1.0) == pytest.approx([0, activation])
    host = dataclasses.replace(c, host_op_s=1.0, checkpoint_ops=7.0, dense_ops=10.0, moe_ops=1.0)
    plain, again = (
        layer_times(s, ONE, FREE, Software(recompute_norms=n), host)[0] for n in (0.0, 1.0)
    )
    assert again.input_s - plain.input_s == pytest.approx(2 * 7)


def test_biases_of_experts_pass_over_their_output():
    s = shape("gpt-oss-120b")
    hw = dataclasses.replace(FREE, memory_rate=1e12)
    plain = dataclasses.replace(s, expert_bias=0.0)
    seconds = [layer_times(x, ONE, hw, Software(), exact())[1].stream_s for x in (s, plain)]
    assert s.expert_bias == 1
    assert seconds[0] - seconds[1] == pytest.approx(28 * 4 * SEQ * 2880 / 1e12)
