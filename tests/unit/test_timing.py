"""The time model against closed forms, parameter counts and the simulator."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from planner.chain import BlockTimes, program_of
from planner.config import ParallelConfig
from planner.layouts import RECOMPUTES, SCHEDULES
from planner.peak import RECIPES
from planner.predict import Quantities, Run, predict_steps
from planner.simulate import simulate
from planner.timing.inputs import constants_of, machine_of, shape_of
from planner.timing.kernels import attention_s, matrix_s, stream_s
from planner.timing.layer import layer_times
from planner.timing.network import collective_s, exchange_s, message_s
from planner.timing.quantities import Constants, Machine, Software, Split, columns, rows
from planner.timing.step import compose, head_s, rank_params, step_times
from profiler import model_counts as counts
from profiler.catalog.constants import resolve_constants
from profiler.catalog.load import load_model, names
from profiler.catalog.node_types import node_group
from profiler.job import JobSpec

MODELS = tuple(names("model"))
SEQ = 4096
IDEAL = Machine(
    peak=1e15, peak_low=2e15, low=0.0, element_bytes=2.0, memory_rate=1e30, units=100.0,
    inner_rate=400e9, nic_rate=50e9, domain=8.0, per_node=8.0, num_devices=64.0, host_rate=50e9,
)  # fmt: skip
"""Memory never binds."""
FREE = dataclasses.replace(IDEAL, inner_rate=1e30, nic_rate=1e30)
"""Nor does a network."""
ONE = Split(
    pp=1, vpp=1, replicas=1, dp_shard=1, zero=0, cp=1, cp_method=0, cp_heads=1, tp=1, ep=1, etp=1,
    micro_batch=1, num_microbatches=1, recompute=0, schedule=SCHEDULES.index("1f1b"), offload=0,
)  # fmt: skip
H100 = machine_of(node_group("dgx-h100", 8), 64, "bf16")
FITTED = constants_of(resolve_constants(node_group("dgx-h100", 8), "megatron"))


def exact(**given):
    """Constants of hardware that reaches its peaks and starts nothing."""
    zeros = dict.fromkeys((f.name for f in dataclasses.fields(Constants)), 0.0)
    ones = (
        "matrix_efficiency", "low_efficiency", "memory_efficiency", "inner_efficiency",
        "network_efficiency", "attention_efficiency", "exchange_efficiency", "weight_grad",
        "attention_backward", "exposed_tensor",
    )  # fmt: skip
    return Constants(**{**zeros, **dict.fromkeys(ones, 1.0), **given})


def split(**given):
    return dataclasses.replace(ONE, **given)


def shape(name="llama3-8b", seq=SEQ):
    return shape_of(load_model(name), seq)


# Collectives


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ring_all_reduce_moves_twice_n_minus_1_of_n(ranks):
    took = collective_s(IDEAL, exact(), 1e9, ranks, 1, reduces=True)
    assert took == pytest.approx(2 * (ranks - 1) / ranks * 1e9 / 400e9)
    assert collective_s(IDEAL, exact(), 1e9, ranks, 1) == pytest.approx(took / 2)


def test_steps_of_rings():
    c = exact(inner_step_s=1e-6, collective_base_s=1e-5, network_step_s=1e-4, tree_depth=1e9)
    assert collective_s(IDEAL, c, 0.0, 8, 1) == pytest.approx(1e-5 + 7e-6)
    assert collective_s(IDEAL, c, 0.0, 4, 8) == pytest.approx(3e-4)
    trees = dataclasses.replace(c, tree_depth=1.0)
    assert collective_s(IDEAL, trees, 0.0, 1024, 8) == pytest.approx(8 * 10 * 1e-4)


def test_groups_that_leave_the_node_share_its_nics():
    c = exact()
    # One rank per node: one NIC. Four ranks per node: four, eight: the fast link's 400 GB/s.
    for stride, rate in ((8, 50e9), (2, 200e9), (1, 400e9)):
        assert collective_s(IDEAL, c, 1e9, 16, stride) == pytest.approx(15 / 16 * 1e9 / rate)


@pytest.mark.parametrize("ranks", [16, 64, 256])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_hierarchical_all_reduce_is_never_slower_than_the_ring(ranks, stride):
    ring = 2 * collective_s(H100, FITTED, 1e9, ranks, stride)
    found = collective_s(H100, FITTED, 1e9, ranks, stride, reduces=True)
    assert found <= ring * (1 + 1e-12)
    near = max(1, 8 // stride)
    if near > 1:
        inner = H100.inner_rate * FITTED.inner_efficiency
        nic = H100.nic_rate * FITTED.network_efficiency
        least = (near - 1) / near * 1e9 / inner + (1 - near / ranks) * 1e9 / (near * nic)
        assert found >= min(2 * least, ring) * (1 - 1e-12)


def test_nothing_moves_in_a_group_of_one():
    for reduces in (False, True):
        assert collective_s(H100, FITTED, 1e9, 1, 1, reduces=reduces) == 0
    assert exchange_s(H100, FITTED, 1e9, 1) == 0


def test_exchange_sends_all_but_ones_own():
    assert exchange_s(IDEAL, exact(), 8e9, 8) == pytest.approx(7e9 / 400e9)
    assert exchange_s(IDEAL, exact(), 16e9, 16) == pytest.approx(8e9 / 50e9)


def test_messages_inside_and_between_nodes():
    c = exact(network_step_s=1e-5, inner_step_s=1e-6)
    assert message_s(IDEAL, c, 1e9, 4) == pytest.approx(1e9 / 400e9 + 1e-6)
    assert message_s(IDEAL, c, 1e9, 8) == pytest.approx(1e9 / 50e9 + 1e-5)


# Kernels


def test_matrix_products():
    assert matrix_s(IDEAL, exact(), 100, 200, 300) == pytest.approx(2 * 100 * 200 * 300 / 1e15)
    assert matrix_s(IDEAL, exact(matrix_depth=300), 100, 200, 300) == pytest.approx(2.4e-8)
    assert matrix_s(IDEAL, exact(), 0, 200, 300) == 0
    low = dataclasses.replace(IDEAL, low=1.0)
    assert matrix_s(low, exact(), 100, 200, 300) == pytest.approx(6e-9)
    assert matrix_s(low, exact(), 100, 200, 300, low=False) == pytest.approx(1.2e-8)
    slow = dataclasses.replace(IDEAL, memory_rate=1e9)
    moved = 2 * (100 * 300 + 200 * 300 + 100 * 200)
    assert matrix_s(slow, exact(), 100, 200, 300) == pytest.approx(moved / 0.8e9)


def test_streams():
    assert stream_s(H100, FITTED, 1e9) == pytest.approx(
        1e9 / (H100.memory_rate * FITTED.memory_efficiency)
    )


@pytest.mark.parametrize("name", ["llama3-8b", "deepseek-v3", "gpt-oss-120b"])
def test_attention_computes_scores_and_values(name):
    s, spec = shape(name), load_model(name)
    heads = spec.num_heads
    forward, backward = attention_s(s, IDEAL, Software(), exact(), SEQ, heads)
    kinds = spec.attentions
    flops = [counts.attention_flops_per_token(spec, a, SEQ) / 3 * SEQ for a in kinds]
    assert forward == pytest.approx(sum(flops) / len(flops) / 1e15)
    assert backward == pytest.approx(2.5 * forward)


def test_attention_without_one_kernel_computes_the_whole_square():
    s = shape("gpt3-175b", 2048)
    plain = Software(flash=0.0)
    flash, _ = attention_s(s, IDEAL, Software(), exact(), 2048, 96)
    whole, back = attention_s(s, IDEAL, plain, exact(misaligned=1.0), 2048, 96)
    assert (whole, back) == (pytest.approx(2 * flash), pytest.approx(4 * flash))
    odd = dataclasses.replace(s, qk_dim=127.0)
    slow, _ = attention_s(odd, IDEAL, plain, exact(misaligned=9.0), 2048, 96)
    assert slow == pytest.approx(9 * whole * (127 + 128) / 256)


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


# Arrays and single layouts


def runs(*given):
    found = []
    for name, degrees in given:
        config = ParallelConfig(**{"pp": 1, "dp_replicate": 1, "tp": 1, "micro_batch": 1,
                                   "recompute": "none", "schedule": "1f1b", **degrees})  # fmt: skip
        found.append(
            Run(
                model=load_model(name), job=JobSpec(global_batch=64, seq_len=SEQ), config=config,
                group=node_group("dgx-h100", 8), num_devices=config.num_devices,
                software=Software(), constants=FITTED, recipe=RECIPES["megatron"],
            )
        )  # fmt: skip
    return found


MANY = (
    ("llama3-8b", {"tp": 2, "dp_shard": 4, "zero": 1}),
    ("llama3-8b", {"dp_shard": 8, "zero": 3, "cp": 2}),
    ("llama3-70b", {"tp": 8, "pp": 4, "vpp": 5, "schedule": "interleaved"}),
    ("qwen3-30b-a3b", {"ep": 8, "dp_shard": 8, "zero": 1}),
    ("deepseek-v3", {"tp": 2, "pp": 8, "ep": 8, "dp_shard": 4, "zero": 1, "recompute": "full"}),
    ("qwen3-next-80b-a3b", {"tp": 2, "dp_shard": 4, "zero": 1}),
    ("gpt3-175b", {"tp": 8, "pp": 8, "schedule": "zero_bubble"}),
)


def test_arrays_give_what_single_layouts_give():
    q = Quantities.of(runs(*MANY))
    many = step_times(q.shape, q.split, q.machine, q.software, columns([FITTED] * len(MANY)))
    for n in range(len(MANY)):
        one = [rows(part, np.array(n)) for part in (q.shape, q.split, q.machine, q.software)]
        single = step_times(*one, FITTED)
        assert many.step_s[n] == pytest.approx(float(single.step_s), rel=1e-12)
    together = [s for s, _ in predict_steps(runs(*MANY))]
    alone = [predict_steps([r])[0][0] for r in runs(*MANY)]
    assert together == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("name", ["llama3-8b", "qwen3-30b-a3b", "deepseek-v3"])
def test_more_tokens_never_take_less(name):
    batches = split(micro_batch=np.arange(1.0, 65.0), tp=2, ep=2)
    dense, moe = layer_times(shape(name), batches, H100, Software(), FITTED)
    for layer in (dense, moe):
        # Where the host is slower, backward as a whole is its time, and `input_s` the rest of it.
        for seconds in (layer.forward_s, layer.input_s + layer.weight_s, layer.weight_s):
            assert np.all(np.diff(seconds) >= -1e-12)
    steps = [step_times(shape(name, s), ONE, H100, Software(), FITTED).step_s
             for s in (512, 1024, 2048, 4096, 8192, 16384)]  # fmt: skip
    assert steps == sorted(steps)


def test_terms_add_up():
    for seconds, parts in predict_steps(runs(*MANY)):
        assert sum(parts.values()) == pytest.approx(seconds)
        assert min(parts.values()) >= 0


# Pipelines: the closed form against the simulator


def simulated(s, degrees, layer, head=(0.0, 0.0, 0.0)):
    """The simulator's step of equal layers and nothing else."""
    p, v, m = degrees.pp, degrees.vpp, degrees.num_microbatches
    num = p * v
    each = int(s.num_layers) // num
    ends = [0, *(1 + each * (n + 1) for n in range(num))]
    ends[-1] += 1
    times = BlockTimes(dense=layer, moe=layer, head=head)
    program = program_of(
        blocks=("embed", *["dense"] * int(s.num_layers), "head"),
        stages=tuple(pairwise(ends)), times=times,
        schedule=SCHEDULES[degrees.schedule], pp=p, vpp=v, num_microbatches=m, send_s=0.0,
        exposed_send=0.0, late=1.0, sync_s=0.0, update_s=0.0, base_s=0.0,
    )  # fmt: skip
    return simulate(program).step_s


@pytest.mark.parametrize(
    "name", ["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipev"]
)
@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize("rounds", [1, 2, 8])
def test_closed_form_of_equal_stages_is_the_simulators(name, p, rounds):
    v = schedule_vpp(name)
    s = dataclasses.replace(shape(), num_layers=p * v * 2, num_moe=0, vocab=0, mtp=0)
    degrees = split(pp=p, vpp=v, num_microbatches=2 * p * rounds, schedule=SCHEDULES.index(name))
    c = exact(weight_grad=0.9)
    # No recomputation of attention: backward for the input and for the weights nearly alike.
    dense, moe = layer_times(s, degrees, FREE, Software(), c)
    closed = compose(s, degrees, FREE, Software(), c, dense, moe).step_s
    layer = (float(dense.forward_s), float(dense.input_s), float(dense.weight_s))
    assert float(closed) == pytest.approx(simulated(s, degrees, layer), rel=0.01)


def schedule_vpp(name):
    """Virtual stages to test a schedule with."""
    return {"interleaved": 2, "zbv": 2, "dualpipev": 2}.get(name, 1)


def test_a_head_on_the_last_stage_is_the_slowest_rank():
    s = dataclasses.replace(shape(), num_layers=8, num_moe=0)
    degrees = split(pp=4, num_microbatches=64)
    c = exact()
    software = Software(balanced=0.0)
    dense, moe = layer_times(s, degrees, FREE, software, c)
    closed = compose(s, degrees, FREE, software, c, dense, moe).step_s
    layer = (float(dense.forward_s), float(dense.input_s), float(dense.weight_s))
    head = tuple(float(x) for x in head_s(s, degrees, FREE, c))
    assert float(closed) == pytest.approx(simulated(s, degrees, layer, head), rel=0.01)


def test_no_step_is_below_its_bound():
    for r in runs(*MANY):
        q = Quantities.of([r])
        step = step_times(q.shape, q.split, q.machine, q.software, columns([FITTED]))
        assert step.bound_s[0] <= step.step_s[0]
        assert step.exposed_reduction_s[0] <= step.reduction_s[0] * (1 + 1e-9)
