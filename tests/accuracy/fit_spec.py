"""What `fit.py` fits: each constant with its meaning, and what was known before the runs were read.

A constant's logarithm is normal around `prior` with standard deviation `spread`; where it differs
by device, network, kernel or software, each of these lies around the constant of all with
`between`. Priors of kernels and collectives come from measured tables (600 shapes of matrix
products and attention on A100 and B200, all-reduces of 2 to 8 A100, all-gathers over 2 to 64 nodes
with EFA); others from what the software does. `known` shifts one member, with its own spread.
"""

from dataclasses import dataclass, field
from math import log

from profiler.catalog.constants import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One constant before the fit."""

    name: str
    meaning: str
    unit: str
    prior: float
    spread: float
    by: Scope = "all"
    between: float = 0.0
    known: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Member -> (value before the fit, spread)."""


def _own(spread: float, *names: str) -> dict[str, tuple[float, float]]:
    """Members that the runs are left to place."""
    return dict.fromkeys(names, (0.0, spread))


SOFTWARE = (
    "megatron", "megatron-2021", "megatron-deepspeed", "nanotron", "composer", "internevo",
    "torchtitan", "maxtext",
)  # fmt: skip

SPECS = (
    Spec(name="matrix_efficiency", by="device", prior=0.65, spread=0.05, between=0.1,
         unit="of peak", meaning="large 16-bit matrix products",
         known={"a100-80": (0.765, 0.05), "a100-40": (0.765, 0.05), "b200": (0.5, 0.05),
                "gb200": (0.56, 0.1), "gb300": (0.6, 0.1), "h100": (0.72, 0.1)}),
    Spec(name="low_efficiency", by="device", prior=0.6, spread=0.3, between=0.18,
         unit="of peak", meaning="large 8- and 4-bit matrix products, their scaling included"),
    Spec(name="matrix_depth", prior=128, spread=0.15, unit="elements",
         meaning="inner dimension at which a tile's loop is half fill"),
    Spec(name="wave_tail", prior=0.1, spread=0.3, unit="waves",
         meaning="idle share of a product's last wave of tiles"),
    Spec(name="memory_efficiency", prior=0.75, spread=0.15, unit="of peak",
         meaning="element-wise kernels"),
    Spec(name="inner_efficiency", prior=0.8, spread=0.1, unit="of link",
         meaning="collectives inside a domain of fast links"),
    Spec(name="inner_step_s", prior=4.7e-6, spread=0.2, unit="s",
         meaning="one more rank of such a collective"),
    Spec(name="collective_base_s", prior=25e-6, spread=0.3, unit="s",
         meaning="start of such a collective"),
    Spec(name="network_efficiency", by="fabric", prior=0.7, spread=0.2, between=0.2,
         unit="of NICs", meaning="collectives between nodes"),
    Spec(name="network_step_s", by="fabric", prior=10e-6, spread=0.5, between=0.3, unit="s",
         meaning="one step of a collective between nodes", known={"efa": (39e-6, 0.3)}),
    Spec(name="tree_depth", prior=2.0, spread=0.5, unit="steps / 8 levels",
         meaning="steps of a large collective, as NCCL goes from rings to trees"),
    Spec(name="attention_efficiency", by="kernel", prior=0.55, spread=0.2, between=0.15,
         unit="of peak", meaning="causal attention in one kernel, long sequences",
         known={"ampere-flash": (0.6, 0.15), "hopper-flash": (0.38, 0.15),
                "hopper-fused": (0.55, 0.15), "blackwell-fused": (0.5, 0.15)}),
    Spec(name="attention_length", prior=300, spread=1.0, unit="tokens",
         meaning="sequence at which attention is half as fast"),
    Spec(name="attention_width", prior=20, spread=1.0, unit="elements",
         meaning="head width at which attention is half as fast"),
    Spec(name="attention_backward", prior=1.1, spread=0.3, unit="ratio",
         meaning="time of attention's backward per FLOP against forward"),
    Spec(name="score_passes", prior=6, spread=0.5, unit="passes",
         meaning="over the scores in memory where attention is no one kernel"),
    Spec(name="misaligned", prior=8, spread=0.8, unit="ratio",
         meaning="slow-down of batched products with head widths that 8 does not divide"),
    Spec(name="norm_passes", by="software", prior=14, spread=0.4, between=0.24, unit="passes",
         meaning="over the residual stream in a layer's forward (norms, dropout, residuals)",
         known=_own(0.3, *SOFTWARE)),
    Spec(name="activation_passes", prior=3, spread=0.4, unit="passes",
         meaning="over the feed-forward's up product"),
    Spec(name="qkv_passes", prior=3, spread=0.4, unit="passes",
         meaning="over q, k and v (bias, rotation, layout)"),
    Spec(name="routed_passes", prior=4, spread=0.4, unit="passes",
         meaning="over routed tokens (permutation, activation, weighted sum)"),
    Spec(name="cast_passes", prior=3, spread=0.7, unit="bytes / element",
         meaning="casts to 8 or 4 bits and their scales"),
    Spec(name="group_depth", prior=150, spread=0.8, unit="tokens",
         meaning="tokens per expert at which a group of products is half as fast, on an A100"),
    Spec(name="exchange_efficiency", prior=0.7, spread=0.4, unit="of collectives' rate",
         meaning="all-to-all of tokens"),
    Spec(name="exchange_base_s", prior=40e-6, spread=0.5, unit="s", meaning="start of one"),
    Spec(name="fused_exchange", prior=0.6, spread=0.4, unit="ratio",
         meaning="time of a fused exchange (DeepEP, HybridEP) against plain"),
    Spec(name="exposed_exchange", prior=0.5, spread=0.5, unit="share",
         meaning="of an exchange beside another micro-batch that stays exposed"),
    Spec(name="host_op_s", by="software", prior=27e-6, spread=0.3, between=0.18, unit="s",
         meaning="host time to start one fused operation of a layer"),
    Spec(name="dense_ops", prior=25, spread=0.01, unit="operations",
         meaning="of a dense layer's forward; 1.6 times where the feed-forward is gated"),
    Spec(name="moe_ops", prior=50, spread=0.4, unit="operations", meaning="of a MoE layer's"),
    Spec(name="latent_ops", prior=40, spread=0.5, unit="operations",
         meaning="that latent attention has beyond others (projections, norms, joined parts)"),
    Spec(name="expert_ops", prior=4, spread=0.6, unit="operations",
         meaning="for each expert held that wait for the counts of tokens, dropless"),
    Spec(name="fused_expert_ops", prior=0.4, spread=0.5, unit="ratio",
         meaning="of these that a fused exchange leaves"),
    Spec(name="checkpoint_ops", prior=10, spread=0.5, unit="operations",
         meaning="beside the module's own where one module runs again"),
    Spec(name="stall_s", prior=1.35e-3, spread=0.5, unit="s",
         meaning="least time of a layer per tensor rank while a receive from another node waits"),
    Spec(name="stall_base_s", prior=2.8e-3, spread=0.5, unit="s", meaning="the same, once"),
    Spec(name="exposed_tensor", by="software", prior=0.9, spread=0.3, between=0.24, unit="share",
         meaning="of tensor parallelism's collectives that nothing hides"),
    Spec(name="covered_context", prior=0.8, spread=0.3, unit="share",
         meaning="of attention that hides the exchange of keys and values"),
    Spec(name="weight_grad", prior=1.05, spread=0.1, unit="ratio",
         meaning="backward's matrix products against forward's"),
    Spec(name="vocabulary_passes", prior=5, spread=0.4, unit="passes",
         meaning="over fp32 logits by the loss"),
    Spec(name="exposed_send", prior=0.5, spread=0.5, unit="share",
         meaning="of messages between stages that nothing hides, in the steady state"),
    Spec(name="covered_reduction", by="software", prior=0.6, spread=0.4, between=0.3,
         unit="of one backward", meaning="that hides the reduction of gradients"),
    Spec(name="least_reduction", prior=0.1, spread=0.7, unit="share",
         meaning="of overlapped communication that is always exposed (the last bucket)"),
    Spec(name="covered_gather", prior=0.7, spread=0.3, unit="of the computation",
         meaning="that hides ZeRO-3's gathering"),
    Spec(name="broadcast_s", prior=3e-3, spread=0.5, unit="s",
         meaning="per owner of a shard whose weights are broadcast by themselves (InternEvo)"),
    Spec(name="optimizer_passes", prior=30, spread=0.3, unit="bytes / parameter",
         meaning="moved by the optimizer"),
    Spec(name="optimizer_s", prior=3e-3, spread=0.5, unit="s", meaning="start of the optimizer"),
    Spec(name="step_s", by="software", prior=12e-3, spread=0.15, between=1.0, unit="s",
         meaning="per step, whatever its size (data, logging, checks)"),
    Spec(name="straggler", prior=0.01, spread=1.0, unit="per doubling",
         meaning="slow-down of every doubling of the nodes"),
)  # fmt: skip


def offset(spec: Spec, member: str) -> tuple[float, float]:
    """(mean, spread) of a member's logarithm around the constant of all."""
    value, spread = spec.known.get(member, (0.0, spec.between))
    return (log(value / spec.prior) if value else 0.0), spread
