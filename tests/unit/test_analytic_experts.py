"""Experts in the analytic profile and in the memory model, against sums by hand."""

import pytest

from planner.block_memory import local_params
from profiler.codec import replace
from profiler.model import ModelSpec
from profiler.profile import BlockEntry
from tests.unit import facts
from tests.unit.roofline import analytic_profile

MOE = facts.model(
    family="qwen3_moe", num_experts=8, num_experts_per_token=2, expert_ffn_hidden_size=48
)
SHARED = replace(MOE, family="qwen2_moe", shared_ffn_hidden_size=96, shared_gate=True)
DENSE_FIRST = replace(MOE, first_dense_layers=2)


def entry(model: ModelSpec, kind: str, tp: int = 1, micro_batch: int = 2) -> BlockEntry:
    profile = analytic_profile(model, facts.job(), facts.cluster())
    return next(
        e for e in profile.blocks if (e.block, e.tp, e.micro_batch) == (kind, tp, micro_batch)
    )


def test_a_model_with_dense_layers_first_has_entries_of_both_kinds() -> None:
    profile = analytic_profile(DENSE_FIRST, facts.job(), facts.cluster())
    assert [*dict.fromkeys(e.block for e in profile.blocks)] == ["embed", "dense", "moe", "head"]
    assert entry(DENSE_FIRST, "dense") == entry(facts.model(), "dense")
    assert entry(DENSE_FIRST, "moe") == entry(MOE, "moe")


@pytest.mark.parametrize("tp", [1, 2])
def test_what_a_moe_layer_keeps(tp: int) -> None:
    tokens, h, q, e, k, x, y = 2 * 32, 64, 64, 8, 2, 48 / tp, 96 / tp
    attention = h / tp + h + 4 * q / tp
    routed = h / tp + h + e + k * (2 * h + 4 * x)
    assert entry(MOE, "moe", tp).saved_bytes == 4 * tokens * (attention + routed)
    assert entry(SHARED, "moe", tp).saved_bytes == 4 * tokens * (attention + routed + 4 * y + h)


def test_shared_experts_take_time_and_wider_experts_more() -> None:
    def forward(model: ModelSpec) -> float:
        timing = entry(model, "moe").forward
        assert timing is not None
        return timing.median_s

    assert forward(MOE) < forward(replace(SHARED, shared_gate=False)) < forward(SHARED)
    assert forward(MOE) < forward(replace(MOE, expert_ffn_hidden_size=0))  # the dense width


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_parameters_of_a_rank(tp: int) -> None:
    h, e = 64, 8
    attention, experts, shared = 4 * h * h, e * 3 * h * 48, 3 * h * 96
    whole = 2 * h + h * e  # norms and router
    assert local_params(MOE, "moe", tp) == whole + (attention + experts) // tp
    assert local_params(SHARED, "moe", tp) == whole + h + (attention + experts + shared) // tp
    assert local_params(DENSE_FIRST, "dense", tp) == local_params(facts.model(), "dense", tp)
    assert local_params(SHARED, "moe", 1) == SHARED.block_params("moe")
