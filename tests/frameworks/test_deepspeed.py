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


RATES = """
import json, sys
import torch
from deepspeed.runtime import lr_schedules
found = []
for content, num_steps in json.load(sys.stdin):
    given = content["scheduler"]
    rate = content["optimizer"]["params"]["lr"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = getattr(lr_schedules, given["type"])(optimizer, **given["params"])
    rates = []
    for _ in range(num_steps):
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    found.append(rates)
print()
print(json.dumps(found))
"""


def test_its_learning_rates_are_those_of_the_recipe():
    """At the ends of the warm-up and of the schedule; its cosine is a step early."""
    plan = deepspeed_plan("zero3")
    changes = {"lr_warmup_steps": 4, "lr_total_steps": 20, "learning_rate": 1e-3}
    recipes = [recipe_of(changes | {"lr_schedule": name}) for name in ("constant", "cosine")]
    contents = [json.loads(deepspeed.emit(plan, r)[1].files["deepspeed.json"]) for r in recipes]
    constant, cosine = ask(RELEASE, "-c", RATES, given=[(c, 21) for c in contents])
    assert constant[:3] == pytest.approx([0.0, 1e-3 / 4, 2e-3 / 4])
    assert set(constant[4:]) == {1e-3}
    assert max(cosine) == cosine[4] == pytest.approx(1e-3, rel=0.01)
    assert cosine[11] == pytest.approx(0.55e-3)
    assert cosine[19] == pytest.approx(1e-4)
