"""Megatron-LM's own parser and checks on the arguments that the script gives it, and
Megatron-Bridge's on its recipe."""

import json
import os
import subprocess

import pytest

from launch.framework.emitters import write
from launch.recipe import recipe_of
from tests.emitted import MEGATRON, megatron_plan, plan_of
from tests.frameworks import bridge_fields, megatron_flags
from tests.frameworks.installed import FOLDER, ask, needs

RELEASE = "megatron-0.19.2"
pytestmark = [pytest.mark.distributed, needs(RELEASE)]
SET = {
    "MEGATRON": "/m",
    "DATA_PATH": "mock",
    "TOKENIZER": "none",
    "SAVE": "/s",
    "ROPE_ARGS": "--rope-type yarn --rotary-scaling-factor 40",
}
PRECISIONS = ("fp16", "fp4", "fp32")
NAMES = (*MEGATRON, *PRECISIONS)
RECIPE = {"checkpoint_every": 5, "lr_warmup_steps": 12}


def named(name):
    """A plan of the table, or one of a precision that it lacks."""
    if name not in PRECISIONS:
        return megatron_plan(name)
    return plan_of("llama3-8b", "h100-1x8", dp_shard=4, tp=2, zero=1, precision=name)


def job_of(framework, name, folder):
    """What is to be read of a plan; one of them with data."""
    plan = named(name)
    given = SET | ({"DATA_PATH": "/d"} if name == "zero1" else {})
    written = write(framework, plan, recipe_of(RECIPE), folder, None)
    for file, text in written.files.items():
        (folder / file).write_text(text)
    job = {"world": plan.chosen.config.num_devices, "env": dict(written.emitted.env) | given}
    if framework == "megatron-bridge":
        return job | {"recipe": str(folder / "planned.py")}
    printed = subprocess.run(
        ["bash", str(folder / "train.sh"), "printf", "%s\\0"],
        capture_output=True, text=True, env=os.environ | given, check=True,
    )  # fmt: skip
    return job | {"argv": printed.stdout.split("\0")[1:-1]}


@pytest.mark.parametrize("framework", ["megatron", "megatron-bridge"])
def test_it_reads_what_the_plan_says(framework, tmp_path):
    # No recipe is written for its rotary scaling.
    names = [n for n in NAMES if (framework, n) != ("megatron-bridge", "moe-mla")]
    jobs = []
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        jobs.append(job_of(framework, name, folder))
    found = ask(RELEASE, "-P", "-m", "tests.frameworks.megatron_on_cpu", given=jobs)
    for name, read in zip(names, found, strict=True):
        plan = named(name)
        model, c = plan.model, plan.chosen.config
        assert read == {
            "data_parallel_size": c.num_replicas,
            "virtual_pipeline_model_parallel_size": c.vpp if c.vpp > 1 else None,
            "padded_vocab_size": model.vocab_size,
            "seed": 1,
            "sequence_parallel": c.tp > 1,
            "global_batch_size": plan.job.global_batch,
            "expert_tensor_parallel_size": c.etp if model.num_experts else c.tp,
            "use_distributed_optimizer": c.zero > 0,
            "lr_decay_iters": 13,
            "num_experts": model.num_experts or None,
        }, name


LIST = """
import json
from tests.frameworks.megatron_on_cpu import on_cpu
on_cpu()
from tests.frameworks.megatron_flags import arguments
print(json.dumps(arguments()))
"""


def test_the_lists_are_those_of_the_releases():
    """Which unit tests check emitted arguments and fields against."""
    known = json.loads(megatron_flags.PATH.read_text(encoding="utf-8"))
    assert ask(RELEASE, "-c", LIST) == known
    of_bridge = json.loads(bridge_fields.PATH.read_text(encoding="utf-8"))
    assert bridge_fields.fields([FOLDER / RELEASE]) == of_bridge
