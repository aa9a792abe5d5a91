"""A plan for torchtitan 0.2: `plan.toml`, and `planned_model.py`, which gives the model its shape.

torchtitan 0.2 knows models by a name and a flavor; the module adds a flavor `planned` to the
model's, and `[experimental] custom_import` loads it. Source: `torchtitan/config/job_config.py`
and `torchtitan/models/{llama3,qwen3}` of torchtitan 0.2.2.
"""

import json
import math
from collections.abc import Iterator

from launch.framework import titan_words as words
from launch.framework.base import Emitted, Refusal, in_row_major_order
from launch.framework.library_words import recompute_of
from launch.framework.titan_words import FAMILIES, Value
from launch.recipe import Recipe
from planner.plan import Plan
from profiler.model import ModelSpec

RELEASE = "torchtitan 0.2.2"
_ROTATE = {"ring": "alltoall", "all_gather": "allgather"}


def emit(plan: Plan, recipe: Recipe) -> tuple[Plan, Emitted]:
    """The plan with its ranks in torchtitan's order, and its files; `UserError` where it cannot run
    it."""
    ordered = in_row_major_order(plan, RELEASE, [*words.refusals(plan), *_refusals(plan)])
    return ordered, Emitted(
        title=RELEASE,
        files={
            "plan.toml": _toml(tables(plan, recipe), plan),
            "planned_model.py": model_module(plan.model, plan.job.seq_len),
        },
        words=(
            '-m torchtitan.train --job.config_file "$HERE/plan.toml"',
            '--model.hf_assets_path "$TOKENIZER" --training.dataset "$DATASET" "${DATA[@]}"',
        ),
        body=(
            words.PATH_LINE,
            "DATA=()",
            'if [ "$DATASET_PATH" != hub ]; then '
            'DATA=(--training.dataset_path "$DATASET_PATH"); fi',
        ),
        needs=words.needs(plan.model),
        differs=tuple(words.differs(plan, recipe)),
    )


def _refusals(plan: Plan) -> Iterator[Refusal]:
    config = plan.chosen.config
    if plan.model.num_moe_layers and config.ep > 1 and config.etp not in (1, config.tp):
        yield Refusal("its etp is 1 or tp", "etp=1")
    if config.cp == 1 and plan.job.seq_len % (2 * config.tp):
        yield Refusal("it cuts a sequence into two parts for each tp rank", "tp=1")
    cut, sharded = config.tp * config.pp > 1, config.dp_shard * config.cp > 1
    if plan.job.precision == "bf16" and cut and not sharded:
        # `maybe_enable_amp` of torchtitan/distributed/utils.py.
        yield Refusal("with tp or pp it trains in bf16 only where it shards weights", "zero=2")
    if plan.model.tie_embeddings and FAMILIES.get(plan.model.family) == "llama3":
        yield Refusal("its llama3 has no tied embeddings")
    if plan.model.tie_embeddings and config.pp > 1:
        yield Refusal("tied embeddings go with no pipeline", "pp=1")


def tables(plan: Plan, recipe: Recipe) -> dict[str, dict[str, Value]]:
    """Content of `plan.toml`."""
    config, job = plan.chosen.config, plan.job
    parallelism = words.parallelism(plan, "output")
    if config.cp > 1:
        parallelism["context_parallel_rotate_method"] = _ROTATE[config.cp_method]
    if plan.model.num_moe_layers and config.ep > 1:
        parallelism["expert_tensor_parallel_degree"] = config.etp
    found: dict[str, dict[str, Value]] = {
        "model": {"name": FAMILIES[plan.model.family], "flavor": "planned"},
        "experimental": {"custom_import": "planned_model"},
        "parallelism": parallelism,
        "activation_checkpoint": {"mode": recompute_of(plan), "selective_ac_option": "op"},
        "training": {
            "local_batch_size": words.local_batch(plan),
            "global_batch_size": job.global_batch,
            "seq_len": job.seq_len,
            "steps": recipe.total_steps,
            "max_norm": recipe.clip_norm or math.inf,
            "mixed_precision_param": "float32" if job.precision == "fp32" else "bfloat16",
        },
        "optimizer": {
            "name": "AdamW",
            "lr": recipe.learning_rate,
            "beta1": recipe.beta1,
            "beta2": recipe.beta2,
            "eps": recipe.epsilon,
            "weight_decay": recipe.weight_decay,
        },
        "lr_scheduler": words.schedule_of(recipe),
        "metrics": {"log_freq": 1, "disable_color_printing": True},
        "debug": {"seed": recipe.seed},
    }
    if recipe.checkpoint_every:
        found["checkpoint"] = {"enable": True, "interval": recipe.checkpoint_every}
    return found


def _toml(tables: dict[str, dict[str, Value]], plan: Plan) -> str:
    """TOML of tables without nesting."""
    lines = [f"# Plan {plan.id}, {plan.chosen.config.label}, for {RELEASE}."]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_value(v)}" for key, v in table.items())]
    return "".join(f"{line}\n" for line in lines)


def _value(value: Value) -> str:
    if isinstance(value, float):
        return "inf" if math.isinf(value) else repr(value)
    return json.dumps(value)


def model_module(model: ModelSpec, seq_len: int) -> str:
    """`planned_model.py`: the shape as a flavor."""
    lines = _llama(model) if FAMILIES[model.family] == "llama3" else _qwen3(model)
    common = [
        f"    dim={model.hidden_size},",
        f"    n_layers={model.num_layers},",
        f"    n_heads={model.num_heads},",
        f"    n_kv_heads={model.num_kv_heads},",
        f"    vocab_size={model.vocab_size},",
        f"    norm_eps={model.norm_eps!r},",
        f"    rope_theta={model.rope_theta!r},",
        f"    max_seq_len={max(seq_len, model.max_positions)},",
    ]
    head = '"""The planned model as a flavor of torchtitan\'s."""'
    return "\n".join([head, "", *lines[:-1], *common, lines[-1], ")", ""])


def _llama(m: ModelSpec) -> list[str]:
    """FFN width: 8/3 of the model's, times the multiplier, rounded up to the multiple, which is the
    width itself."""
    base = 8 * m.hidden_size // 3
    return [
        "import os" if m.rope_scaling else "",
        "from torchtitan.models.llama3 import TransformerModelArgs, llama3_args",
        "from torchtitan.models.llama3.model.args import RoPEScalingArgs",
        "",
        'SCALING = float(os.environ["ROPE_SCALING_FACTOR"])' if m.rope_scaling else "SCALING = 1.0",
        'llama3_args["planned"] = TransformerModelArgs(',
        f"    multiple_of={m.ffn_hidden_size},",
        f"    ffn_dim_multiplier={m.ffn_hidden_size / base / 2:.6f},",
        "    rope_scaling_args=RoPEScalingArgs(scaling_factor=SCALING),",
    ]


def _qwen3(m: ModelSpec) -> list[str]:
    lines = [
        "from torchtitan.models.moe import MoEArgs",
        "from torchtitan.models.qwen3 import Qwen3ModelArgs, qwen3_args",
        "",
        'qwen3_args["planned"] = Qwen3ModelArgs(',
        f"    head_dim={m.head_dim},",
        f"    hidden_dim={m.ffn_hidden_size},",
        f"    qk_norm={m.qk_norm},",
    ]
    if m.num_experts:
        lines += [
            "    moe_enabled=True,",
            f"    moe_inter_dim={m.expert_width},",
            "    moe_args=MoEArgs(",
            f"        num_experts={m.num_experts},",
            "        num_shared_experts=0,",
            f"        top_k={m.num_experts_per_token},",
            f'        score_func="{m.router_score}",',
            f"        route_norm={m.norm_topk},",
            f"        route_scale={m.routed_scale!r},",
            "        score_before_experts=False,",
            "        load_balance_coeff=None,",
            "    ),",
        ]
    return [*lines, f"    enable_weight_tying={m.tie_embeddings},"]
