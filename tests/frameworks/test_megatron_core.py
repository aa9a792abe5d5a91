"""Megatron-Core itself on what is emitted: its configuration takes it, and it puts ranks together
as the plan does. No GPU, no process."""

import random

import numpy as np
import pytest

pytest.importorskip("megatron.core", reason="megatron-core is not installed")

import contextlib
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from megatron.core.parallel_state import RankGenerator

from launch.recipe import recipe_of
from planner.config import ParallelConfig
from tests.emitted import MEGATRON, megatron_plan
from tests.frameworks.megatron_config import config_of
from tests.unit.test_megatron import options_of

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("name", MEGATRON)
def test_its_configuration_is_built(name, monkeypatch):
    from megatron.core.transformer import transformer_config

    # Looked for, not used: its kernels need a GPU.
    for probe in ("is_te_min_version", "get_te_version"):
        if hasattr(transformer_config, probe):
            monkeypatch.setattr(transformer_config, probe, lambda *args, **kwargs: True)
    plan = megatron_plan(name)
    model, config = plan.model, plan.chosen.config
    with contextlib.redirect_stdout(None):
        built = config_of(options_of(plan, recipe_of({})))
    assert (built.num_layers, built.hidden_size) == (model.num_layers, model.hidden_size)
    assert built.num_attention_heads == model.num_heads
    assert built.tensor_model_parallel_size == config.tp
    assert built.context_parallel_size == config.cp
    assert built.sequence_parallel == (config.tp > 1)
    assert (built.virtual_pipeline_model_parallel_size or 1) == config.vpp
    layout = built.pipeline_model_parallel_layout
    if layout is not None:
        stages = plan.chosen.placement.layers_per_stage(model.num_layers)
        assert [layout.get_num_layers_to_build(pp_rank=r) for r in range(config.pp)] == [*stages]
    if model.num_experts:
        assert built.num_moe_experts == model.num_experts
        assert built.expert_model_parallel_size == config.ep
        assert built.moe_shared_expert_intermediate_size == (model.shared_ffn_hidden_size or None)


def groups(grid, axes):
    """Sets of ranks of a grid that differ along the axes alone."""
    rest = [axis for axis in range(grid.ndim) if axis not in axes]
    size = int(np.prod([grid.shape[axis] for axis in axes]))
    return {frozenset(row) for row in grid.transpose(*rest, *axes).reshape(-1, size).tolist()}


@pytest.mark.parametrize("seed", range(8))
def test_ranks_belong_together_as_in_the_plan(seed):
    """(pp, dp, cp, tp) and (pp, edp, ep, etp), row-major: Megatron's default order."""
    draw = random.Random(seed)
    c = ParallelConfig(
        pp=draw.choice((1, 2, 3)), dp_replicate=draw.choice((1, 2)), dp_shard=draw.choice((1, 4)),
        cp=draw.choice((1, 2)), tp=draw.choice((1, 2, 4)), ep=draw.choice((1, 2)), etp=1,
        micro_batch=1, recompute="none", schedule="1f1b",
    )  # fmt: skip
    ep = c.ep if c.stage_ranks % c.ep == 0 else 1
    order = "tp-cp-ep-dp-pp"
    dense = RankGenerator(tp=c.tp, ep=1, dp=c.num_replicas, pp=c.pp, cp=c.cp, order=order)
    experts = RankGenerator(tp=1, ep=ep, dp=c.stage_ranks // ep, pp=c.pp, cp=1, order=order)
    grid = np.arange(c.num_devices).reshape(c.pp, c.num_replicas, c.cp, c.tp)
    of_experts = np.arange(c.num_devices).reshape(c.pp, c.stage_ranks // ep, ep)
    for token, axes in {"pp": [0], "dp": [1], "cp": [2], "tp": [3], "dp-cp": [1, 2]}.items():
        assert {frozenset(g) for g in dense.get_ranks(token)} == groups(grid, axes)
    for token, axis in {"pp": 0, "dp": 1, "ep": 2}.items():
        assert {frozenset(g) for g in experts.get_ranks(token)} == groups(of_experts, [axis])


def test_the_pipeline_inside_the_replicas():
    """--use-tp-pp-dp-mapping: the order that `ordered_ranks` counts on."""
    found = RankGenerator(tp=4, ep=1, dp=2, pp=2, cp=1, order="tp-cp-ep-pp-dp").get_ranks("pp")
    grid = np.arange(16).reshape(2, 2, 4)
    assert {frozenset(g) for g in found} == groups(grid, [1])
