"""A plan for Hugging Face Accelerate: `accelerate.yaml`, FSDP2 with its `ParallelismConfig`.

`accelerate launch` starts the ranks of each node itself, with a script of the user's. Its mesh is
(dp_replicate, dp_shard, cp, tp), row-major, and weights are sharded over dp_shard and cp together.
Source: `accelerate/commands/config/config_args.py`, `commands/launch.py` and
`parallelism_config.py` of accelerate 1.15.0.
"""

from collections.abc import Iterator

import yaml

from launch.framework import library_words as words
from launch.framework.base import Emitted, Refusal, in_row_major_order
from launch.framework.native import DEFAULT_PORT, nodes_of
from launch.recipe import Recipe
from planner.plan import Plan

RELEASE = "accelerate 1.15.0"
_COMM = {"ring": "alltoall", "all_gather": "allgather"}


def emit(plan: Plan, recipe: Recipe) -> tuple[Plan, Emitted]:
    """The plan with its ranks in the mesh's order, and its file; `UserError` where Accelerate
    cannot run it."""
    ordered = in_row_major_order(plan, RELEASE, refusals(plan))
    config = plan.chosen.config
    note = (
        f"# Plan {plan.id}, {config.label}, for {RELEASE}.\n"
        f"# The script's batch is {config.micro_batch} sequences of {plan.job.seq_len} tokens, "
        f"its gradient_accumulation_steps {words.accumulation(plan)}.\n"
    )
    return ordered, Emitted(
        title=RELEASE,
        files={"accelerate.yaml": note + yaml.safe_dump(settings(ordered), sort_keys=False)},
        words=(
            'accelerate launch --config_file "$HERE/accelerate.yaml"',
            '--machine_rank "${NODE_RANK:-0}" --main_process_ip "${HEAD_NODE:-127.0.0.1}"',
            f'--main_process_port "${{PORT:-{DEFAULT_PORT}}}"',
            f"--gradient_accumulation_steps {words.accumulation(plan)}",
            words.RUN_SCRIPT,
        ),
        starts_ranks=True,
        needs=(words.SCRIPT_NEED,),
        differs=tuple(_differs(plan, recipe)),
    )


def refusals(plan: Plan) -> Iterator[Refusal]:
    """What Accelerate cannot."""
    config = plan.chosen.config
    yield from words.no_axes(plan, "it", "pp", "ep", "etp")
    yield from words.no_placement(plan)
    yield from words.no_precision_but(plan, "bf16", "fp16", "fp32")
    if config.zero == 1:
        yield Refusal("FSDP2 shards gradients with the optimizer", "zero=2")
    elif config.zero == 0 and config.dp_replicate > 1 and config.tp * config.cp > 1:
        yield Refusal("it replicates nothing but whole models without sharding", "zero=2")
    if config.cp > 1 and config.cp_method not in _COMM:
        yield Refusal(f"it has no cp by {config.cp_method} with FSDP2", "cp_method=all_gather")
    yield from words.no_selective(plan)
    if config.offload != "none":
        yield Refusal(f"FSDP2 has no offload of {config.offload} alone", "offload=none")


def settings(plan: Plan) -> dict[str, object]:
    """Content of `accelerate.yaml`."""
    config, nodes = plan.chosen.config, nodes_of(plan)
    sharded = config.zero > 0 or config.tp * config.cp > 1
    found: dict[str, object] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if sharded else ("MULTI_GPU" if len(nodes) > 1 else "NO"),
        "mixed_precision": "no" if plan.job.precision == "fp32" else plan.job.precision,
        "num_machines": len(set(nodes)),
        "num_processes": len(nodes),
        "rdzv_backend": "static",
        "same_network": True,
        "main_training_function": "main",
        "use_cpu": plan.cluster.groups[0].device.is_host,
    }
    if not sharded:
        return found
    parallelism: dict[str, object] = {
        "dp_replicate_size": config.dp_replicate,
        "dp_shard_size": config.dp_shard,
        "tp_size": config.tp,
        "cp_size": config.cp,
    }
    if config.cp > 1:
        parallelism["cp_comm_strategy"] = _COMM[config.cp_method]
    return found | {
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": config.zero == 3,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_activation_checkpointing": words.recompute_of(plan) == "full",
            "fsdp_offload_params": False,
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        },
        "parallelism_config": {f"parallelism_config_{k}": v for k, v in parallelism.items()},
    }


def _differs(plan: Plan, recipe: Recipe) -> Iterator[str]:
    config = plan.chosen.config
    if config.zero == 2:
        yield "weights are sharded too, gathered once a step."
    if config.zero == 0 and config.cp > 1:
        yield "weights are sharded over the ranks of a context-parallel group."
    if config.tp > 1:
        yield "activations between layers are whole on each tp rank (no sequence parallelism)."
    yield (
        "the model, the optimizer, clipping, steps, the seed and checkpoints are the script's "
        f"(planned learning rate: {recipe.learning_rate:g})."
    )
