"""A plan for Hugging Face nanotron: `nanotron.yaml` for its `run_train.py`.

Its ranks are (pp, dp, cp, tp), row-major. It divides the layers among stages by its own estimate of
their work. Source: `src/nanotron/config/*.py` and `parallel/context.py` of huggingface/nanotron at
025f3141, 19f88fbe, 00708b80 (2025); the release on PyPI, 0.4, is older and has other fields.
"""

from collections.abc import Iterator

import yaml

from launch.framework import library_words as words
from launch.framework.base import Emitted, Need, Refusal, in_row_major_order, wsd_decay_steps
from launch.recipe import Recipe
from planner.plan import Plan
from profiler.model import ModelSpec

TITLE = "nanotron (2025)"
_ENGINES = {"1f1b": "1f1b", "gpipe": "afab"}
_DECAYS = {"constant": "linear", "cosine": "cosine", "wsd": "1-sqrt"}
_INIT_STD = 0.02
"""The field has no default; nanotron's examples have 0.02 or 0.025."""
_SAID = frozenset({"tie_embeddings", "norm_eps", "rope_theta"})
"""Optional fields of a model that are written. Its llama has no biases, whatever the file says."""
_NEEDS = (
    Need(name="NANOTRON", meaning="checkout of nanotron, with run_train.py"),
    Need(name="TOKENIZER", meaning="Hugging Face name or folder of the tokenizer"),
    Need(name="DATA_FOLDER", meaning="folder of tokenized data (a Nanoset)"),
    Need(name="TOKEN_BYTES", meaning="bytes of a token in it, 2 or 4", default="4"),
)
_FILL = (
    'RUN="$(mktemp --suffix=.yaml)"',
    'sed -e "s|@TOKENIZER@|$TOKENIZER|" -e "s|@DATA_FOLDER@|$DATA_FOLDER|"'
    ' -e "s|\'@TOKEN_BYTES@\'|$TOKEN_BYTES|" "$HERE/nanotron.yaml" > "$RUN"',
)


def emit(plan: Plan, recipe: Recipe) -> tuple[Plan, Emitted]:
    """The plan with its ranks in nanotron's order, and its file; `UserError` where nanotron cannot
    run it."""
    ordered = in_row_major_order(plan, TITLE, refusals(plan))
    note = f"# Plan {plan.id}, {plan.chosen.config.label}, for {TITLE}.\n"
    return ordered, Emitted(
        title=TITLE,
        files={"nanotron.yaml": note + yaml.safe_dump(settings(plan, recipe), sort_keys=False)},
        words=('"$NANOTRON/run_train.py" --config-file "$RUN"',),
        body=_FILL,
        env=(("CUDA_DEVICE_MAX_CONNECTIONS", "1"),),
        needs=_NEEDS,
        differs=tuple(_differs(plan)),
    )


def refusals(plan: Plan) -> Iterator[Refusal]:
    """What nanotron cannot."""
    config, model = plan.chosen.config, plan.model
    yield from words.no_axes(plan, "it", "vpp", "cp", "ep", "etp")
    yield from words.no_placement(plan)
    yield from _of_model(model)
    yield from words.no_precision_but(plan, "bf16", "fp32")
    if config.schedule not in _ENGINES:
        yield Refusal(f"it has no schedule {config.schedule}", "schedule=1f1b")
    if config.schedule == "1f1b" and config.num_microbatches(plan.job) < config.pp - 1:
        yield Refusal(f"its 1f1b takes {config.pp - 1} micro-batches at least", "schedule=gpipe")
    if config.zero > 1:
        yield Refusal("its ZeRO is of stage 1", "zero=1")
    if config.zero and config.dp_replicate > 1:
        yield Refusal("it shards over all replicas", "dp_replicate=1")
    yield from words.no_selective(plan)
    if config.offload != "none":
        yield Refusal("it keeps all in the devices' memory", "offload=none")


def _of_model(model: ModelSpec) -> Iterator[Refusal]:
    if model.family not in ("llama", "qwen2"):
        yield Refusal(f"no file is written for family `{model.family}`")
        return
    if model.head_dim * model.num_heads != model.hidden_size:
        yield Refusal("no file is written for heads of another width")
    yield from words.unsaid(model, _SAID if model.family == "llama" else _SAID | {"qkv_bias"})


def settings(plan: Plan, recipe: Recipe) -> dict[str, object]:
    """Content of `nanotron.yaml`."""
    config, job = plan.chosen.config, plan.job
    found: dict[str, object] = {
        "general": {"project": "meshwright", "run": plan.id, "seed": recipe.seed},
        "parallelism": {
            "dp": config.num_replicas,
            "pp": config.pp,
            "tp": config.tp,
            "context_parallel_size": 1,
            "expert_parallel_size": 1,
            "pp_engine": _ENGINES[config.schedule],
            "tp_mode": "REDUCE_SCATTER",
            "tp_linear_async_communication": config.tp > 1,
            "recompute_layer": words.recompute_of(plan) == "full",
        },
        "model": {
            "dtype": "float32" if job.precision == "fp32" else "bfloat16",
            "init_method": {"std": _INIT_STD},
            "make_vocab_size_divisible_by": 1,
            "model_config": _model(plan.model, job.seq_len),
        },
        "tokenizer": {"tokenizer_name_or_path": "@TOKENIZER@"},
        "tokens": {
            "sequence_length": job.seq_len,
            "train_steps": recipe.total_steps,
            "micro_batch_size": config.micro_batch,
            "batch_accumulation_per_replica": words.accumulation(plan),
        },
        "optimizer": _optimizer(plan, recipe),
        "data_stages": [
            {
                "name": "training",
                "start_training_step": 1,
                "data": {"dataset": _dataset(plan.model), "seed": recipe.seed},
            }
        ],
        "logging": {"iteration_step_info_interval": 1},
    }
    if recipe.checkpoint_every:
        interval = recipe.checkpoint_every
        found["checkpoints"] = {"checkpoints_path": "checkpoints", "checkpoint_interval": interval}
    return found


def _dataset(m: ModelSpec) -> dict[str, object]:
    """nanotron compares tokenizer and vocabulary with the model's. Those that it would take from
    the data's own metadata are without the tokens that a tokenizer adds, and so too few."""
    return {
        "dataset_folder": "@DATA_FOLDER@",
        "tokenizer_name": "@TOKENIZER@",
        "vocab_size": m.vocab_size,
        "token_size_in_bytes": "@TOKEN_BYTES@",
    }


def _model(m: ModelSpec, seq_len: int) -> dict[str, object]:
    kind = "is_llama_config" if m.family == "llama" else "is_qwen2_config"
    return {
        kind: True,
        "hidden_size": m.hidden_size,
        "intermediate_size": m.ffn_hidden_size,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": m.num_heads,
        "num_key_value_heads": m.num_kv_heads,
        "vocab_size": m.vocab_size,
        "max_position_embeddings": max(seq_len, m.max_positions),
        "rms_norm_eps": m.norm_eps,
        "rope_theta": m.rope_theta,
        "tie_word_embeddings": m.tie_embeddings,
        "attention_bias": m.qkv_bias,
    }


def _optimizer(plan: Plan, recipe: Recipe) -> dict[str, object]:
    ratio = 1.0 if recipe.lr_schedule == "constant" else recipe.min_lr_ratio
    schedule: dict[str, object] = {
        "learning_rate": recipe.learning_rate,
        "lr_warmup_steps": recipe.lr_warmup_steps,
        "lr_warmup_style": "linear",
        "lr_decay_style": _DECAYS[recipe.lr_schedule],
        "min_decay_lr": recipe.learning_rate * ratio,
    }
    if recipe.lr_schedule == "cosine":
        schedule["lr_decay_steps"] = max(1, recipe.lr_steps - recipe.lr_warmup_steps)
    elif recipe.lr_schedule == "wsd":
        decay = wsd_decay_steps(recipe)
        schedule |= {"lr_decay_steps": decay, "lr_decay_starting_step": recipe.lr_steps - decay}
    return {
        "zero_stage": plan.chosen.config.zero,
        "weight_decay": recipe.weight_decay,
        "weight_decay_exclude_named_params": [".*norm.*", ".*bias"],
        "clip_grad": recipe.clip_norm or None,
        "accumulate_grad_in_fp32": True,
        "optimizer_factory": {
            "name": "adamW",
            "adam_eps": recipe.epsilon,
            "adam_beta1": recipe.beta1,
            "adam_beta2": recipe.beta2,
            "torch_adam_is_fused": True,
        },
        "learning_rate_scheduler": schedule,
    }


def _differs(plan: Plan) -> Iterator[str]:
    yield f"random weights have a standard deviation of {_INIT_STD:g}."
    if plan.chosen.config.pp > 1:
        yield "nanotron divides the layers among stages by its own estimate of their work."
