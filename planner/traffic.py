"""What the ranks of a layout send each other in a step, by axis: for mapping ranks to nodes.

    tp   ring        8 (t - 1) / t * T h e     per layer and micro-batch: gather and scatter around
                                               attention and feed-forward, forward and backward
    cp   ring        3 (c - 1) * T kv e / t    keys and values, again in backward, their gradients
    ep   all-to-all  4 T k h e / (t ep)        to each peer: dispatch and combine, and back
    dp   ring        2 (n - 1) / n * g params  per step: gradients of what the rank holds; ZeRO 1
                                               and 2 gather weights instead of gradients, (g + e)
    shard  ring      (n - 1) / n (2 m e + g) params   ZeRO 3: weights gathered for each forward and
                                               backward; the replicas of a shard reduce as dp does
    pp   chain       T h e / t                 each way, once per micro-batch

with T = b s / c tokens of a micro-batch on a rank, e bytes per element, g per gradient. All-reduces
of experts go over their own replicas (edp). In 1F1B a micro-batch's way down the pipeline and back
is waited for once in every p micro-batches (the hidden critical path of Pipette, Yim et al. 2024,
arXiv:2405.18093, 4.2), so a chain is gone through max(1, m / p) times.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from planner.config import ParallelConfig
from profiler.codec import replace
from profiler.job import GRAD_BYTES, WEIGHT_BYTES, JobSpec
from profiler.model import ModelSpec

Shape = Literal["ring", "chain", "all_to_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one axis sends in a step. ring: over each hop. chain: over each hop and way. all_to_all:
    to each peer."""

    axis: str
    """`pp`, `dp` (all replicas and cp), `shard` (dp_shard and cp), `dp_replicate`, `cp`, `tp`,
    `ep`, `edp`."""
    shape: Shape
    num_bytes: float
    messages: float
    closed: bool = False
    """Of a chain: from the last rank back to the first as well."""


def traffic_of(model: ModelSpec, config: ParallelConfig, job: JobSpec) -> tuple[Traffic, ...]:
    """Axes of more than one rank, the outermost first."""
    m = config.num_microbatches(job)
    element = float(WEIGHT_BYTES[job.precision])
    tokens = config.micro_batch * job.seq_len / config.cp
    calls = m * model.num_layers / config.pp
    rounds = max(1.0, m / config.pp)
    boundary = tokens * model.hidden_size * element
    experts = model.num_moe_layers * model.num_experts * model.expert_params / config.pp
    dense = model.num_params / config.pp - experts
    found = [
        Traffic(axis="pp", shape="chain", num_bytes=rounds * config.vpp * boundary / config.tp,
                messages=rounds * config.vpp, closed=config.vpp > 1),
        *_reductions(config, job, dense / config.tp),
        _reduction("edp", config.edp, experts / (config.ep * config.etp), config, job),
        Traffic(axis="cp", shape="ring", messages=calls * 3 * (config.cp - 1),
                num_bytes=calls * 3 * (config.cp - 1) * tokens * element / config.tp
                * model.num_kv_heads * (model.qk_head_dim + model.v_head_dim)),
        Traffic(axis="ep", shape="all_to_all",
                num_bytes=4 * m * model.num_moe_layers / config.pp * boundary / config.tp
                * model.num_experts_per_token / config.ep,
                messages=4 * m * model.num_moe_layers / config.pp),
        Traffic(axis="tp", shape="ring", messages=8 * calls * (config.tp - 1),
                num_bytes=8 * calls * (config.tp - 1) / config.tp * boundary),
    ]  # fmt: skip
    alone = {axis for axis, size in (("pp", config.pp), ("ep", config.ep)) if size == 1}
    return tuple(t for t in found if t.num_bytes > 0 and t.axis not in alone)


def _reductions(config: ParallelConfig, job: JobSpec, params: float) -> Iterator[Traffic]:
    """Of what all replicas hold alike."""
    shards = config.dp_shard * config.cp
    if config.zero < 3:
        yield _reduction("dp", config.dp_replicate * shards, params, config, job)
        return
    yield _reduction("shard", shards, params, config, job)
    alike = replace(config, zero=0)
    yield _reduction("dp_replicate", config.dp_replicate, params / shards, alike, job)


def _reduction(
    axis: str, number: int, params: float, config: ParallelConfig, job: JobSpec
) -> Traffic:
    """Gradients over a group of `number`, and weights where they are sharded over it."""
    weight, grad = WEIGHT_BYTES[job.precision], GRAD_BYTES[job.precision]
    gathers = 2 * config.num_microbatches(job) if config.zero == 3 else 1
    back = gathers * (weight if config.zero else grad)
    hops = number - 1
    return Traffic(axis=axis, shape="ring", num_bytes=hops / number * params * (grad + back),
                   messages=float(hops * (1 + gathers)))  # fmt: skip
