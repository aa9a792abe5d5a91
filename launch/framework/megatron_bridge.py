"""A plan as a recipe of Megatron-Bridge (of NeMo): `planned.py`, a `ConfigContainer`.

It is the plan's arguments of Megatron-LM (`launch.framework.megatron`), each in the field of
Megatron-Bridge's configuration that has its meaning: `FIELDS` for those of another name or class,
the model's for all others. Source: `megatron/bridge/training/config.py`, `models/gpt_provider.py`
and `training/mixed_precision.py` of megatron-bridge 0.6.2, on megatron-core 0.19.
"""

from collections.abc import Iterator

from launch.framework import megatron
from launch.framework.base import Emitted, Need, Refusal, check_emittable, refuse
from launch.framework.megatron_model import Option
from launch.recipe import Recipe
from planner.plan import Plan

RELEASE = "megatron-bridge 0.6.2"
Fields = dict[str, dict[str, str]]
"""Part of the configuration -> field -> its value in Python."""

CLASSES = {
    "train": "TrainingConfig",
    "validation": "ValidationConfig",
    "optimizer": "OptimizerConfig",
    "scheduler": "SchedulerConfig",
    "ddp": "DistributedDataParallelConfig",
    "dist": "DistributedInitConfig",
    "logger": "LoggerConfig",
    "rng": "RNGConfig",
    "checkpoint": "CheckpointConfig",
}
FIELDS: dict[str, tuple[tuple[str, str], ...]] = {
    "--norm-epsilon": (("model", "layernorm_epsilon"),),
    "--padded-vocab-size": (("model", "vocab_size"),),
    "--num-experts": (("model", "num_moe_experts"),),
    "--num-virtual-stages-per-pipeline-rank": (
        ("model", "virtual_pipeline_model_parallel_size"),
    ),
    "--use-tp-pp-dp-mapping": (("dist", "use_tp_pp_dp_mapping"),),
    "--overlap-grad-reduce": (("ddp", "overlap_grad_reduce"),),
    "--overlap-param-gather": (
        ("ddp", "overlap_param_gather"),
        ("optimizer", "overlap_param_gather"),
    ),
    "--use-distributed-optimizer": (
        ("ddp", "use_distributed_optimizer"),
        ("optimizer", "use_distributed_optimizer"),
    ),
    "--num-distributed-optimizer-instances": (("ddp", "num_distributed_optimizer_instances"),),
    "--use-megatron-fsdp": (("ddp", "use_megatron_fsdp"), ("dist", "use_megatron_fsdp")),
    "--data-parallel-sharding-strategy": (("ddp", "data_parallel_sharding_strategy"),),
    "--accumulate-allreduce-grads-in-fp32": (("ddp", "grad_reduce_in_fp32"),),
    "--ckpt-format": (("checkpoint", "ckpt_format"),),
    "--save-interval": (("checkpoint", "save_interval"),),
    "--save": (("checkpoint", "save"),),
    "--load": (("checkpoint", "load"),),
    "--optimizer-cpu-offload": (("optimizer", "optimizer_cpu_offload"),),
    "--use-precision-aware-optimizer": (("optimizer", "use_precision_aware_optimizer"),),
    "--eval-iters": (("validation", "eval_iters"),),
    "--log-interval": (("logger", "log_interval"),),
    "--log-throughput": (("logger", "log_throughput"),),
    "--seed": (("rng", "seed"),),
    **{
        f"--{name.replace('_', '-')}": (("optimizer", name),)
        for name in (
            "optimizer", "adam_beta1", "adam_beta2", "adam_eps", "weight_decay", "clip_grad", "lr",
            "min_lr",
        )
    },
    **{
        f"--{name.replace('_', '-')}": (("scheduler", name),)
        for name in (
            "lr_decay_style", "lr_decay_iters", "lr_warmup_iters", "lr_wsd_decay_style",
            "lr_wsd_decay_iters",
        )
    },
    **{
        f"--{name.replace('_', '-')}": (("train", name),)
        for name in ("micro_batch_size", "global_batch_size", "train_iters")
    },
}  # fmt: skip
_FIXED: dict[str, tuple[tuple[str, str], ...]] = {
    "--swiglu": (("gated_linear_unit", "True"), ("activation_func", "F.silu")),
    "--squared-relu": (("activation_func", "squared_relu"),),
    "--disable-bias-linear": (("add_bias_linear", "False"),),
    "--untie-embeddings-and-output-weights": (("share_embeddings_and_output_weights", "False"),),
    "--no-gradient-accumulation-fusion": (("gradient_accumulation_fusion", "False"),),
}
"""Arguments without a value whose field of the model is not True."""
_NOT_FIELDS = (
    "--max-position-embeddings", "--group-query-attention", "--bf16", "--fp16", "--fp8-format",
    "--fp4-format", "--seq-length", "$ROPE_ARGS",
)  # fmt: skip
_LISTS = ("--recompute-modules", "--hierarchical-context-parallel-sizes")
_EVALUATED = ("--window-size", "--window-attn-skip-freq", "--moe-layer-freq")
_PRECISIONS = {
    "bf16": '"bf16_mixed"',
    "fp16": '"fp16_mixed"',
    "fp8": '"bf16_with_fp8_delayed_scaling_mixed"',
    "fp4": '"bf16_with_nvfp4_mixed"',
    "fp32": "None",
}


def emit(plan: Plan, recipe: Recipe) -> tuple[Plan, Emitted]:
    """The plan with its ranks in Megatron's order, and the recipe; `UserError` where it cannot run
    it."""
    check_emittable(plan)
    refuse(plan, RELEASE, [*megatron.refusals(plan), *_refusals(plan)])
    ordered, pp_inner = megatron.ordered_ranks(plan)
    fields = fields_of(plan, recipe, pp_inner=pp_inner)
    return ordered, Emitted(
        title=RELEASE,
        files={"planned.py": _module(plan, recipe, fields)},
        words=('"$HERE/planned.py"',),
        env=megatron.environment(plan.chosen.config),
        needs=tuple(_needs(plan, recipe)),
        differs=tuple(_differs(plan, recipe)),
    )


def _refusals(plan: Plan) -> Iterator[Refusal]:
    if plan.model.rope_scaling not in ("", "llama3"):
        yield Refusal(f"no recipe is written for rotary scaling {plan.model.rope_scaling}")


def _differs(plan: Plan, recipe: Recipe) -> Iterator[str]:
    yield from megatron.differs(plan, recipe)
    m, rows = plan.model, plan.job.seq_len
    if m.position == "learned" and m.max_positions != rows:
        yield f"the position embedding has a row for each of {rows} tokens, not {m.max_positions}."


def _needs(plan: Plan, recipe: Recipe) -> Iterator[Need]:
    yield Need(
        name="DATA_PATH",
        meaning="tokenized data: its path without .bin, or `mock`: made-up tokens",
    )
    yield Need(
        name="TOKENIZER",
        meaning="Hugging Face name or folder of the tokenizer; of no use with made-up tokens",
        default="none",
    )
    if recipe.checkpoint_every:
        yield Need(name="SAVE", meaning="folder of checkpoints")
    if plan.model.rope_scaling:
        yield Need(name="ROPE_SCALING_FACTOR", meaning="factor of the model's rope_scaling")


def fields_of(plan: Plan, recipe: Recipe, *, pp_inner: bool) -> Fields:
    """The plan's arguments as fields."""
    found: Fields = {"model": {}, **{part: {} for part in CLASSES}}
    for _, options in megatron.arguments(plan, recipe, pp_inner=pp_inner):
        for option in options:
            _add(found, option)
    model = found["model"]
    model["seq_length"] = str(plan.job.seq_len)
    if plan.model.rope_scaling:
        model["rope_scaling"] = "True"
        model["rope_scaling_factor"] = 'float(os.environ["ROPE_SCALING_FACTOR"])'
    if plan.chosen.config.pp > 1:
        kind = {"fp32": "float32", "fp16": "float16"}.get(plan.job.precision, "bfloat16")
        model["pipeline_dtype"] = f"torch.{kind}"
    return found


def _add(found: Fields, option: Option) -> None:
    name, *values = option
    if name in _NOT_FIELDS:
        return
    if name in _FIXED:
        found["model"] |= dict(_FIXED[name])
        return
    value = _python(name, values)
    plain = (("model", name.removeprefix("--").replace("-", "_")),)
    for part, field in FIELDS.get(name, plain):
        found[part][field] = value


def _python(name: str, values: list[str]) -> str:
    """An argument's values in Python."""
    if name in _LISTS:
        return f"[{', '.join(_scalar(value) for value in values)}]"
    if not values:
        return "True"
    if name in _EVALUATED:
        return values[0] if "[" in values[0] else f"({values[0]})"
    return _scalar(values[0])


def _scalar(value: str) -> str:
    if value.startswith("$"):
        return f"os.environ[{value[1:]!r}]"
    try:
        float(value)
    except ValueError:
        return repr(value)
    return value


def _module(plan: Plan, recipe: Recipe, fields: Fields) -> str:
    """`planned.py`, which trains when it is run."""
    provider = "MLAModelProvider" if plan.model.is_mla else "GPTModelProvider"
    where = "mla_provider" if plan.model.is_mla else "gpt_provider"
    names = sorted({*CLASSES.values(), "ConfigContainer", "GPTDatasetConfig", "TokenizerConfig"})
    return "\n".join(
        [
            f'"""Plan {plan.id}, {plan.chosen.config.label}, for {RELEASE}."""',
            "",
            "import os",
            "",
            "import torch",
            "import torch.nn.functional as F",
            "from megatron.core.activations import squared_relu",
            "",
            f"from megatron.bridge.models.{where} import {provider}",
            "from megatron.bridge.training.config import (",
            *(f"    {name}," for name in names),
            ")",
            "from megatron.bridge.training.gpt_step import forward_step",
            "from megatron.bridge.training.pretrain import pretrain",
            "",
            "",
            "def planned() -> ConfigContainer:",
            '    """The planned run."""',
            '    mock = os.environ["DATA_PATH"] == "mock"',
            "    return ConfigContainer(",
            *_call("model", provider, fields["model"]),
            *(line for part, kind in CLASSES.items() for line in _call(part, kind, fields[part])),
            *_data(plan, recipe),
            f"        mixed_precision={_PRECISIONS[plan.job.precision]},",
            "    )",
            "",
            "",
            'if __name__ == "__main__":',
            "    pretrain(planned(), forward_step)",
            "",
        ]
    )


def _data(plan: Plan, recipe: Recipe) -> list[str]:
    """Data and tokenizer, which the plan does not know."""
    return [
        "        dataset=GPTDatasetConfig(",
        f"            seq_length={plan.job.seq_len},",
        f"            random_seed={recipe.seed},",
        "            reset_position_ids=False,",
        "            reset_attention_mask=False,",
        "            eod_mask_loss=False,",
        '            data_path=None if mock else os.environ["DATA_PATH"],',
        '            split="100,0,0",',
        '            dataloader_type="single",',
        "        ),",
        "        tokenizer=TokenizerConfig(",
        '            tokenizer_type="NullTokenizer" if mock else "HuggingFaceTokenizer",',
        '            tokenizer_model=None if mock else os.environ["TOKENIZER"],',
        f"            vocab_size={plan.model.vocab_size} if mock else None,",
        "        ),",
    ]


def _call(part: str, kind: str, fields: dict[str, str]) -> list[str]:
    inner = [f"            {name}={value}," for name, value in fields.items()]
    return [f"        {part}={kind}(", *inner, "        ),"]
