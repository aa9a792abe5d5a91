"""Plans to write for other frameworks: by their degrees, without a search or a cost."""

from itertools import pairwise

from planner.config import ParallelConfig, Placement
from planner.given import even_blocks
from planner.plan import Candidate, Plan, SearchCounts, SearchOptions, plan_id
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster, resolve_model
from profiler.codec import replace
from profiler.job import JobSpec


def plan_of(
    model: str,
    cluster: str,
    *,
    batch: int = 64,
    seq_len: int = 4096,
    precision: str = "bf16",
    layers: tuple[int, ...] = (),
    placement: dict[str, object] | None = None,
    **degrees: object,
) -> Plan:
    """A plan; degrees that are not named are 1. `layers`: of each stage, else equally many."""
    spec, hosts = resolve_model(model), resolve_cluster(cluster)
    plain = {"pp": 1, "dp_replicate": 1, "tp": 1, "micro_batch": 1}
    config = ParallelConfig(**(plain | {"recompute": "none", "schedule": "1f1b"} | degrees))
    job = JobSpec(global_batch=batch, seq_len=seq_len, precision=precision)
    stages = stages_of(spec.num_layers, len(spec.blocks), config.num_stages, layers)
    plan = Plan(
        id="",
        model=spec,
        job=job,
        cluster=hosts,
        profile=analytic_profile(spec, job, hosts),
        options=SearchOptions(pin={}, forbid={}, top=0),
        chosen=Candidate(
            config=config,
            placement=Placement(**({"stages": stages} | (placement or {}))),
            estimate=None,
        ),
        alternatives=(),
        counts=SearchCounts(enumerated=0, rejected={}, pruned=0, simulated=0),
    )
    return replace(plan, id=plan_id(plan))


def stages_of(
    num_layers: int, num_blocks: int, num_stages: int, layers: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Blocks of each stage: embedding in front, all behind the layers at the end."""
    if not layers:
        layers = tuple(b - a for a, b in even_blocks(num_layers, num_stages))
    ends = [0]
    for number in layers:
        ends.append((ends[-1] or 1) + number)
    ends[-1] = num_blocks
    return tuple(pairwise(ends))


_PP_INSIDE = tuple(
    4 * (replica * 2 + stage) + tp for stage in range(2) for replica in range(2) for tp in range(4)
)
"""Devices of tp4 dp2 pp2 whose two stages share a node."""

MEGATRON = {
    "zero1": ("llama3-8b", "h100-1x8", {"dp_shard": 8, "zero": 1}),
    "fsdp": ("llama3-8b", "h100-2x8", {"dp_replicate": 2, "dp_shard": 8, "zero": 3}),
    "tied-offload": ("qwen3-0.6b", "h100-1x8",
                     {"dp_shard": 8, "zero": 1, "offload": "optimizer"}),
    "tp-pp": ("llama3-70b", "h100-4x8", {"tp": 8, "pp": 4}),
    "interleaved": ("llama3-70b", "h100-8x8",
                    {"tp": 8, "pp": 4, "vpp": 5, "schedule": "interleaved", "dp_shard": 2,
                     "zero": 1, "recompute": "selective"}),
    "uneven": ("llama3-70b", "h100-4x8", {"tp": 8, "pp": 4, "layers": (19, 21, 21, 19)}),
    "long-ring": ("llama3-70b", "h100-8x8",
                  {"tp": 8, "cp": 8, "recompute": "full", "seq_len": 131072, "batch": 8}),
    "long-hybrid": ("llama3-70b", "h100-4x8",
                    {"tp": 4, "cp": 4, "cp_method": "hybrid", "cp_heads": 2, "dp_shard": 2,
                     "zero": 1, "seq_len": 65536}),
    "gpt-fp8": ("gpt3-175b", "h100-16x8", {"tp": 8, "pp": 8, "dp_shard": 2, "zero": 1,
                                           "precision": "fp8", "seq_len": 2048}),
    "moe": ("mixtral-8x7b", "h100-8x8", {"tp": 2, "pp": 4, "dp_shard": 8, "zero": 1, "ep": 8,
                                         "recompute": "selective"}),
    "moe-mla": ("deepseek-v3", "h100-32x8",
                {"tp": 2, "pp": 16, "dp_shard": 8, "zero": 1, "ep": 16, "recompute": "full",
                 "layers": (3, *(4,) * 14, 2)}),
    "pp-inside": ("llama3-8b", "h100-2x8",
                  {"tp": 4, "pp": 2, "dp_shard": 2, "zero": 1,
                   "placement": {"devices": _PP_INSIDE,
                                 "recompute": (("full",) * 4 + ("none",) * 12) * 2}}),
}  # fmt: skip
"""Name -> model, cluster, the rest of `plan_of`."""


def megatron_plan(name: str) -> Plan:
    """One of `MEGATRON`."""
    model, cluster, rest = MEGATRON[name]
    return plan_of(model, cluster, **rest)


TITAN = {
    "fsdp": ("llama3-8b", "h100-2x8", {"dp_replicate": 2, "dp_shard": 8, "zero": 3}),
    "tp-pp": ("llama3-70b", "h100-8x8",
              {"tp": 8, "pp": 4, "dp_shard": 2, "zero": 2, "recompute": "selective",
               "layers": (19, 21, 21, 19)}),
    "interleaved": ("llama3-8b", "h100-1x8",
                    {"tp": 2, "pp": 2, "vpp": 2, "schedule": "interleaved", "dp_shard": 2,
                     "zero": 2}),
    "long": ("llama3-8b", "h100-1x8", {"cp": 8, "cp_method": "all_gather", "recompute": "full",
                                       "seq_len": 131072, "batch": 8}),
    "tied": ("qwen3-0.6b", "h100-1x8", {"dp_shard": 8, "zero": 3}),
    "moe": ("qwen3-30b-a3b", "h100-2x8", {"dp_shard": 16, "zero": 3, "ep": 8}),
}  # fmt: skip
"""As `MEGATRON`, for both releases of torchtitan."""


def titan_plan(name: str) -> Plan:
    """One of `TITAN`."""
    model, cluster, rest = TITAN[name]
    return plan_of(model, cluster, **rest)


ACCELERATE = {
    "fsdp": ("llama3-8b", "h100-2x8", {"dp_replicate": 2, "dp_shard": 8, "zero": 3,
                                       "recompute": "full"}),
    "ddp": ("qwen3-0.6b", "h100-1x8", {"dp_replicate": 8}),
    "tp": ("llama3-8b", "h100-1x8", {"tp": 2, "dp_shard": 4, "zero": 2}),
    "long": ("llama3-8b", "h100-1x8", {"cp": 4, "cp_method": "all_gather", "dp_shard": 2,
                                       "zero": 3, "seq_len": 32768}),
}  # fmt: skip
"""As `MEGATRON`."""


def accelerate_plan(name: str) -> Plan:
    """One of `ACCELERATE`."""
    model, cluster, rest = ACCELERATE[name]
    return plan_of(model, cluster, **rest)


DEEPSPEED = {
    "zero3": ("llama3-8b", "h100-2x8", {"dp_shard": 16, "zero": 3, "offload": "optimizer"}),
    "tp": ("llama3-8b", "h100-1x8", {"tp": 2, "dp_shard": 4, "zero": 2}),
    "pipeline": ("llama3-8b", "h100-1x8", {"pp": 4, "dp_shard": 2, "zero": 1}),
}  # fmt: skip
NANOTRON = {
    "tp-pp": ("llama3-8b", "h100-2x8", {"tp": 4, "pp": 2, "dp_shard": 2, "zero": 1}),
    "bias": ("qwen2.5-7b", "h100-1x8", {"tp": 4, "dp_replicate": 2, "recompute": "full"}),
}  # fmt: skip


def deepspeed_plan(name: str) -> Plan:
    """One of `DEEPSPEED`."""
    model, cluster, rest = DEEPSPEED[name]
    return plan_of(model, cluster, **rest)


def nanotron_plan(name: str) -> Plan:
    """One of `NANOTRON`."""
    model, cluster, rest = NANOTRON[name]
    return plan_of(model, cluster, **rest)
