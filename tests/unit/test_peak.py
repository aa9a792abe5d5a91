"""Closed forms of peak memory against the papers' formulas, the schedules' tables and numbers that
were measured."""

import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.config import ScheduleName
from planner.peak import (
    FULL,
    GIB,
    NONE,
    RECIPES,
    SELECTIVE,
    Degrees,
    Num,
    Recipe,
    Sizes,
    even_layers,
    in_flight,
    stage_peaks,
)
from planner.schedules import peak_in_flight, table_of
from profiler.model import ModelSpec

CODES = {name: code for code, name in enumerate(typing.get_args(ScheduleName))}
S, B, H, A = 64, 3, 32, 4
GPT = Recipe(flash=False, dropout=True)


def sizes(**changes: Num) -> Sizes:
    """GPT by default: four heads, a feed-forward of four times the width."""
    heads: dict[str, Num] = {"num_heads": A, "num_kv_heads": A, "head_dim": H // A}
    rest: dict[str, Num] = {"hidden": H, "num_layers": 1, "ffn_hidden": 4 * H, "gated": 0}
    return Sizes(**(heads | rest | {"vocab": 128, "seq_len": S} | changes))


def kept(recipe: Recipe = GPT, **degrees: Num) -> float:
    """Bytes that one layer keeps of a micro-batch of B sequences."""
    peaks = stage_peaks(sizes(), Degrees(micro_batch=B, **degrees), recipe)
    return float(peaks.activations[0, 0])


def test_equation_1_2_and_4_of_korthikanti() -> None:
    sbh, scores = S * B * H, 5 * A * S / H
    assert kept() == sbh * (34 + scores)
    assert kept(tp=4, sequence_parallel=0) == sbh * (10 + 24 / 4 + scores / 4)
    assert kept(tp=4) == sbh / 4 * (34 + scores)


def test_equation_6_and_full_recomputation() -> None:
    sbh = S * B * H
    assert kept(tp=4, recompute=SELECTIVE) == 34 * sbh / 4
    assert kept(recompute=FULL) == 2 * sbh
    assert kept(recompute=FULL, tp=4) == 2 * sbh / 4
    assert kept(recompute=FULL, tp=4, sequence_parallel=0) == 2 * sbh


def test_flash_attention_keeps_a_number_per_row() -> None:
    flash = Recipe(dropout=True)
    assert kept(flash) == S * B * (34 * H + 4 * A)
    assert kept(flash, cp=2) == kept(flash) / 2


def test_gathered_inputs_are_not_divided() -> None:
    flash = Recipe(dropout=True, gathered_inputs=True)
    assert kept(flash, tp=4) == S * B * (4 * H + (30 * H + 4 * A) / 4)


def test_gated_feed_forward_keeps_gate_up_and_product() -> None:
    of = sizes(gated=1)
    degrees = Degrees(micro_batch=B)
    fused = stage_peaks(of, degrees, Recipe()).activations[0, 0]
    copied = stage_peaks(of, degrees, Recipe(silu_copy=True)).activations[0, 0]
    assert fused == S * B * (8 * H + 8 * H + 4 * A + 2 * 3 * 4 * H)
    assert copied - fused == S * B * 2 * 4 * H
    again = Recipe(recompute_activation=True)
    selective = stage_peaks(of, Degrees(micro_batch=B, recompute=SELECTIVE), again)
    assert fused - selective.activations[0, 0] == S * B * 2 * 4 * H


def test_half_of_the_products() -> None:
    """Of query, key, value, gate, up and both outputs; beside them input and attention's output."""
    recipe = Recipe(recompute_half=True)
    peaks = stage_peaks(sizes(gated=1), Degrees(recompute=SELECTIVE), recipe)
    assert peaks.activations[0, 0] == S * 2 * ((3 * H + 8 * H + H + H) / 2 + H + H)


LLAMA = ModelSpec(
    name="tiny",
    family="qwen2_moe",
    vocab_size=128,
    hidden_size=32,
    num_layers=5,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_hidden_size=96,
)
MOE = {
    "num_experts": 8,
    "num_experts_per_token": 2,
    "first_dense_layers": 1,
    "expert_ffn_hidden_size": 24,
    "shared_ffn_hidden_size": 48,
}


def of_model(model: ModelSpec) -> Sizes:
    return Sizes(
        hidden=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        ffn_hidden=model.ffn_hidden_size,
        vocab=model.vocab_size,
        seq_len=S,
        tied=int(model.tie_embeddings),
        num_experts=model.num_experts,
        topk=model.num_experts_per_token,
        expert_ffn=model.expert_width,
        shared_ffn=model.shared_ffn_hidden_size,
        first_dense=model.first_dense_layers,
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("moe", [{}, MOE])
def test_parameters_are_the_model_s(moe: dict[str, int], tied: bool) -> None:
    """All but the norm before the head."""
    model = ModelSpec(**{**_fields(LLAMA), **moe, "tie_embeddings": tied})
    peaks = stage_peaks(of_model(model), Degrees())
    assert peaks.weights[0, 0] == 2 * (model.num_params - model.hidden_size)
    assert (peaks.weights == peaks.weights[0]).all()


def _fields(model: ModelSpec) -> dict[str, typing.Any]:
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def test_sixteen_bytes_of_the_zero_paper() -> None:
    """Section 3: 2 + 2 + 12, of which the stages share 12, 14 and 16 among N."""
    recipe, psi = Recipe(grad=2), LLAMA.num_params - LLAMA.hidden_size

    def state(zero: int) -> float:
        peaks = stage_peaks(of_model(LLAMA), Degrees(dp_shard=8, zero=zero), recipe)
        return float((peaks.weights + peaks.grads + peaks.optimizer)[0, 0])

    assert [state(zero) for zero in range(4)] == [
        16 * psi,
        4 * psi + 12 * psi / 8,
        2 * psi + 14 * psi / 8,
        16 * psi / 8,
    ]


def test_experts_are_shared_by_the_ranks_that_hold_the_same() -> None:
    model = ModelSpec(**{**_fields(LLAMA), **MOE})
    experts = 4 * 8 * 3 * 32 * 24
    rest = model.num_params - model.hidden_size - experts
    peaks = stage_peaks(of_model(model), Degrees(dp_shard=8, ep=4, zero=1))
    assert peaks.weights[0, 0] == 2 * (rest + experts / 4)
    assert peaks.optimizer[0, 0] == 12 * (rest / 8 + experts / 4 / 2)
    whole = stage_peaks(of_model(model), Degrees(dp_shard=4, ep=8, zero=1))
    assert whole.optimizer[0, 0] == 12 * (rest / 4 + experts / 8)


def test_an_moe_layer_keeps_copies_of_its_tokens() -> None:
    one = {"num_experts": 8, "topk": 2, "expert_ffn": 24, "shared_ffn": 48}
    of = sizes(gated=1, **one)
    attention = 8 * H + 8 * H + 4 * A
    layer = attention + 4 * 8 + 2 * 3 * 48 + 2 * (2 * H + 2 * 3 * 24)
    assert stage_peaks(of, Degrees(ep=4, dp_shard=4)).activations[0, 0] == S * layer
    twice = stage_peaks(of, Degrees(imbalance=1.5)).activations[0, 0]
    assert twice - S * layer == S * 2 * (2 * H + 2 * 3 * 24) / 2
    assert stage_peaks(of, Degrees(tp=2)).activations[0, 0] == S * layer / 2


def test_latent_attention() -> None:
    """Latents before and after their norm; queries, keys, values of all heads; keys once more."""
    rank = {"q_lora_rank": 20, "kv_lora_rank": 12, "rope_head_dim": 4}
    peaks = stage_peaks(sizes(**rank), Degrees(), Recipe())
    q, kv = A * (8 + 4), A * 16
    latents = 20 + 12 + 4
    attention = 2 * (q + kv + H + q) + 4 * A + 4 * latents
    assert peaks.activations[0, 0] == S * (8 * H + attention + 2 * 2 * 4 * H)
    matrices = H * latents + 20 * q + 12 * kv + H * H
    params = matrices + 2 * H + 2 * H * 4 * H + 2 * 128 * H
    assert peaks.weights[0, 0] == 2 * params


def _most(name: ScheduleName, pp: int, m: int, vpp: int) -> list[int]:
    flights = [max(pair) for pair in peak_in_flight(table_of(name, pp, m, vpp))]
    return [flights[0], flights[min(1, pp - 1)], flights[-1]]


@pytest.mark.parametrize("pp", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("name", "vpp"),
    [
        ("gpipe", 1),
        ("1f1b", 1),
        ("interleaved", 2),
        ("interleaved", 3),
        ("zero_bubble", 1),
        ("zero_bubble", 2),
        ("zbv", 2),
        ("dualpipev", 2),
    ],
)
def test_in_flight_is_the_tables(name: ScheduleName, vpp: int, pp: int) -> None:
    for m in range(1, 14):
        ours = in_flight(CODES[name], pp, m, vpp)[:, 0] * vpp
        table = _most(name, pp, m, vpp)
        if name in ("zbv", "dualpipev"):
            assert (ours >= table).all()
            assert m < 2 * pp or ours[-1] == table[-1]
        else:
            assert ours.tolist() == table


def test_a_table_may_hold_all() -> None:
    assert (in_flight(CODES["table"], 4, 9) == 9).all()


def test_the_first_rank_keeps_most_and_the_last_has_the_logits() -> None:
    of = sizes(num_layers=8)
    peaks = stage_peaks(of, Degrees(pp=4, num_microbatches=16), GPT)
    assert (peaks.activations[:, 0] / kept(GPT) * B).tolist() == [8, 6, 2]
    wide = stage_peaks(sizes(num_layers=8, vocab=1e6), Degrees(pp=4, num_microbatches=16), GPT)
    assert (wide.transient - peaks.transient)[:2].tolist() == [[0], [0]]
    assert wide.transient[2, 0] == S * (6 * 1e6 + 6 * H) + 2 * 1e6 * H
    assert wide.weights[1, 0] == peaks.weights[1, 0]
    assert wide.weights[0, 0] == wide.weights[2, 0]


def test_layers_are_even_or_given() -> None:
    assert even_layers(10, np.array([1, 3, 4])).tolist() == [[10, 4, 3], [10, 3, 3], [10, 3, 2]]
    given = np.array([[3.0], [3.0], [1.0]])
    peaks = stage_peaks(sizes(num_layers=10), Degrees(pp=4, num_microbatches=1), GPT, given)
    assert (peaks.activations[:, 0] / kept(GPT) * B).tolist() == [3, 3, 1]


def test_loose_gradients_come_when_activations_have_gone() -> None:
    loose = Recipe(loose_grad=2, bucket=2)
    alone = stage_peaks(sizes(num_layers=4), Degrees(), loose)
    plain = stage_peaks(sizes(num_layers=4), Degrees(), Recipe())
    params = alone.weights[0, 0] / 2
    assert alone.buffers[0, 0] == 0
    workspace = S * (2 * 4 * H + 8 * H) + 2 * H * 4 * H
    logits = S * (6 * 128 + 6 * H) + 2 * H * 128
    assert plain.transient[0, 0] == max(workspace, logits)
    late = workspace + max(0, 2 * params - alone.activations[0, 0])
    assert alone.transient[0, 0] == max(late, logits)
    assert stage_peaks(sizes(), Degrees(dp_replicate=2), loose).buffers[0, 0] > 0


def test_zero_3_gathers_two_layers_and_what_is_in_none() -> None:
    base = stage_peaks(sizes(num_layers=4), Degrees(dp_shard=4, zero=1))
    full = stage_peaks(sizes(num_layers=4), Degrees(dp_shard=4, zero=3))
    layer, outside = 12 * H * H + 2 * H, 2 * 128 * H
    gathered = 2 * (2 * layer + outside)
    assert (full.transient - base.transient)[0, 0] == gathered + 2 * max(layer, outside)


def test_full_recomputation_runs_one_layer_at_a_time() -> None:
    """Its input is kept in all cases; the rest only while its backward runs."""
    deep = sizes(num_layers=4, vocab=1)
    no, full = (stage_peaks(deep, Degrees(recompute=code), GPT) for code in (NONE, FULL))
    assert (full.transient - no.transient)[0, 0] == no.activations[0, 0] / 4


def test_offloading() -> None:
    of, many = sizes(num_layers=4), {"pp": 2, "num_microbatches": 8}
    none, state, kept = (stage_peaks(of, Degrees(offload=code, **many), GPT) for code in range(3))
    assert state.optimizer.max() == 0
    assert kept.optimizer.max() == none.optimizer.max() > 0
    assert state.activations[0, 0] == none.activations[0, 0] == 2 * kept.activations[0, 0]


def test_definitions_of_memory_differ_by_slack_and_context() -> None:
    peaks = stage_peaks(sizes(num_layers=4), Degrees(), Recipe(slack=0.5, context_gib=2))
    moving = (peaks.activations + peaks.transient)[0, 0]
    assert peaks.reserved[0] - peaks.allocated[0] == pytest.approx(moving / 2)
    assert peaks.smi[0] - peaks.reserved[0] == 2 * GIB
    need = peaks.allocated[0] + 2 * GIB
    assert peaks.fits(need).all()
    assert not peaks.fits(need - 1).any()


LAYOUTS = {
    "pp": [1, 2, 4],
    "dp_shard": [1, 4],
    "zero": [0, 1, 2, 3],
    "cp": [1, 2],
    "tp": [1, 4],
    "ep": [1, 4],
    "micro_batch": [1, 2, 4],
    "num_microbatches": [1, 5, 16],
    "recompute": [0, 1, 2],
    "schedule": [0, 1, 3],
    "sequence_parallel": [0, 1],
    "offload": [0, 1, 2],
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("moe", [{}, MOE])
def test_an_array_is_its_layouts_one_by_one(moe: dict[str, int], recipe: str) -> None:
    rng = np.random.default_rng(7)
    rows = {name: rng.choice(values, 40) for name, values in LAYOUTS.items()}
    of = of_model(ModelSpec(**{**_fields(LLAMA), **moe}))
    at_once = stage_peaks(of, Degrees(**rows), RECIPES[recipe]).reserved
    one_by_one = [
        stage_peaks(of, Degrees(**{k: v[i] for k, v in rows.items()}), RECIPES[recipe]).reserved[0]
        for i in range(40)
    ]
    np.testing.assert_allclose(at_once, one_by_one)


@given(st.fixed_dictionaries({name: st.sampled_from(v) for name, v in LAYOUTS.items()}))
def test_more_micro_batch_takes_more_and_more_sharding_no_more(layout: dict[str, int]) -> None:
    of = of_model(ModelSpec(**{**_fields(LLAMA), **MOE}))

    def need(**changes: int) -> float:
        return float(stage_peaks(of, Degrees(**(layout | changes))).allocated[0])

    assert need(micro_batch=2 * layout["micro_batch"]) > need()
    assert need(dp_shard=2 * layout["dp_shard"]) <= need()


def measured_llama(**shape: int) -> Sizes:
    return sizes(gated=1, seq_len=4096, head_dim=128, **shape)


@pytest.mark.parametrize(
    ("tp", "pp", "dp", "measured"),
    [(1, 2, 4, 66.55), (2, 1, 4, 60.68), (4, 1, 2, 39.07), (8, 1, 1, 28.29)],
)
def test_megatron_on_b200(tp: int, pp: int, dp: int, measured: float) -> None:
    """12 layers of Llama-3-70B, GiB allocated (MooreThreads/SimuMax v1.2, docs/FULL_RESULTS.md)."""
    width = {"hidden": 8192, "num_layers": 12, "ffn_hidden": 28672, "vocab": 128256}
    of = measured_llama(num_heads=64, num_kv_heads=8, **width)
    layout = Degrees(tp=tp, pp=pp, dp_shard=dp, zero=1, num_microbatches=4)
    assert stage_peaks(of, layout).allocated[0] / GIB == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(
    ("tp", "dp", "micro_batch", "measured"),
    [(4, 4, 1, 51.5), (4, 4, 2, 61.9), (8, 2, 4, 44.6), (16, 1, 1, 13.1)],
)
def test_nanotron_on_h100(tp: int, dp: int, micro_batch: int, measured: float) -> None:
    """8.86B parameters without ZeRO, GiB (Ultra-Scale Playbook, benchmarks_interactive.html)."""
    width = {"hidden": 4096, "num_layers": 32, "ffn_hidden": 14336, "vocab": 131072}
    of = measured_llama(num_heads=32, num_kv_heads=32, **width)
    layout = Degrees(tp=tp, dp_shard=dp, micro_batch=micro_batch, num_microbatches=16)
    peaks = stage_peaks(of, layout, RECIPES["nanotron"])
    assert peaks.reserved[0] / GIB == pytest.approx(measured, rel=0.08)
