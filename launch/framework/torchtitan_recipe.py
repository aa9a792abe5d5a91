"""A plan for the current torchtitan: `planned.py`, a recipe in Python with the model's shape.

torchtitan 0.3 takes `--module planned --config planned`, a function that returns its
configuration; models are built of configurations of their parts. Context parallelism gathers keys
and values; experts have no tensor parallelism of their own. Source: `torchtitan/config`,
`torchtitan/trainer.py` and `torchtitan/models/{llama3,qwen3}` of torchtitan 0.3.0.
"""

import math
from collections.abc import Iterator, Mapping

from launch.framework import titan_words as words
from launch.framework.base import Emitted, Refusal, in_row_major_order
from launch.framework.library_words import recompute_of
from launch.framework.titan_words import FAMILIES, Value
from launch.recipe import Recipe
from planner.plan import Plan
from profiler.model import ModelSpec

RELEASE = "torchtitan 0.3.0"
_EPS = {"llama3": 1e-5, "qwen3": 1e-6}
"""Of the norms that torchtitan builds the models with."""
_RECOMPUTE = {"none": "None", "full": "FullAC.Config()", "selective": "SelectiveAC.Config()"}
_IMPORTS = """\
import dataclasses
import os

from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models import {name}
from torchtitan.models.common import {rope}, Embedding, Linear, RMSNorm
from torchtitan.trainer import Trainer
"""


def emit(plan: Plan, recipe: Recipe) -> tuple[Plan, Emitted]:
    """The plan with its ranks in torchtitan's order, and its files; `UserError` where it cannot run
    it."""
    ordered = in_row_major_order(plan, RELEASE, [*words.refusals(plan), *_refusals(plan)])
    return ordered, Emitted(
        title=RELEASE,
        files={"planned.py": recipe_module(plan, recipe)},
        words=(
            "-m torchtitan.train --module planned --config planned",
            '--hf_assets_path "$TOKENIZER" --dataloader.dataset "$DATASET" "${DATA[@]}"',
        ),
        body=(
            words.PATH_LINE,
            "DATA=()",
            'if [ "$DATASET_PATH" != hub ]; then '
            'DATA=(--dataloader.dataset_path "$DATASET_PATH"); fi',
        ),
        needs=words.needs(plan.model),
        differs=(*words.differs(plan, recipe), *_differs(plan.model)),
    )


def _refusals(plan: Plan) -> Iterator[Refusal]:
    config = plan.chosen.config
    if config.cp > 1 and config.cp_method == "ring":
        yield Refusal("it gathers keys and values over cp", "cp_method=all_gather")
    if plan.model.num_moe_layers and config.etp > 1:
        yield Refusal("it has no tensor parallelism of experts", "etp=1")
    if plan.model.num_moe_layers and config.tp > 1 and config.ep % config.tp:
        yield Refusal("its experts are spread over tp too", "tp=1")
    m = plan.model
    if m.num_experts and (m.router_score != "softmax" or m.routed_scale != 1.0):
        yield Refusal("its qwen3 scores experts by softmax, without a factor")
    if plan.model.tie_embeddings and config.pp > 1:
        yield Refusal("tied embeddings go with no pipeline", "pp=1")


def _differs(model: ModelSpec) -> Iterator[str]:
    eps = _EPS[FAMILIES[model.family]]
    if model.norm_eps != eps:
        yield f"norms have an epsilon of {eps:g}, not {model.norm_eps:g}."
    if model.num_experts:
        yield "experts are levelled by a bias on their scores, which moves by 1e-3 a step."
    if model.num_experts and not model.norm_topk:
        yield "the chosen experts' weights are divided by their sum."


def recipe_module(plan: Plan, recipe: Recipe) -> str:
    """`planned.py`."""
    model = plan.model
    name = FAMILIES[model.family]
    rope = "ComplexRoPE" if name == "llama3" else "CosSinRoPE"
    head = f'"""Plan {plan.id}, {plan.chosen.config.label}, for {RELEASE}."""'
    return "\n".join(
        [
            head,
            "",
            _IMPORTS.format(name=name, rope=rope),
            "",
            *_model(model, plan.job.seq_len, name, rope),
            "",
            "",
            *_config(plan, recipe, name),
            "",
        ]
    )


def _model(m: ModelSpec, seq_len: int, name: str, rope: str) -> list[str]:
    """A function that builds the model's configuration of those of its parts."""
    kind = "Llama3Model" if name == "llama3" else "Qwen3Model"
    weights = f"{name}._EMBEDDING_{'SKIP_' if m.tie_embeddings else ''}INIT"
    output = f"{name}._output_linear_init(DIM)" if name == "llama3" else f"{name}._LINEAR_INIT"
    eps = "" if name == "llama3" else f", eps={name}._EPS"
    return [
        f"DIM, VOCABULARY = {m.hidden_size}, {m.vocab_size}",
        "",
        "",
        f"def model() -> {name}.{kind}.Config:",
        '    """The planned shape."""',
        f"    rope = {rope}.Config(",
        f"        dim={m.head_dim}, max_seq_len={max(seq_len, m.max_positions)}, "
        f"theta={m.rope_theta!r}{_scaling(m)}",
        "    )",
        f"    return {name}.{kind}.Config(",
        "        dim=DIM,",
        "        vocab_size=VOCABULARY,",
        f"        enable_weight_tying={m.tie_embeddings},",
        "        tok_embeddings=Embedding.Config(",
        f"            num_embeddings=VOCABULARY, embedding_dim=DIM, param_init={weights}",
        "        ),",
        f"        norm=RMSNorm.Config(normalized_shape=DIM{eps}, param_init={name}._NORM_INIT),",
        "        lm_head=Linear.Config(",
        f"            in_features=DIM, out_features=VOCABULARY, param_init={output}",
        "        ),",
        *_layers(m, name),
        "    )",
    ]


def _scaling(m: ModelSpec) -> str:
    if not m.rope_scaling:
        return ""
    return ', scaling="llama", scaling_factor=float(os.environ["ROPE_SCALING_FACTOR"])'


def _layers(m: ModelSpec, name: str) -> list[str]:
    fields = {"n_layers": m.num_layers, "n_heads": m.num_heads, "n_kv_heads": m.num_kv_heads}
    build = f"_build_{name}_layers"
    if m.num_experts:
        build = "_build_qwen3_moe_layers"
        fields |= {"moe_hidden_dim": m.expert_width, "num_experts": m.num_experts}
        fields["top_k"] = m.num_experts_per_token
    else:
        fields["hidden_dim"] = m.ffn_hidden_size
    if name == "qwen3":
        fields["head_dim"] = m.head_dim
    given = "".join(f"{key}={value}, " for key, value in fields.items())
    backend = ', moe_comm_backend="standard"' if m.num_experts else ""
    return [
        f"        layers={name}.{build}(",
        f"            dim=DIM, {given}",
        f'            attn_backend="flex", rope=rope{backend}',
        "        ),",
    ]


def _config(plan: Plan, recipe: Recipe, name: str) -> list[str]:
    job = plan.job
    training: dict[str, Value] = {
        "local_batch_size": words.local_batch(plan),
        "global_batch_size": job.global_batch,
        "seq_len": job.seq_len,
        "steps": recipe.total_steps,
        "max_norm": recipe.clip_norm or math.inf,
        "mixed_precision_param": "float32" if job.precision == "fp32" else "bfloat16",
        "disable_cuda_graphs": True,
    }
    checkpoint: dict[str, Value] = {"enable": bool(recipe.checkpoint_every)}
    if recipe.checkpoint_every:
        checkpoint["interval"] = recipe.checkpoint_every
    return [
        "def planned() -> Trainer.Config:",
        '    """The planned run."""',
        f'    spec = {name}.model_registry("debugmodel")',
        '    spec = dataclasses.replace(spec, flavor="planned", model=model())',
        "    return Trainer.Config(",
        "        loss=ChunkedLossWrapper.Config(",
        "            loss_fn=CrossEntropyLoss.Config(global_vocab_size=VOCABULARY)",
        "        ),",
        "        model_spec=spec,",
        f"        optimizer={_adamw(recipe)},",
        *_call("lr_scheduler", "LRSchedulersContainer.Config", words.schedule_of(recipe)),
        *_call("training", "TrainingConfig", training),
        "        dataloader=HuggingFaceTextDataLoader.Config(),",
        *_call("parallelism", "ParallelismConfig", words.parallelism(plan, "lm_head")),
        *_call("checkpoint", "CheckpointManager.Config", checkpoint),
        f"        activation_checkpoint={_RECOMPUTE[recompute_of(plan)]},",
        "        metrics=MetricsProcessor.Config(log_freq=1, disable_color_printing=True),",
        f"        debug=DebugConfig(seed={recipe.seed}),",
        "    )",
    ]


def _adamw(recipe: Recipe) -> str:
    return (
        f"default_adamw(lr={recipe.learning_rate!r}, betas=({recipe.beta1!r}, {recipe.beta2!r}), "
        f"eps={recipe.epsilon!r}, weight_decay={recipe.weight_decay!r})"
    )


def _call(field: str, kind: str, given: Mapping[str, Value]) -> list[str]:
    """A field of the configuration, a line for each of its own."""
    inner = [f"            {key}={_literal(value)}," for key, value in given.items()]
    return [f"        {field}={kind}(", *inner, "        ),"]


def _literal(value: Value) -> str:
    return 'float("inf")' if isinstance(value, float) and math.isinf(value) else repr(value)
