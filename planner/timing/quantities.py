"""What the time model takes: shapes, machine, software and constants, as numbers or arrays.

Every field is a number or an array of one length [n], so one formula serves a single layout, the
rows of a table of runs (each with a model and a machine of its own), and the millions of layouts of
a search. `columns` turns records of numbers into one record of arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Num: TypeAlias = Any
"""A float, or an array [n] of them."""
Array: TypeAlias = NDArray[Any]
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model at a sequence length; counts are elements, `mtp` layers counted as layers."""

    hidden: Num
    num_layers: Num
    num_moe: Num
    """Layers with routed experts."""
    heads: Num
    kv_heads: Num
    qk_dim: Num
    """Width of a q or k head, rotary part included."""
    q_gates: Num
    """1: the q projection gives a gate of the size of q as well."""
    v_dim: Num
    q_lora: Num
    kv_lora: Num
    """Above 0: multi-head latent attention."""
    rope_dim: Num
    ffn: Num
    gated: Num
    """1: three matrices, 0: two."""
    vocab: Num
    tied: Num
    experts: Num
    topk: Num
    expert_ffn: Num
    expert_bias: Num
    """1: experts' products have biases."""
    shared_ffn: Num
    context: Num
    """Tokens that a token attends to, mean over tokens and layers; linear layers count 0."""
    linear_share: Num
    """Share of the layers with linear attention."""
    linear_in: Num
    """Outputs of such a layer's first product: queries, keys, values and gates of all heads."""
    linear_out: Num
    """Values of such a layer, all heads."""
    linear_state: Num
    """Key width * value width * value heads of such a layer."""
    mtp: Num
    seq_len: Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Degrees of a layout as floats; `replicas` = dp_replicate * dp_shard."""

    pp: Num
    vpp: Num
    replicas: Num
    dp_shard: Num
    zero: Num
    cp: Num
    cp_method: Num
    """Position in `planner.layouts.CP_METHODS`."""
    cp_heads: Num
    tp: Num
    ep: Num
    etp: Num
    micro_batch: Num
    num_microbatches: Num
    recompute: Num
    """Position in `planner.layouts.RECOMPUTES`."""
    schedule: Num
    """Position in `planner.layouts.SCHEDULES`."""
    offload: Num
    load: Num = 1.0
    """Choices at the fullest rank of `ep` over the mean rank's."""
    own_load: Num = 1.0
    """What takes this kind of node as long to compute as the slowest rank, over `load`."""
    expert_copies: Num = 1.0
    """Slots for experts over experts: above 1 with replicas."""
    ep_overlap: Num = 1.0
    """Chunks in which tokens are exchanged."""
    shared_experts: Num = 0.0
    """Experts that several ranks hold over all experts."""

    @property
    def data_ranks(self) -> Num:
        """Ranks that hold the same weights and see other tokens."""
        return self.replicas * self.cp

    @property
    def shard_ranks(self) -> Num:
        """Ranks over which ZeRO shards."""
        return np.where(self.zero > 0, self.dp_shard * self.cp, 1.0)

    @property
    def expert_data_ranks(self) -> Num:
        """Ranks that hold the same part of the same experts."""
        return np.maximum(self.data_ranks * self.tp / (self.ep * self.etp), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Devices and links: rates per second, one direction, as one device sees them."""

    peak: Num
    """FLOP/s of 16-bit (or the job's plain) matrices."""
    peak_low: Num
    """FLOP/s of the job's 8- or 4-bit matrices; `peak` where it has none."""
    low: Num
    """1: weights' products are in 8 or 4 bits; attention and head stay in 16."""
    element_bytes: Num
    memory_rate: Num
    units: Num
    """Multiprocessors."""
    inner_rate: Num
    """Bytes/s of a device's fast link."""
    nic_rate: Num
    """Bytes/s of a device's share of its node's NICs."""
    domain: Num
    """Devices that the fast link joins."""
    per_node: Num
    num_devices: Num
    host_rate: Num
    """Bytes/s between a device and its host's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """What the training code does, as far as time depends on it."""

    flash: Num = 1.0
    """Attention in one kernel; 0: scores go through memory."""
    sequence_parallel: Num = 1.0
    balanced: Num = 1.0
    """Layers are split for equal time; 0: equally many, head and embedding besides."""
    compiled: Num = 0.0
    """torch.compile."""
    graph: Num = 0.0
    """Share of the kernels that start from CUDA graphs."""
    drops: Num = 0.0
    """Experts have a fixed capacity, so that nothing waits for routing."""
    fused_exchange: Num = 0.0
    """Tokens go to experts by fused kernels (DeepEP, HybridEP)."""
    overlap_exchange: Num = 0.0
    """...beside the computation of another micro-batch."""
    chunked_exchange: Num = 0.0
    """...and beside that of experts, in the chunks that the layout's `ep_overlap` says."""
    stalls: Num = 0.0
    """Collectives of tensor parallelism wait for a pending receive from another node (nanotron)."""
    overlaps: Num = 1.0
    """Communication of tensor parallelism, pipeline and replicas runs beside computation."""
    broadcasts: Num = 0.0
    """ZeRO sends each owner's weights by itself (InternEvo)."""
    reduce_bytes: Num = 4.0
    """Per parameter in the reduction of gradients."""
    recompute_full: Num = 0.0
    """Further share of the layers that runs forward again."""
    recompute_matrix: Num = 0.0
    """Share of the matrix products that runs again."""
    recompute_norms: Num = 0.0
    """1: norms run again, their outputs dropped; below, the same of other modules."""
    recompute_ffn: Num = 0.0
    recompute_expert_activation: Num = 0.0
    recompute_latent: Num = 0.0
    """The up projections of latent attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Fitted numbers; meaning, range and origin of each stand in `constants.yaml`."""

    matrix_efficiency: Num
    low_efficiency: Num
    matrix_depth: Num
    wave_tail: Num
    memory_efficiency: Num
    inner_efficiency: Num
    inner_step_s: Num
    collective_base_s: Num
    network_efficiency: Num
    network_step_s: Num
    tree_depth: Num
    attention_efficiency: Num
    attention_length: Num
    attention_width: Num
    attention_backward: Num
    score_passes: Num
    misaligned: Num
    norm_passes: Num
    activation_passes: Num
    qkv_passes: Num
    routed_passes: Num
    cast_passes: Num
    group_depth: Num
    exchange_efficiency: Num
    exchange_base_s: Num
    fused_exchange: Num
    exposed_exchange: Num
    host_op_s: Num
    dense_ops: Num
    moe_ops: Num
    latent_ops: Num
    expert_ops: Num
    fused_expert_ops: Num
    checkpoint_ops: Num
    stall_s: Num
    stall_base_s: Num
    exposed_tensor: Num
    covered_context: Num
    weight_grad: Num
    vocabulary_passes: Num
    exposed_send: Num
    covered_reduction: Num
    least_reduction: Num
    covered_gather: Num
    broadcast_s: Num
    optimizer_passes: Num
    optimizer_s: Num
    step_s: Num
    straggler: Num


def columns(records: Sequence[R]) -> R:
    """One record of arrays [n] from n records of numbers."""
    first = records[0]
    names = [f.name for f in fields(first)]  # type: ignore[arg-type]
    table = {n: np.array([getattr(r, n) for r in records], dtype=np.float64) for n in names}
    return type(first)(**table)


def rows(record: R, chosen: Array) -> R:
    """The chosen entries of a record of arrays; plain numbers stay."""
    names = [f.name for f in fields(record)]  # type: ignore[arg-type]
    values = {n: getattr(record, n) for n in names}
    return type(record)(**{n: v[chosen] if np.ndim(v) else v for n, v in values.items()})
