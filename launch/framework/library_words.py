"""What the frameworks that take a user's own training script cannot do, whatever they are called.

DeepSpeed, Accelerate and nanotron are given the degrees; which layers there are, and where they are
cut, is the script's or theirs.
"""

import dataclasses
from collections.abc import Iterator

from launch.framework.base import Need, Refusal
from planner.plan import Plan
from profiler.model import ModelSpec

SCRIPT_NEED = Need(name="SCRIPT", meaning="training script, with its arguments in SCRIPT_ARGS")
RUN_SCRIPT = '"$SCRIPT" ${SCRIPT_ARGS:-}'


def no_placement(plan: Plan) -> Iterator[Refusal]:
    """What only a framework with words for single layers and experts can."""
    placement = plan.chosen.placement
    if len(set(placement.recompute)) > 1:
        yield Refusal("it does not choose layers to recompute", "recompute=full")
    if placement.experts:
        yield Refusal("it holds experts in their order, once each: none are placed or copied")


def unsaid(model: ModelSpec, said: frozenset[str]) -> Iterator[Refusal]:
    """Optional parts of a model that would be lost: fields beside those `said` which do not have
    their default."""
    implied = {"max_positions", "window", "shared_gate", "num_chosen_groups", "capacity_group"}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        same = field.default is dataclasses.MISSING or value == field.default
        if field.name == "attention_pattern":
            same = set(value) == {"full"}
        if field.name == "value_head_dim":
            same = model.v_head_dim == model.head_dim
        if not same and field.name not in said | implied:
            yield Refusal(f"no {field.name} `{value}` is written for it")


def no_precision_but(plan: Plan, *known: str) -> Iterator[Refusal]:
    """Number formats that nothing is written for."""
    if plan.job.precision not in known:
        yield Refusal(f"no file is written for {plan.job.precision}", option="--precision bf16")


def no_selective(plan: Plan) -> Iterator[Refusal]:
    """Recomputation of parts of a layer."""
    if recompute_of(plan) == "selective":
        yield Refusal("it recomputes whole layers or none", "recompute=full")


def no_axes(plan: Plan, title: str, *axes: str) -> Iterator[Refusal]:
    """Degrees that it lacks."""
    for axis in axes:
        if getattr(plan.chosen.config, axis) > 1:
            yield Refusal(f"{title} has no {axis}", f"{axis}=1")


def accumulation(plan: Plan) -> int:
    """Micro-batches of a replica in a step."""
    return plan.chosen.config.num_microbatches(plan.job)


def recompute_of(plan: Plan) -> str:
    """none, selective or full."""
    return (plan.chosen.placement.recompute or (plan.chosen.config.recompute,))[0]
