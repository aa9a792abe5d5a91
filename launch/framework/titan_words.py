"""What torchtitan's releases have in common: which layouts it runs, and the fields that say them.

Its meshes are (pp, dp_replicate, dp_shard, cp, tp) and (pp, dp_replicate, efsdp, ep, etp), both
row-major: those of `planner.config`. Source: `torchtitan/distributed/parallel_dims.py`,
`torchtitan/config`, `torchtitan/models/*/parallelize.py` of torchtitan 0.2.2 and 0.3.0.
"""

from collections.abc import Iterator

from launch.framework.base import Need, Refusal
from launch.framework.library_words import (
    no_placement,
    no_precision_but,
    recompute_of,
    unsaid,
)
from launch.recipe import Recipe
from planner.config import ParallelConfig
from planner.plan import Plan
from profiler.model import Family, ModelSpec

Value = str | int | float | bool | list[list[str]]
FAMILIES: dict[Family, str] = {"llama": "llama3", "qwen3": "qwen3", "qwen3_moe": "qwen3"}
"""Family -> torchtitan's model of any such shape."""
_SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zbv": "ZBVZeroBubble",
    "dualpipev": "DualPipeV",
}
NEEDS = (
    Need(name="TOKENIZER", meaning="folder of a Hugging Face tokenizer (tokenizer.json)"),
    Need(name="DATASET", meaning="data set by the name that torchtitan knows it by, like c4"),
    Need(name="DATASET_PATH", meaning="folder or file of the data set, or hub", default="hub"),
)
_SAID = frozenset({"tie_embeddings", "rope_scaling", "norm_eps", "rope_theta"})
_SAID_OF_QWEN3 = frozenset(
    {"qk_norm", "num_experts", "num_experts_per_token", "expert_ffn_hidden_size", "norm_topk",
     "router_score", "routed_scale", "shared_ffn_hidden_size", "first_dense_layers", "moe_every"}
)  # fmt: skip
"""Optional fields of a model that are said, or refused by name."""
_ROPE = Need(name="ROPE_SCALING_FACTOR", meaning="factor of the model's rope_scaling")
PATH_LINE = 'export PYTHONPATH="$HERE${PYTHONPATH:+:$PYTHONPATH}"'
"""Where the script's own module is."""


def needs(model: ModelSpec) -> tuple[Need, ...]:
    """What the user sets."""
    return (*NEEDS, _ROPE) if model.rope_scaling else NEEDS


def refusals(plan: Plan) -> Iterator[Refusal]:
    """What none of the releases can."""
    yield from _of_model(plan.model)
    c = plan.chosen.config
    yield from no_precision_but(plan, "bf16", "fp32")
    if c.zero == 1:
        yield Refusal("it shards gradients with the optimizer", "zero=2")
    elif c.zero == 0 and c.dp_replicate > 1 and c.num_devices > c.dp_replicate and c.cp == 1:
        yield Refusal("it replicates nothing but whole models without sharding", "zero=2")
    if c.schedule not in _SCHEDULES:
        yield Refusal(f"no schedule {c.schedule} is written for it", "schedule=1f1b")
    micro = c.num_microbatches(plan.job)
    if not _divides(c, micro):
        yield Refusal(f"{micro} micro-batches are none of its {c.schedule}", "schedule=gpipe")
    if c.cp > 1 and plan.job.seq_len % (2 * c.cp * c.tp):
        yield Refusal("it cuts a sequence into two parts for each cp and tp rank", "cp=1")
    if c.cp_method in ("ulysses", "hybrid") and c.cp > 1:
        yield Refusal(f"it has no context parallelism by {c.cp_method}", "cp_method=all_gather")
    if plan.model.num_moe_layers and c.ep == 1 and c.etp != c.tp:
        yield Refusal("its experts without ep are cut over tp", f"etp={c.tp}")
    if c.ep * c.etp > c.dp_shard * c.cp * c.tp:
        yield Refusal("its expert parallelism stays within one replica", "dp_replicate=1")
    if c.ep_overlap > 1:
        yield Refusal("it exchanges no micro-batch's tokens in chunks", "ep_overlap=1")
    if c.offload != "none":
        yield Refusal(f"it has no offload of {c.offload} alone", "offload=none")
    yield from no_placement(plan)


def _divides(c: ParallelConfig, micro: int) -> bool:
    """Whether the schedule takes so many micro-batches (torch/distributed/pipelining/schedules.py
    of torch 2.13)."""
    if c.pp == 1:
        return True
    if c.schedule == "interleaved":
        return micro % max(1, micro // c.pp) == 0
    return micro >= {"1f1b": c.pp, "dualpipev": 2 * c.pp}.get(c.schedule, 1)


def _of_model(model: ModelSpec) -> Iterator[Refusal]:
    if model.family not in FAMILIES:
        yield Refusal(f"no model of family `{model.family}` is written for it")
        return
    llama = FAMILIES[model.family] == "llama3"
    yield from unsaid(model, _SAID | (frozenset() if llama else _SAID_OF_QWEN3))
    if llama and model.head_dim * model.num_heads != model.hidden_size:
        yield Refusal("its llama3 has heads of hidden size / heads")
    if model.num_experts and (model.num_dense_layers or model.shared_ffn_hidden_size):
        yield Refusal("its qwen3 has experts in all layers, none of them shared")
    if model.rope_scaling not in ("", "llama3") or (model.rope_scaling and not llama):
        yield Refusal(f"no rotary scaling {model.rope_scaling} is written for it")


def parallelism(plan: Plan, head: str) -> dict[str, Value]:
    """Fields of `[parallelism]`; `head` is the output projection's name."""
    config = plan.chosen.config
    found: dict[str, Value] = {
        "data_parallel_replicate_degree": config.dp_replicate,
        "data_parallel_shard_degree": config.dp_shard,
        "fsdp_reshard_after_forward": "always" if config.zero == 3 else "never",
        "tensor_parallel_degree": config.tp,
        "context_parallel_degree": config.cp,
        "expert_parallel_degree": config.ep,
        "pipeline_parallel_degree": config.pp,
    }
    if config.pp > 1:
        found |= {
            "pipeline_parallel_schedule": _SCHEDULES[config.schedule],
            "pipeline_parallel_microbatch_size": config.micro_batch,
            "module_fqns_per_model_part": parts(plan, head),
        }
    return found


def parts(plan: Plan, head: str) -> list[list[str]]:
    """Modules of each stage."""
    num_layers = plan.model.num_layers
    names = ["tok_embeddings", *(f"layers.{k}" for k in range(num_layers)), "head"]
    cut = [names[first:end] for first, end in plan.chosen.placement.stages]
    cut[-1] = [*cut[-1][:-1], "norm", head]
    return cut


def local_batch(plan: Plan) -> int:
    """Sequences of one data-parallel rank in one call: all of its step where there is a pipeline,
    which cuts them into micro-batches."""
    config: ParallelConfig = plan.chosen.config
    if config.pp > 1:
        return plan.job.global_batch // config.num_replicas
    return config.micro_batch


def schedule_of(recipe: Recipe) -> dict[str, Value]:
    """Fields of the learning rate's schedule."""
    found: dict[str, Value] = {
        "warmup_steps": recipe.lr_warmup_steps,
        "total_steps": recipe.lr_steps,
        "min_lr_factor": recipe.min_lr_ratio,
    }
    if recipe.lr_schedule == "constant":
        return found | {"decay_ratio": 0.0}
    if recipe.lr_schedule == "cosine":
        return found | {"decay_type": "cosine"}
    return found | {"decay_type": "sqrt", "decay_ratio": recipe.wsd_decay_share}


def differs(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Where it does otherwise than the plan counts on."""
    config = plan.chosen.config
    if recipe.weight_decay:
        yield "weights of norms decay too."
    if config.zero == 0 and config.cp > 1:
        yield "weights are sharded over the ranks of a context-parallel group."
    if config.zero == 2:
        yield "weights are sharded too, gathered once a step."
    if recompute_of(plan) == "selective":
        yield "selective recomputation keeps attention and every second product of matrices."
