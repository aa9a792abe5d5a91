"""A plan as arguments of Megatron-LM's `pretrain_gpt.py`, for the release named in `RELEASE`.

    tp pp vpp        --tensor-, --pipeline-model-parallel-size; stages of other lengths than equal
                     ones as --pipeline-model-parallel-layout
    cp, cp_method    --context-parallel-size, --cp-comm-type: ring p2p, all_gather of that name,
                     ulysses a2a, hybrid a2a+p2p with its two sizes, neighbours first
    ep, etp          --expert-model-, --expert-tensor-parallel-size
    zero             1 the distributed optimizer, 2 and 3 Megatron FSDP's optim_grads and
                     optim_grads_params; dp_replicate its instances
    recompute        full: every layer (uniform, 1); the first layers of each stage: block;
                     selective: core_attn, and moe_act where there are experts in 16 bits or more

Ranks are numbered tp-cp-ep-dp-pp, innermost first, or with --use-tp-pp-dp-mapping tp-cp-ep-pp-dp:
the one of them that leaves the ranks of a node together. Source: `megatron/training/arguments.py`
and `megatron/core/parallel_state.py` of the release; `tests/frameworks` checks every argument
against a list made from it.
"""

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from launch.framework import megatron_model as model_words
from launch.framework.base import (
    Emitted,
    Need,
    Refusal,
    array,
    check_emittable,
    has_runs,
    in_order_of,
    refuse,
    wsd_decay_steps,
)
from launch.framework.megatron_model import Option
from launch.recipe import Recipe
from planner.config import ParallelConfig, Placement
from planner.plan import Plan
from profiler.job import LOW_PRECISIONS, JobSpec
from profiler.model import ModelSpec

RELEASE = "megatron-core 0.19.2"
TITLE = f"Megatron-LM ({RELEASE})"
_COMM = {"ring": "p2p", "all_gather": "all_gather", "ulysses": "a2a", "hybrid": "a2a+p2p"}
_SHARDING = {2: "optim_grads", 3: "optim_grads_params"}
_LEAST_SEED = 1
"""`megatron/training/initialize.py` raises for 0, which is a recipe's default."""


def emit(plan: Plan, recipe: Recipe) -> tuple[Plan, Emitted]:
    """The plan with its ranks in Megatron's order, and its arguments; `UserError` where Megatron
    cannot run it."""
    check_emittable(plan)
    refuse(plan, TITLE, refusals(plan))
    ordered, pp_inner = ordered_ranks(plan)
    return ordered, Emitted(
        title=TITLE,
        files={},
        words=('"$MEGATRON/pretrain_gpt.py"', '"${ARGS[@]}"', '"${DATA[@]}"'),
        body=(*array("ARGS", arguments(plan, recipe, pp_inner=pp_inner)), *_data(plan.model)),
        env=environment(plan.chosen.config),
        needs=(*_needs(recipe), *model_words.needs(plan.model)),
        differs=tuple(differs(plan, recipe)),
    )


def arguments(
    plan: Plan, recipe: Recipe, *, pp_inner: bool
) -> tuple[tuple[str, list[Option]], ...]:
    """All arguments, in groups with a heading."""
    config, placement = plan.chosen.config, plan.chosen.placement
    return (
        (f"model: {plan.model.family}", model_words.shape(plan.model, plan.job.seq_len)),
        ("attention", model_words.attention(plan.model)),
        ("experts", model_words.experts(plan.model)),
        ("layout", [*layout(plan.model, config, placement), *_rank_order(pp_inner)]),
        ("data-parallel sharding and overlap", sharding(config)),
        ("recomputation and offload", memory(plan.model, plan.job, config, placement)),
        ("precision", precision(plan.job)),
        ("training", training(plan.job, config, recipe)),
    )


def refusals(plan: Plan) -> Iterator[Refusal]:
    """What of the plan Megatron has no words for."""
    config, placement, model = plan.chosen.config, plan.chosen.placement, plan.model
    yield from model_words.refusals(model)
    if config.schedule not in ("1f1b", "interleaved"):
        yield Refusal(f"it has no schedule {config.schedule}", "schedule=1f1b")
    micro = config.num_microbatches(plan.job)
    if config.vpp > 1 and micro % config.pp:
        yield Refusal(
            f"its interleaved schedule takes micro-batches by {config.pp}", "schedule=1f1b"
        )
    if config.zero > 1 and config.pp > 1:
        yield Refusal("its FSDP takes no pipeline stages", "zero=1")
    if config.offload == "activations":
        yield Refusal("it offloads activations of chosen modules, not of layers", "offload=none")
    if config.offload == "optimizer" and not config.zero and config.num_replicas * config.cp > 1:
        yield Refusal("it offloads the distributed optimizer", "zero=1")
    if model.num_moe_layers and config.zero and config.edp % config.dp_replicate:
        yield Refusal("it shards experts over as many instances as weights", "dp_replicate=1")
    if config.cp > 1 and plan.job.seq_len % (2 * config.cp):
        yield Refusal("it cuts a sequence into two parts for each cp rank", "cp=1")
    heads = config.cp_heads if config.cp_method == "hybrid" else config.cp
    by_heads = config.cp > 1 and config.cp_method in ("ulysses", "hybrid")
    if by_heads and (model.num_kv_heads // config.tp) % heads:
        yield Refusal("its a2a needs the key/value heads of a rank to divide", "cp_method=ring")
    if model.is_mla and by_heads and config.cp_method == "hybrid":
        yield Refusal("MLA goes with no a2a+p2p", "cp_method=ring")
    if any(model.attention_of(layer) == "sliding" for layer in range(model.num_layers)) and (
        config.cp > 1 and config.cp_method in ("ring", "hybrid")
    ):
        yield Refusal("sliding windows go with no ring of cp", "cp_method=all_gather")
    if config.ep_overlap > 1:  # --overlap-moe-expert-parallel-comm joins two micro-batches
        yield Refusal("it exchanges no micro-batch's tokens in chunks", "ep_overlap=1")
    if placement.experts and not _contiguous(placement, model, config):
        yield Refusal("it holds experts in their order, once each: none are placed or copied")
    if placement.recompute and _block(model, config, placement) is None:
        yield Refusal(
            "it recomputes the first layers of each stage in full, equally many", "recompute=full"
        )


def _contiguous(placement: Placement, model: ModelSpec, config: ParallelConfig) -> bool:
    """Placed where they are without being placed."""
    each = model.num_experts // config.ep
    plain = tuple(tuple(range(r * each, (r + 1) * each)) for r in range(config.ep))
    return all(layer.slots == plain for layer in placement.experts)


def ordered_ranks(plan: Plan) -> tuple[Plan, bool]:
    """The plan in Megatron's order of ranks, and whether the pipeline is inside the replicas."""
    config = plan.chosen.config
    natural = in_order_of(plan, range(config.num_devices))
    # Else its groups of experts (of a dense model: tp ranks) span other stages than its stages.
    inner = config.ep * config.etp if plan.model.num_moe_layers else config.tp
    if has_runs(natural) or config.pp == 1 or inner != config.cp * config.tp:
        return natural, False
    grid = np.arange(config.num_devices).reshape(config.pp, config.num_replicas, -1)
    swapped = in_order_of(plan, grid.swapaxes(0, 1).reshape(-1).tolist())
    return (swapped, True) if has_runs(swapped) else (natural, False)


def _rank_order(pp_inner: bool) -> list[Option]:
    return [("--use-tp-pp-dp-mapping",)] if pp_inner else []


def layout(model: ModelSpec, config: ParallelConfig, placement: Placement) -> list[Option]:
    """Degrees, and stages of the pipeline."""
    options: list[Option] = [("--tensor-model-parallel-size", str(config.tp))]
    if config.tp > 1:
        options.append(("--sequence-parallel",))
    options.append(("--pipeline-model-parallel-size", str(config.pp)))
    if config.pp > 1:
        options += _stages(model, config, placement)
    options.append(("--context-parallel-size", str(config.cp)))
    if config.cp > 1:
        options.append(("--cp-comm-type", _COMM[config.cp_method]))
    if config.cp_method == "hybrid":
        sizes = (config.cp_heads, config.cp // config.cp_heads)
        options.append(("--hierarchical-context-parallel-sizes", *(str(n) for n in sizes)))
    if model.num_moe_layers:
        options.append(("--expert-model-parallel-size", str(config.ep)))
        options.append(("--expert-tensor-parallel-size", str(config.etp)))
    return options


def _stages(model: ModelSpec, config: ParallelConfig, placement: Placement) -> list[Option]:
    layers = placement.layers_per_stage(model.num_layers)
    stages = placement.stages
    plain = (
        len(set(layers)) == 1
        and stages[0][0] == 0
        and stages[0][1] > 0
        and stages[-1][1] - stages[-1][0] == layers[-1] + model.num_mtp_layers + 1
    )
    if not plain:
        return [("--pipeline-model-parallel-layout", layout_text(model, placement))]
    if config.vpp > 1:
        return [("--num-virtual-stages-per-pipeline-rank", str(config.vpp))]
    return []


def layout_text(model: ModelSpec, placement: Placement) -> str:
    """Stages in Megatron's letters: E embedding, t layer, m multi-token prediction, L loss."""
    letter = {"embed": "E", "dense": "t", "moe": "t", "mtp": "m", "head": "L"}
    texts = []
    for first, end in placement.stages:
        letters = [letter[kind] for kind in model.blocks[first:end]]
        found = ""
        for one in dict.fromkeys(letters):
            number = letters.count(one)
            found += one if number == 1 else f"{one}*{number}"
        texts.append(found)
    parts = []
    for text, run in groupby(texts[:-1]):
        number = len(list(run))
        parts.append(f"({text}|)*{number}" if number > 1 and text else f"{text}|" * number)
    return "".join(parts) + texts[-1]


def sharding(config: ParallelConfig) -> list[Option]:
    """What replicas share, and what of it overlaps with computing."""
    if config.num_replicas * config.cp == 1:
        # What is offloaded is the distributed optimizer, also of one replica.
        return [("--use-distributed-optimizer",)] if config.offload == "optimizer" else []
    options: list[Option] = [("--overlap-grad-reduce",)]
    if config.zero:
        options += [("--use-distributed-optimizer",), ("--overlap-param-gather",)]
        if config.dp_replicate > 1:
            instances = str(config.dp_replicate)
            options.append(("--num-distributed-optimizer-instances", instances))
    if config.zero > 1:
        options += [
            ("--use-megatron-fsdp",),
            ("--data-parallel-sharding-strategy", _SHARDING[config.zero]),
            ("--no-gradient-accumulation-fusion",),
            ("--ckpt-format", "fsdp_dtensor"),
        ]
    return options


def memory(
    model: ModelSpec, job: JobSpec, config: ParallelConfig, placement: Placement
) -> list[Option]:
    """Recomputation and offload."""
    options: list[Option] = []
    block = _block(model, config, placement) if placement.recompute else None
    if block:
        options += [
            ("--recompute-granularity", "full"),
            ("--recompute-method", "block"),
            ("--recompute-num-layers", str(block)),
        ]
    elif not placement.recompute and config.recompute == "full":
        options += [
            ("--recompute-granularity", "full"),
            ("--recompute-method", "uniform"),
            ("--recompute-num-layers", "1"),
        ]
    elif not placement.recompute and config.recompute == "selective":
        modules = ("core_attn", "moe_act") if _recomputes_product(model, job) else ("core_attn",)
        options += [("--recompute-granularity", "selective"), ("--recompute-modules", *modules)]
    if config.offload == "optimizer":
        options += [("--optimizer-cpu-offload",), ("--use-precision-aware-optimizer",)]
    return options


def _recomputes_product(model: ModelSpec, job: JobSpec) -> bool:
    """It has a name for the activation of experts alone, which goes with no delayed scaling."""
    return model.num_moe_layers > 0 and job.precision not in LOW_PRECISIONS


def _block(model: ModelSpec, config: ParallelConfig, placement: Placement) -> int | None:
    """How many layers each stage recomputes in full, its first ones; None where it is not so."""
    numbers = set()
    for first, end in placement.stages:
        layers = range(max(first, 1) - 1, min(end, model.num_layers + 1) - 1)
        kinds = [placement.recompute_of(layer, config) for layer in layers]
        full = kinds.count("full")
        if kinds != ["full"] * full + ["none"] * (len(kinds) - full):
            return None
        if kinds:
            numbers.add(full)
    return numbers.pop() if len(numbers) == 1 else None


def precision(job: JobSpec) -> list[Option]:
    """Number formats; gradients are reduced in fp32 in all of them."""
    if job.precision == "fp32":
        return []
    if job.precision == "fp16":
        return [("--fp16",), ("--accumulate-allreduce-grads-in-fp32",)]
    low: dict[str, list[Option]] = {
        "fp8": [("--fp8-format", "hybrid")],
        "fp4": [("--fp4-format", "e2m1")],
    }
    reduce: Option = ("--accumulate-allreduce-grads-in-fp32",)
    return [("--bf16",), reduce, *low.get(job.precision, [])]


_STYLES = {"constant": "constant", "cosine": "cosine", "wsd": "WSD"}


def training(job: JobSpec, config: ParallelConfig, recipe: Recipe) -> list[Option]:
    """Batch, steps, optimizer."""
    ratio = 1.0 if recipe.lr_schedule == "constant" else recipe.min_lr_ratio
    options: list[Option] = [
        ("--seq-length", str(job.seq_len)),
        ("--micro-batch-size", str(config.micro_batch)),
        ("--global-batch-size", str(job.global_batch)),
        ("--train-iters", str(recipe.total_steps)),
        ("--optimizer", "adam"),
        ("--adam-beta1", f"{recipe.beta1:g}"),
        ("--adam-beta2", f"{recipe.beta2:g}"),
        ("--adam-eps", f"{recipe.epsilon:g}"),
        ("--weight-decay", f"{recipe.weight_decay:g}"),
        ("--clip-grad", f"{recipe.clip_norm:g}"),
        ("--lr", f"{recipe.learning_rate:g}"),
        ("--min-lr", f"{recipe.learning_rate * ratio:g}"),
        ("--lr-decay-style", _STYLES[recipe.lr_schedule]),
        # Its warm-up ends before the schedule does; after the peak a constant stays.
        ("--lr-decay-iters", str(max(recipe.lr_steps, recipe.lr_warmup_steps + 1))),
        ("--lr-warmup-iters", str(recipe.lr_warmup_steps)),
        ("--seed", str(recipe.seed or _LEAST_SEED)),
        ("--eval-iters", "0"),
        ("--log-interval", "1"),
        ("--log-throughput",),
    ]
    if recipe.lr_schedule == "wsd":
        decay = str(wsd_decay_steps(recipe))
        options += [("--lr-wsd-decay-style", "minus_sqrt"), ("--lr-wsd-decay-iters", decay)]
    if recipe.checkpoint_every:
        # From an empty folder it loads nothing; a run that is started again goes on.
        options += [("--save", "$SAVE"), ("--load", "$SAVE")]
        options.append(("--save-interval", str(recipe.checkpoint_every)))
    return options


def environment(config: ParallelConfig) -> tuple[tuple[str, str], ...]:
    """One queue of kernels, in which communication keeps its place before GEMMs; FSDP wants
    several."""
    if config.zero > 1 or config.tp * config.cp == 1:
        return ()
    return (("CUDA_DEVICE_MAX_CONNECTIONS", "1"),)


def _needs(recipe: Recipe) -> Iterator[Need]:
    yield Need(name="MEGATRON", meaning="checkout of Megatron-LM, with pretrain_gpt.py")
    yield Need(
        name="DATA_PATH",
        meaning="tokenized data: its path without .bin, or `mock`: made-up tokens",
    )
    if recipe.checkpoint_every:
        yield Need(name="SAVE", meaning="folder of checkpoints")


def _data(model: ModelSpec) -> tuple[str, ...]:
    """Data and tokenizer, which the plan does not know."""
    mock = f"--mock-data --tokenizer-type NullTokenizer --vocab-size {model.vocab_size}"
    return (
        'if [ "$DATA_PATH" = mock ]; then',
        f"  DATA=({mock})",
        "else",
        '  : "${TOKENIZER:?Hugging Face name or folder of the tokenizer}"',
        '  DATA=(--data-path "$DATA_PATH" --split 100,0,0',
        '    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$TOKENIZER")',
        "fi",
    )


def differs(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Where Megatron does otherwise than the plan counts on."""
    config, model = plan.chosen.config, plan.model
    recompute = plan.chosen.placement.recompute or (config.recompute,)
    if "selective" in recompute:
        known = _recomputes_product(model, plan.job)
        product = "" if known else ", not the product of the gate"
        yield f"selective recomputation is of the attention core{product}."
    if model.num_expert_groups > 1:
        summed = model.num_experts_per_token // model.num_chosen_groups
        own = 1 if model.family == "deepseek_v2" else 2
        if summed != own:
            yield f"a group of experts is chosen by its {summed} best scores, not by {own}."
    if recipe.seed != (recipe.seed or _LEAST_SEED):
        yield f"the seed is {_LEAST_SEED}, the least that it takes."
    if plan.job.precision in ("fp8", "fp4"):
        yield f"{plan.job.precision} is cast by the release's default recipe."
