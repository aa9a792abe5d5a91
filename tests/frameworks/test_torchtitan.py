"""torchtitan itself on what is emitted: 0.2's parser takes the TOML and its trainer trains with it;
0.3's parser takes the recipe."""

import json
import re
import subprocess
import sys

import pytest

from launch.framework.emitters import write
from launch.recipe import recipe_of
from tests.emitted import TITAN, plan_of, titan_plan
from tests.frameworks.installed import ask, environment, needs
from tests.frameworks.torchtitan_fields import path_of

pytestmark = pytest.mark.distributed
OLD, NEW = "torchtitan-0.2.2", "torchtitan-0.3.0"
TINY = {"batch": 8, "seq_len": 64, "precision": "fp32"}


def files_of(name, plan, folder, **recipe):
    written = write(name, plan, recipe_of(recipe), folder, None)
    for file, text in written.files.items():
        (folder / file).write_text(text)
    return written


PARSE = """
import json, sys
from dataclasses import asdict
from tests.frameworks.titan_on_cpu import on_cpu
on_cpu()
import torch
from torchtitan.config import ConfigManager

def of_toml(folder):
    config = ConfigManager().parse_args(["--job.config_file", f"{folder}/plan.toml"])
    import planned_model  # as its trainer does
    from torchtitan.protocols.train_spec import get_train_spec
    spec = get_train_spec(config.model.name)
    args = spec.model_args[config.model.flavor]
    with torch.device("meta"):
        args.update_from_config(config)
        return config, spec.model_cls(args)

def of_recipe(folder):
    config = ConfigManager().parse_args(["--module", "planned", "--config", "planned"])
    with torch.device("meta"):
        return config, config.model_spec.model.build()

found = []
for folder in sys.argv[2:]:
    sys.path.insert(0, folder)
    config, model = {"toml": of_toml, "recipe": of_recipe}[sys.argv[1]](folder)
    number = sum(p.numel() for p in set(model.parameters()))
    found.append([asdict(config.parallelism), asdict(config.training), number])
    sys.path.remove(folder)
    for name in ("planned", "planned_model"):
        sys.modules.pop(name, None)
from tests.frameworks.torchtitan_fields import fields
print(json.dumps([found, fields()]))
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


@pytest.mark.parametrize(
    ("framework", "release", "kind"),
    [
        pytest.param("torchtitan-0.2", OLD, "toml", marks=needs(OLD)),
        pytest.param("torchtitan", NEW, "recipe", marks=needs(NEW)),
    ],
)
def test_its_parser_takes_the_file_and_its_model_is_the_planned_one(
    framework, release, kind, tmp_path
):
    plans = {name: titan_plan(name) for name in TITAN}
    for name, plan in plans.items():
        (tmp_path / name).mkdir()
        files_of(framework, plan, tmp_path / name)
    folders = [str(tmp_path / name) for name in plans]
    found, fields = ask(release, "-c", PARSE, kind, *folders, ROPE_SCALING_FACTOR="8")
    for plan, read in zip(plans.values(), found, strict=True):
        check(plan, *read)
    known = path_of(release.replace("-", " ")).read_text(encoding="utf-8")
    assert fields == json.loads(known)  # which unit tests check emitted fields against


@needs(OLD)
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
    env = environment(
        OLD,
        TOKENIZER=str(write_tokenizer(tmp_path / "tokenizer")),
        DATASET="c4_test",
        DATASET_PATH=str(write_data(tmp_path / "data")),
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        ["bash", str(script), *torchrun], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(x) for x in re.findall(r"step: +\d+ +loss: +(\d+\.\d+)", done.stdout)]
    assert len(losses) >= 6
    assert losses[-1] < losses[0] - 0.5
