"""torchtitan itself on what is emitted: 0.2's parser takes the TOML and its trainer trains with it;
0.3's parser takes the recipe. torchtitan brings 300 MB of libraries that nothing else here needs,
so it is not among what `make` installs: `pip install torchtitan==0.2.2`, or 0.3.0, to run these."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from launch.framework import torchtitan_recipe, torchtitan_toml
from launch.framework.emitters import write
from launch.recipe import recipe_of
from tests.emitted import TITAN, plan_of, titan_plan

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).resolve().parents[2]
try:
    RELEASE = f"torchtitan {version('torchtitan')}"
except PackageNotFoundError:
    RELEASE = ""
OLD = pytest.mark.skipif(
    torchtitan_toml.RELEASE != RELEASE, reason=f"{torchtitan_toml.RELEASE} is not installed"
)
NEW = pytest.mark.skipif(
    torchtitan_recipe.RELEASE != RELEASE, reason=f"{torchtitan_recipe.RELEASE} is not installed"
)
TINY = {"batch": 8, "seq_len": 64, "precision": "fp32"}


def python(code, folder, *args):
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "ROPE_SCALING_FACTOR": "8"}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def files_of(name, plan, folder, **recipe):
    written = write(name, plan, recipe_of(recipe), folder, None)
    for file, text in written.files.items():
        (folder / file).write_text(text)
    return written


PARSE_TOML = """
import json, sys
from tests.frameworks.titan_on_cpu import on_cpu
on_cpu()
from torchtitan.config import ConfigManager
config = ConfigManager().parse_args(["--job.config_file", sys.argv[1]])
import planned_model
from torchtitan.protocols.train_spec import get_train_spec
from dataclasses import asdict
args = get_train_spec(config.model.name).model_args[config.model.flavor]
import torch
with torch.device("meta"):
    args.update_from_config(config)
    model = get_train_spec(config.model.name).model_cls(args)
number = sum(p.numel() for p in set(model.parameters()))
print(json.dumps([asdict(config.parallelism), asdict(config.training), number]))
"""
PARSE_RECIPE = """
import json
from tests.frameworks.titan_on_cpu import on_cpu
on_cpu()
from torchtitan.config import ConfigManager
config = ConfigManager().parse_args(["--module", "planned", "--config", "planned"])
import torch
with torch.device("meta"):
    model = config.model_spec.model.build()
from dataclasses import asdict
number = sum(p.numel() for p in set(model.parameters()))
print(json.dumps([asdict(config.parallelism), asdict(config.training), number]))
"""


def check(plan, parallelism, training, num_params):
    config = plan.chosen.config
    assert num_params == plan.model.num_params
    assert parallelism["tensor_parallel_degree"] == config.tp
    assert parallelism["data_parallel_shard_degree"] == config.dp_shard
    assert parallelism["data_parallel_replicate_degree"] == config.dp_replicate
    assert parallelism["context_parallel_degree"] == config.cp
    assert parallelism["expert_parallel_degree"] == config.ep
    assert training["global_batch_size"] == plan.job.global_batch
    parts = parallelism["module_fqns_per_model_part"] or []
    assert len(parts) == (config.num_stages if config.pp > 1 else 0)


@OLD
@pytest.mark.parametrize("name", TITAN)
def test_its_parser_takes_the_toml_and_its_model_is_the_planned_one(name, tmp_path):
    plan = titan_plan(name)
    files_of("torchtitan-0.2", plan, tmp_path)
    check(plan, *python(PARSE_TOML, tmp_path, str(tmp_path / "plan.toml")))


@NEW
@pytest.mark.parametrize("name", TITAN)
def test_its_parser_takes_the_recipe_and_its_model_is_the_planned_one(name, tmp_path):
    plan = titan_plan(name)
    files_of("torchtitan", plan, tmp_path)
    check(plan, *python(PARSE_RECIPE, tmp_path))


@OLD
@pytest.mark.parametrize(
    "degrees", [{"dp_shard": 2, "zero": 3, "recompute": "full"}, {"pp": 2}], ids=["fsdp", "pp"]
)
def test_it_trains_with_what_is_emitted(degrees, tmp_path):
    from tests.frameworks.titan_data import write_data, write_tokenizer

    files_of("torchtitan-0.2", plan_of("tiny-llama", "cpu-1x2", **TINY, **degrees), tmp_path,
             steps=4, learning_rate=1e-3)  # fmt: skip
    script = tmp_path / "train.sh"
    text = script.read_text().replace("-m torchtitan.train", "-m tests.frameworks.titan_on_cpu")
    script.write_text(text)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "TOKENIZER": str(write_tokenizer(tmp_path / "tokenizer")),
        "DATASET": "c4_test",
        "DATASET_PATH": str(write_data(tmp_path / "data")),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        ["bash", str(script), *torchrun], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(x) for x in re.findall(r"step: +\d+ +loss: +(\d+\.\d+)", done.stdout)]
    assert len(losses) >= 6
    assert losses[-1] < losses[0] - 0.5
