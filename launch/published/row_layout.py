"""A row's layout, checked against its own columns."""

import math
import re
from typing import cast

from launch.published.cells import UnusableRowError, count, shown
from launch.published.table import Cells
from planner.config import ParallelConfig, Recompute, ScheduleName, ZeroStage
from profiler.model import ModelSpec

MOST_ACTIONS = 10**7
"""Micro-batches times virtual stages of a row; the largest known run has 2 million."""


def config_of(cells: Cells, model: ModelSpec, software: str) -> ParallelConfig:
    """Degrees and choices of the row; raises where its columns contradict each other."""
    tp, pp, cp = (count(cells, c, 1) for c in ("tp", "pp", "cp"))
    vpp = count(cells, "vp", 1) if pp > 1 else 1
    micro, dp = count(cells, "mbs"), _replicas(cells, model, tp * pp * cp)
    stages = dp * tp * cp
    ep = count(cells, "ep", 1) if model.num_experts else 1
    etp = min(count(cells, "etp", 1), tp) if model.num_experts else 1
    if stages % (ep * etp):
        raise _contradiction("ep*etp", ep * etp, "n_gpus/pp", stages)
    if ep > max(1, model.num_experts):
        raise _contradiction("ep", ep, "n_experts", model.num_experts)
    if pp * vpp > model.num_layers + 2:
        raise _contradiction("pp*vp", pp * vpp, "layers", model.num_layers)
    actions = pp * vpp * count(cells, "gbs") // (dp * micro)
    if actions > MOST_ACTIONS:
        raise UnusableRowError(f"too many micro-batches to simulate: {actions:,} with all stages")
    zero, shard = _sharding(cells.get("dp_shard", ""), software, dp, cp)
    schedule: ScheduleName = "interleaved" if vpp > 1 else "1f1b"
    return ParallelConfig(
        pp=pp, vpp=vpp, dp_replicate=dp // shard, dp_shard=shard, zero=zero,
        cp=cp, cp_method="ring", tp=tp, ep=ep, etp=etp, micro_batch=micro,
        recompute=_recompute(cells, software), schedule=schedule,
        offload="activations" if "cpu_offloading" in cells.get("features", "") else "none",
    )  # fmt: skip


def _replicas(cells: Cells, model: ModelSpec, ranks: int) -> int:
    """Replicas of `ranks` ranks each."""
    num_devices, batch, micro = count(cells, "n_gpus"), count(cells, "gbs"), count(cells, "mbs")
    if num_devices % ranks:
        raise _contradiction("tp*pp*cp", ranks, "n_gpus", num_devices)
    dp = num_devices // ranks
    stated = count(cells, "dp", dp)
    if stated != dp and not model.num_experts:
        raise _contradiction("dp", stated, "n_gpus/(tp*pp*cp)", dp)
    if dp * micro > batch:
        raise _contradiction("dp*mbs", dp * micro, "gbs", batch)
    return dp


def _contradiction(one: str, value: int, other: str, found: int) -> UnusableRowError:
    return UnusableRowError(f"contradiction: {one} = {value}, {other} = {found}")


def _sharding(text: str, software: str, dp: int, cp: int) -> tuple[ZeroStage, int]:
    """(ZeRO stage, replicas that share); FSDP is stage 3. Megatron-Core's distributed optimizer is
    stage 1, and its use is assumed. Context-parallel ranks share too, so a stated group may count
    them."""
    words = text.lower()
    stage = re.search(r"zero[- ]?([0-9])", words)
    zero = int(stage[1]) if stage else 0
    if zero > 3:
        raise UnusableRowError(f"no such ZeRO stage: {shown(text)}")
    if "fsdp" in words and not re.search(r"no fsdp|(?<!_)fsdp=0", words):
        zero = 3
    if not stage and zero == 0 and software == "megatron":
        zero = 1
    if not words and software in ("torchtitan", "composer", "maxtext"):
        zero = 3  # they shard unless told not to
    shard = _group_size(words) or dp
    if dp * cp % shard:
        raise UnusableRowError(f"contradiction: sharded over {shard}, dp*cp = {dp * cp}")
    if zero == 0 or dp % shard:
        shard = dp if zero else 1
    return cast(ZeroStage, zero if shard * cp > 1 else 0), shard


def _group_size(words: str) -> int:
    """Ranks that a group is stated to have: `group 8`, `shard=8`, `FSDP2 64`, or MaxText's
    `ici_FSDP=8,dcn_FSDP=16`, inside a node and between; 0 where none is."""
    meshes = [int(n) for n in re.findall(r"(?:ici|dcn)_fsdp=([0-9]{1,7})", words)]
    if meshes:
        return math.prod(meshes)
    named = re.search(
        r"group ([0-9]{1,7})|shard=([0-9]{1,7})|\bfsdp2?[ =]([0-9]{1,7})(?![0-9])", words
    )
    return next((int(n) for n in named.groups() if n), 0) if named else 0


def _recompute(cells: Cells, software: str) -> Recompute:
    text = cells.get("recompute", "").lower()
    if re.search(r"^full$|^full |full ac|ac: full|use_checkpoint=true|activation checkpoint", text):
        return "full"
    if re.search(r"core_attn|attention core|selective ac|ac: selective", text):
        return "selective"
    if not text and software == "megatron-deepspeed":
        return "full"
    return "none"
