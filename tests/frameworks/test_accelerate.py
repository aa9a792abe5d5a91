"""Accelerate itself on what is emitted: `accelerate launch` reads the file, and its
`ParallelismConfig` is the planned one. No GPU, no process."""

import os

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed")
from accelerate import ParallelismConfig
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from launch.framework import accelerate
from launch.recipe import recipe_of
from tests.emitted import ACCELERATE, accelerate_plan

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("name", ACCELERATE)
def test_its_launcher_takes_the_file(name, tmp_path, monkeypatch):
    plan = accelerate_plan(name)
    config = plan.chosen.config
    _, emitted = accelerate.emit(plan, recipe_of({}))
    path = tmp_path / "accelerate.yaml"
    path.write_text(emitted.files["accelerate.yaml"])
    loaded = ClusterConfig.from_yaml_file(str(path))
    assert (loaded.num_processes, loaded.num_machines) == (config.num_devices, NODES[name])
    steps = emitted.words[3].split()
    words = ["--config_file", str(path), "--main_process_ip", "127.0.0.1", *steps, "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    env = prepare_multi_gpu_env(args)
    if name == "ddp":
        assert env.get("ACCELERATE_USE_FSDP") is None
        return
    assert env["FSDP_VERSION"] == "2"
    assert env["FSDP_RESHARD_AFTER_FORWARD"].lower() == str(config.zero == 3).lower()
    assert env["FSDP_ACTIVATION_CHECKPOINTING"].lower() == str(config.recompute == "full").lower()
    for key, value in env.items():
        if key.startswith(("PARALLELISM_CONFIG", "ACCELERATE", "FSDP")):
            monkeypatch.setenv(key, value)
    found = ParallelismConfig()
    sizes = (found.dp_replicate_size, found.dp_shard_size, found.cp_size, found.tp_size)
    assert sizes == (config.dp_replicate, config.dp_shard, config.cp, config.tp)
    assert found.total_size == config.num_devices
    if config.cp > 1:
        assert found.cp_handler.cp_comm_strategy == "allgather"
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


NODES = {"fsdp": 2, "ddp": 1, "tp": 1, "long": 1}
