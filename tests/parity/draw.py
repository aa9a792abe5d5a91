"""Layouts drawn at random, of models drawn at random: most cannot be, which is what they are for.

Every choice is free of the others, but for sizes that would make nearly all of them impossible
(the product of the degrees, stages that do not cover the model), so that rules of
`planner.layout` and not this file decide what can be.
"""

import dataclasses
import random
from collections.abc import Sequence
from typing import get_args

from cases import greedy_table
from grid import DEEPSEEK, DROPPING, LLAMA, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, Case

from planner.config import CpMethod, ExpertSlots, Recompute, ScheduleName, ZeroStage
from planner.layout import CONFIG_RULES, PLACEMENT_RULES
from profiler.errors import UserError
from profiler.model import ModelSpec

MODELS = (LLAMA, QWEN2, QWEN3, MIXTRAL, MIXTRAL, DROPPING, DROPPING, QWEN2_MOE, DEEPSEEK)
MAX_PROCESSES = 8
METHODS: tuple[CpMethod, ...] = ("ring", "all_gather", "ulysses")
"""What the runtime trains (`planner.layout.runtime_refuses`)."""


def draw_model(rng: random.Random) -> ModelSpec:
    """A model of one of the families with other sizes; `UserError` for one that cannot be."""
    base = rng.choice(MODELS)
    changes = {
        "num_layers": rng.randint(1, 6),
        "num_kv_heads": rng.choice((1, 2, 4)),
        "vocab_size": rng.choice((64, 66, 96)),
        "tie_embeddings": rng.random() < 0.3,
        "ffn_hidden_size": rng.choice((48, 36, 40)),
    }
    if base.num_experts:
        changes |= {
            "num_experts": rng.choice((4, 6, 8)),
            "num_experts_per_token": rng.choice((1, 2, 3)),
            "first_dense_layers": rng.choice((0, 0, 1)),
            "capacity_group": rng.choice((4, 8, 16)) if base.capacity_factor else 0,
            "num_expert_groups": rng.choice((1, 2, base.num_expert_groups)),
        }
        # Of one expert per token the weight would be 1, and the router without a gradient.
        changes["norm_topk"] = base.norm_topk and changes["num_experts_per_token"] > 1
        changes["num_chosen_groups"] = min(base.num_chosen_groups, changes["num_expert_groups"])
    return dataclasses.replace(base, **changes)


def _degrees(rng: random.Random) -> list[int]:
    """Of pp, dp_replicate, dp_shard, cp and tp, with a product of at most MAX_PROCESSES."""
    degrees, left = [1] * 5, rng.choice((4, 6, 8, 8, 8))
    order = rng.sample(range(5), 5)
    if rng.random() < 0.5:
        order = [0, *(i for i in order if i)]
    for i in order:
        degrees[i] = rng.choice([d for d in (1, 2, 2, 2, 3, 4, 8) if d <= left])
        left //= degrees[i]
    return degrees


def _stages(rng: random.Random, num_blocks: int, num_stages: int) -> tuple[tuple[int, int], ...]:
    """Contiguous stages of any length; some may be empty."""
    margin = rng.choice((0, 1, 1))
    cuts = sorted(rng.randint(margin, num_blocks - margin) for _ in range(num_stages - 1))
    return tuple(zip([0, *cuts], [*cuts, num_blocks], strict=True))


def _slots(rng: random.Random, num_experts: int, ep: int) -> ExpertSlots:
    """Every expert somewhere, some of them twice or more, with or without shares."""
    ranks: list[list[int]] = [[] for _ in range(ep)]
    for expert in rng.sample(range(num_experts), num_experts):
        most = rng.choice((1, 1, 1, 2, ep))
        for rank in rng.sample(range(ep), min(most, ep)):
            ranks[rank].append(expert)
    slots = tuple(map(tuple, ranks))
    if rng.random() < 0.5:
        return ExpertSlots(slots=slots)
    shares = tuple(tuple(rng.choice((0.5, 1.0, 2.0, 3.0)) for _ in rank) for rank in slots)
    return ExpertSlots(slots=slots, shares=shares)


def _table(rng: random.Random, pp: int, num_stages: int, num_microbatches: int) -> tuple[str, ...]:
    """Stages to ranks as it comes, each rank at least one."""
    owners = [*range(pp), *(rng.randrange(pp) for _ in range(num_stages - pp))]
    rng.shuffle(owners)
    split = [stage for stage in range(num_stages) if rng.random() < 0.3]
    return greedy_table(tuple(owners), num_microbatches, split)


def draw_case(rng: random.Random, model: ModelSpec) -> Case:
    """A layout of `model`, which may be one that cannot be."""

    def sometimes(chance: float, options: Sequence[int]) -> int:
        return rng.choice(options) if rng.random() < chance else 1

    pp, dp, shard, cp, tp = _degrees(rng)
    is_moe = bool(model.num_experts)
    ep = sometimes(0.7 if is_moe else 0.02, (2, 2, 3, 4, 8))
    schedule: ScheduleName = rng.choice(get_args(ScheduleName) if pp > 1 else ("gpipe", "1f1b"))
    one_stage = schedule in ("gpipe", "1f1b")
    vpp = sometimes(0.05 if one_stage else 0.8, (2, 2, 2, 3))
    micro_batch = rng.choice((1, 1, 2, 3))
    fitting = dp * shard * micro_batch * rng.randint(1, 5)
    zeros = get_args(ZeroStage)
    case = Case(
        model=model, pp=pp, dp=dp, shard=shard, cp=cp, tp=tp, schedule=schedule, vpp=vpp, ep=ep,
        zero=rng.choice(zeros[1:] if shard > 1 else zeros[:1]),
        cp_method=rng.choice(METHODS),
        etp=sometimes(0.3 if is_moe else 0.02, (2, 4)),
        ep_overlap=sometimes(0.5 if ep > 1 else 0.02, (2, 3, 4)),
        micro_batch=micro_batch, batch=rng.choice((fitting, fitting, fitting, 4, 6, 8)),
        seq_len=rng.choice((16, 24, 32)), recompute=rng.choice(get_args(Recompute)),
        stages=_stages(rng, len(model.blocks), pp * vpp), steps=2,
    )  # fmt: skip
    num_microbatches = case.config.num_microbatches(case.job)
    changes: dict[str, object] = {}
    if schedule == "table" and num_microbatches:
        changes["table"] = _table(rng, pp, pp * vpp, num_microbatches)
    if rng.random() < 0.4:
        num_ranks = case.config.num_devices
        changes["ranks"] = tuple(rng.sample(range(num_ranks), num_ranks))
    if rng.random() < 0.3:
        kinds = get_args(Recompute)
        changes["per_layer"] = tuple(rng.choice(kinds) for _ in range(model.num_layers))
    if is_moe and rng.random() < 0.6:
        layers = range(model.num_moe_layers)
        changes["experts"] = tuple(_slots(rng, model.num_experts, ep) for _ in layers)
    return dataclasses.replace(case, **changes)


def broken_rule(case: Case) -> str | None:
    """Id of the first rule that a layout breaks."""
    config, placement, model, job = case.config, case.placement, case.model, case.job
    degrees = (rule.id for rule in CONFIG_RULES if rule.broken(config, model, job))
    placing = (rule.id for rule in PLACEMENT_RULES if rule.broken(config, placement, model, job))
    return next(degrees, None) or next(placing, None)


def draw(seed: int) -> tuple[Case, list[str]]:
    """The first layout of a seed that can be, and the rules that refused the ones before it."""
    rng = random.Random(seed)
    refused: list[str] = []
    while True:
        try:
            case = draw_case(rng, draw_model(rng))
        except UserError:
            continue  # a model that cannot be
        rule = broken_rule(case)
        if rule is None and case.config.num_devices > 1:
            return case, refused
        if rule is not None:
            refused.append(rule)
