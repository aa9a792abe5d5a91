"""DeepSpeed's own configuration class on what is emitted. It is built from source by pip, so it is
not among what `make` installs: `pip install deepspeed==0.19.8` to run these."""

import json

import pytest

pytest.importorskip("deepspeed", reason="deepspeed is not installed")
from deepspeed import comm
from deepspeed.runtime.config import DeepSpeedConfig

from launch.framework import deepspeed
from launch.recipe import recipe_of
from tests.emitted import DEEPSPEED, deepspeed_plan

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("name", DEEPSPEED)
def test_its_configuration_is_built(name, monkeypatch):
    plan = deepspeed_plan(name)
    config = plan.chosen.config
    _, emitted = deepspeed.emit(plan, recipe_of({"clip_norm": 1.0}))
    monkeypatch.setattr(comm, "get_rank", lambda *args: 0)
    monkeypatch.setattr(comm, "get_world_size", lambda *args: config.num_replicas)
    built = DeepSpeedConfig(json.loads(emitted.files["deepspeed.json"]))
    assert built.train_batch_size == plan.job.global_batch
    assert built.train_micro_batch_size_per_gpu == config.micro_batch
    assert built.gradient_accumulation_steps == config.num_microbatches(plan.job)
    assert built.zero_optimization_stage == config.zero
    assert built.gradient_clipping == 1.0
    assert built.tensor_parallel_config.autotp_size in (0, config.tp)
    if config.pp > 1:
        assert built.pipeline["stages"] == config.pp
