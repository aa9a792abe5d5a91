"""`python -m tests.frameworks.megatron_on_cpu`: Megatron-LM's own reading of its arguments, and
Megatron-Bridge's of its recipes.

Both need kernels of a GPU to train, and import them to read. Here what they import of these is
empty, torch says that there is an H100, and nothing is compiled. Input: a JSON list of jobs,
`{"world": RANKS, "env": {...}}` with `argv` or `recipe`, a path. Output: what each was read as.
"""

import contextlib
import json
import os
import runpy
import sys
import typing
import warnings

import torch
import torch._dynamo
import torch._inductor.standalone_compile
import typing_extensions

from tests.frameworks.empty_modules import EmptyModules

EMPTY = (
    "datasets",
    "megatron.energon",
    "modelopt",
    "nvidia_resiliency_ext",
    "omegaconf",
    "torch.utils.tensorboard",
    "torch.utils.tensorboard.writer",
    "transformer_engine",
    "transformers.modeling_attn_mask_utils",
    "triton",
)
ARGUMENTS = (
    "data_parallel_size", "virtual_pipeline_model_parallel_size", "padded_vocab_size", "seed",
    "sequence_parallel", "global_batch_size", "expert_tensor_parallel_size",
    "use_distributed_optimizer", "lr_decay_iters", "num_experts",
)  # fmt: skip


class _Device:
    name, major, minor, multi_processor_count = "H100", 9, 0, 132


def on_cpu():
    """Make torch answer for a GPU, and imports of kernels succeed."""
    warnings.simplefilter("ignore")
    sys.meta_path.insert(0, EmptyModules("megatron", EMPTY))
    typing.override = typing_extensions.override  # of Python 3.12
    torch.compile = lambda function=None, **kwargs: function or (lambda made: made)
    torch.cuda.get_device_capability = lambda *args: (9, 0)
    torch.cuda.get_device_properties = lambda *args, **kwargs: _Device


def arguments(argv):
    """What Megatron-LM makes of a command line; it raises for what it does not take."""
    from megatron.training.arguments import (
        core_transformer_config_from_args,
        parse_args,
        validate_args,
    )

    sys.argv = ["pretrain_gpt.py", *argv]
    args = parse_args()
    validate_args(args)
    core_transformer_config_from_args(args)
    return {name: getattr(args, name) for name in ARGUMENTS}


def recipe(path):
    """What Megatron-Bridge makes of a recipe before it trains."""
    from megatron.bridge.training.config import runtime_config_update

    config = runpy.run_path(path, run_name="planned")["planned"]()
    runtime_config_update(config)
    return {
        "data_parallel_size": config.data_parallel_size,
        "virtual_pipeline_model_parallel_size": config.model.virtual_pipeline_model_parallel_size,
        "padded_vocab_size": config.model.vocab_size,
        "seed": config.rng.seed,
        "sequence_parallel": config.model.sequence_parallel,
        "global_batch_size": config.train.global_batch_size,
        "expert_tensor_parallel_size": config.model.expert_tensor_parallel_size,
        "use_distributed_optimizer": config.optimizer.use_distributed_optimizer,
        "lr_decay_iters": config.scheduler.lr_decay_iters,
        "num_experts": config.model.num_moe_experts,
    }


def main():
    """Read what is asked for."""
    on_cpu()
    found = []
    for job in json.load(sys.stdin):
        os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
        os.environ |= {"WORLD_SIZE": str(job["world"]), "RANK": "0", "LOCAL_RANK": "0"} | job["env"]
        with contextlib.redirect_stdout(sys.stderr):
            found.append(arguments(job["argv"]) if "argv" in job else recipe(job["recipe"]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
