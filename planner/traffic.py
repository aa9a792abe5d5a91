"""What the ranks of a layout send each other in a step, by axis: for mapping ranks to nodes.

    tp   ring        8 (t - 1) / t * T h e     per layer and micro-batch: gather and scatter around
                                               attention and feed-forward, forward and backward
    cp   ring        3 (c - 1) * T kv e / t    keys and values, again in backward, their gradients
    ep   all-to-all  4 T k h e / (t ep)        to each peer: dispatch and combine, and back
    dp   ring        2 (n - 1) / n * g params  per step: gradients of what the rank holds
    pp   chain       T h e / t                 each way, once per micro-batch

with T = b s / c tokens of a micro-batch on a rank, e bytes per element, g per gradient. All-reduces
of experts go over their own replicas (edp). In 1F1B a micro-batch's way down the pipeline and back
is waited for once in every p micro-batches (the hidden critical path of Pipette, Yim et al. 2024,
arXiv:2405.18093, 4.2), so a chain is gone through max(1, m / p) times.
"""

from dataclasses import dataclass
from typing import Literal

from planner.config import ParallelConfig
from profiler.job import GRAD_BYTES, WEIGHT_BYTES, JobSpec
from profiler.model import ModelSpec

Shape = Literal["ring", "chain", "all_to_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one axis sends in a step. ring: over each hop. chain: over each hop and way. all_to_all:
    to each peer."""

    axis: str
    """`pp`, `dp` (all replicas and cp), `cp`, `tp`, `ep`, `edp`."""
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
        _reduction("dp", config.num_replicas * config.cp, dense / config.tp, job),
        _reduction("edp", config.edp, experts / (config.ep * config.etp), job),
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
    sizes = {
        "pp": config.pp, "dp": config.num_replicas * config.cp, "edp": config.edp,
        "cp": config.cp, "ep": config.ep, "tp": config.tp,
    }  # fmt: skip
    return tuple(t for t in found if sizes[t.axis] > 1 and t.num_bytes > 0)


def _reduction(axis: str, number: int, params: float, job: JobSpec) -> Traffic:
    hops = 2 * (number - 1)
    num_bytes = hops / number * params * GRAD_BYTES[job.precision]
    return Traffic(axis=axis, shape="ring", num_bytes=num_bytes, messages=float(hops))
