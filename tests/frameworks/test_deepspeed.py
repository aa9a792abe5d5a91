"""DeepSpeed's own configuration class on what is emitted."""

import json

import pytest

from launch.framework import deepspeed
from launch.recipe import recipe_of
from tests.emitted import DEEPSPEED, deepspeed_plan
from tests.frameworks.installed import ask, needs

RELEASE = "deepspeed-0.19.8"
pytestmark = [pytest.mark.distributed, needs(RELEASE)]
BUILD = """
import json, sys
from deepspeed import comm
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.lr_schedules import VALID_LR_SCHEDULES
built = []
for content, num_replicas in json.load(sys.stdin):
    comm.get_rank = lambda *args: 0
    comm.get_world_size = lambda *args, n=num_replicas: n
    c = DeepSpeedConfig(content)
    built.append([
        c.train_batch_size, c.train_micro_batch_size_per_gpu, c.gradient_accumulation_steps,
        c.zero_optimization_stage, c.gradient_clipping, c.grad_accum_dtype,
        c.tensor_parallel_config.autotp_size, c.pipeline["stages"],
        c.optimizer_name, c.scheduler_name in VALID_LR_SCHEDULES,
    ])
print()
print(json.dumps(built))
"""


def test_its_configuration_is_built():
    recipe = recipe_of({"clip_norm": 1.0, "lr_schedule": "cosine"})
    plans = [deepspeed_plan(name) for name in DEEPSPEED]
    contents = [
        json.loads(deepspeed.emit(plan, recipe)[1].files["deepspeed.json"]) for plan in plans
    ]
    given = [(c, p.chosen.config.num_replicas) for c, p in zip(contents, plans, strict=True)]
    for plan, built in zip(plans, ask(RELEASE, "-c", BUILD, given=given), strict=True):
        c = plan.chosen.config
        assert built == [
            plan.job.global_batch, c.micro_batch, c.num_microbatches(plan.job), c.zero, 1.0, "fp32",
            c.tp if c.tp > 1 else 0, c.pp if c.pp > 1 else "auto", "adamw", True,
        ]  # fmt: skip
