"""A plan for DeepSpeed: `deepspeed.json`, given to a script of the user's that torchrun starts.

ZeRO by its stage over all replicas (MiCS, for groups of them, is gone), AutoTP, and the pipeline
engine, whose ranks are (pipe, data) and (data, tensor), row-major. Source: its documentation
(www.deepspeed.ai/docs/config-json, tutorials/autotp-training) and `deepspeed/runtime/config.py`.
"""

from collections.abc import Iterator

from launch.framework import library_words as words
from launch.framework.base import Emitted, Need, Refusal, in_row_major_order
from launch.recipe import Recipe
from planner.plan import Plan
from profiler.codec import canonical

RELEASE = "deepspeed 0.19.8"
_STAGES = Need(
    name="STAGES_ARG", meaning="the script's option for the number of stages", default="--stages"
)


def emit(plan: Plan, recipe: Recipe) -> tuple[Plan, Emitted]:
    """The plan with its ranks in DeepSpeed's order, and its file; `UserError` where DeepSpeed
    cannot run it."""
    ordered = in_row_major_order(plan, RELEASE, refusals(plan))
    config = plan.chosen.config
    pipeline = (f'"$STAGES_ARG" {config.pp}',) if config.pp > 1 else ()
    return ordered, Emitted(
        title=RELEASE,
        files={"deepspeed.json": canonical(settings(plan, recipe))},
        words=(
            words.RUN_SCRIPT,
            '--deepspeed --deepspeed_config "$HERE/deepspeed.json"',
            *pipeline,
        ),
        needs=(words.SCRIPT_NEED, *((_STAGES,) if config.pp > 1 else ())),
        differs=tuple(_differs(plan, recipe)),
    )


def refusals(plan: Plan) -> Iterator[Refusal]:
    """What DeepSpeed cannot by its configuration."""
    c = plan.chosen.config
    yield from words.no_axes(plan, "its file", "cp", "ep", "etp")
    yield from words.no_placement(plan)
    yield from words.no_precision_but(plan, "bf16", "fp16", "fp32")
    if c.pp > 1 and (c.schedule != "1f1b" or c.vpp > 1):
        yield Refusal(f"its pipeline runs 1f1b, not {c.schedule}", "schedule=1f1b")
    if c.pp > 1 and c.tp > 1:
        yield Refusal("AutoTP goes with no pipeline", "pp=1")
    if c.pp > 1 and c.zero > 1:
        yield Refusal("its pipeline takes ZeRO 1 at most", "zero=1")
    if c.tp > 1 and c.zero > 2:
        yield Refusal("AutoTP takes ZeRO 2 at most", "zero=2")
    if c.dp_replicate > 1 and c.dp_shard > 1:
        yield Refusal("it shards over all replicas", "dp_replicate=1")
    if c.offload == "activations":
        yield Refusal("its configuration offloads the optimizer and weights", "offload=none")
    if c.offload == "optimizer" and c.zero == 0:
        yield Refusal("it offloads the optimizer of ZeRO", "offload=none")
    layers = plan.chosen.placement.layers_per_stage(plan.model.num_layers)
    if max(layers) - min(layers) > 1:
        yield Refusal("its pipeline cuts the layers evenly or by parameters", "pp=1")


def settings(plan: Plan, recipe: Recipe) -> dict[str, object]:
    """Content of `deepspeed.json`."""
    config, job = plan.chosen.config, plan.job
    zero: dict[str, object] = {"stage": config.zero, "overlap_comm": config.zero > 0}
    if config.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    found: dict[str, object] = {
        "train_batch_size": job.global_batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": words.accumulation(plan),
        "zero_optimization": zero,
        "gradient_clipping": recipe.clip_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": recipe.learning_rate,
                "betas": [recipe.beta1, recipe.beta2],
                "eps": recipe.epsilon,
                "weight_decay": recipe.weight_decay,
            },
        },
        "steps_per_print": 1,
        **_scheduler(recipe),
    }
    if job.precision in ("bf16", "fp16"):
        found[job.precision] = {"enabled": True}
        if config.zero:  # without ZeRO it takes no other type than the weights'
            found["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.tp > 1:
        found["tensor_parallel"] = {"autotp_size": config.tp}
    if config.pp > 1:
        found["pipeline"] = {"stages": config.pp, "partition": "uniform"}
    return found


def _scheduler(recipe: Recipe) -> dict[str, object]:
    """`deepspeed/runtime/lr_schedules.py`; a warm-up has two steps at least."""
    params: dict[str, object] = {
        "warmup_num_steps": max(1, recipe.lr_warmup_steps),
        "warmup_type": "linear",
    }
    if recipe.lr_schedule == "cosine":
        kind = "WarmupCosineLR"
        params |= {"total_num_steps": recipe.lr_steps, "cos_min_ratio": recipe.min_lr_ratio}
    elif recipe.lr_warmup_steps:
        kind = "WarmupLR"
        params |= {"warmup_min_lr": 0.0, "warmup_max_lr": recipe.learning_rate}
    else:
        return {}
    return {"scheduler": {"type": kind, "params": params}}


def _differs(plan: Plan, recipe: Recipe) -> Iterator[str]:
    config = plan.chosen.config
    yield "the model, sequences, steps, the seed and checkpoints are the script's."
    if recipe.lr_schedule == "wsd":
        yield "it has no wsd: the learning rate does not fall by itself."
    if recipe.weight_decay:
        yield "weights of norms decay too, unless the script groups its parameters."
    if config.zero == 0 and plan.job.precision != "fp32":
        yield f"without ZeRO, gradients are summed in {plan.job.precision}."
    if config.pp > 1:
        yield (
            f"the script makes its PipelineModule with num_stages={config.pp} and "
            "partition_method='uniform'."
        )
    if config.tp > 1:
        yield "activations between layers are whole on each tp rank (no sequence parallelism)."
    if words.recompute_of(plan) != "none":
        yield f"recomputation ({words.recompute_of(plan)}) is the script's to switch on."
