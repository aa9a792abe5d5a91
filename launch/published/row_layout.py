"""A row's layout, checked against its own columns."""

import re
from typing import cast

from launch.published.cells import UnusableRowError, count, number
from launch.published.table import Cells
from planner.config import ParallelConfig, Recompute, ScheduleName, ZeroStage
from profiler.model import ModelSpec


def config_of(cells: Cells, model: ModelSpec, software: str) -> ParallelConfig:
    """Degrees and choices of the row; raises where its columns contradict each other."""
    tp, pp, cp = (count(cells, c, 1) for c in ("tp", "pp", "cp"))
    vpp = count(cells, "vp", 1)
    num_devices, batch = count(cells, "n_gpus"), count(cells, "gbs")
    micro = count(cells, "mbs")
    if num_devices % (tp * pp * cp):
        raise UnusableRowError(f"contradiction: tp*pp*cp = {tp * pp * cp}, n_gpus = {num_devices}")
    dp = num_devices // (tp * pp * cp)
    stated = number(cells, "dp")
    if stated is not None and stated != dp and not model.num_experts:
        raise UnusableRowError(f"contradiction: dp = {stated:.0f}, n_gpus/(tp*pp*cp) = {dp}")
    if dp * micro > batch:
        raise UnusableRowError(f"contradiction: dp*mbs = {dp * micro}, gbs = {batch}")
    if pp * vpp > model.num_layers + 2:
        raise UnusableRowError(f"contradiction: pp*vp = {pp * vpp}, layers = {model.num_layers}")
    ep = count(cells, "ep", 1) if model.num_experts else 1
    etp = min(count(cells, "etp", 1), tp) if model.num_experts else 1
    if num_devices // pp % (ep * etp):
        raise UnusableRowError(
            f"contradiction: ep*etp = {ep * etp}, n_gpus/pp = {num_devices // pp}"
        )
    zero, shard = _sharding(cells.get("dp_shard", ""), software, dp, cp)
    schedule: ScheduleName = "interleaved" if pp > 1 and vpp > 1 else "1f1b"
    return ParallelConfig(
        pp=pp, vpp=vpp if pp > 1 else 1, dp_replicate=dp // shard, dp_shard=shard, zero=zero,
        cp=cp, cp_method="ring", tp=tp, ep=ep, etp=etp, micro_batch=micro,
        recompute=_recompute(cells, software), schedule=schedule,
        offload="activations" if "cpu_offloading" in cells.get("features", "") else "none",
    )  # fmt: skip


def _sharding(text: str, software: str, dp: int, cp: int) -> tuple[ZeroStage, int]:
    """(ZeRO stage, replicas that share); FSDP is stage 3. Megatron-Core's distributed optimizer is
    stage 1, and its use is assumed."""
    words = text.lower()
    stage = re.search(r"zero-?(\d)", words)
    zero = int(stage[1]) if stage else 0
    if "fsdp" in words and "no fsdp" not in words and "fsdp=0" not in words:
        zero = 3
    if not stage and zero == 0 and software == "megatron":
        zero = 1
    named = re.search(r"group (\d+)|shard=(\d+)|(?<!ici_)fsdp2?[ =]([1-9]\d*)", words)
    shard = next((int(n) for n in named.groups() if n), dp) if named else dp
    if zero == 0 or shard < 1 or dp % shard:
        shard = dp if zero else 1
    return cast(ZeroStage, zero if shard * cp > 1 else 0), shard


def _recompute(cells: Cells, software: str) -> Recompute:
    text = cells.get("recompute", "").lower()
    if re.search(r"^full$|^full |full ac|ac: full|use_checkpoint=true|activation checkpoint", text):
        return "full"
    if re.search(r"core_attn|attention core|selective ac|ac: selective", text):
        return "selective"
    if not text and software == "megatron-deepspeed":
        return "full"
    return "none"
