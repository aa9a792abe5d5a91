"""Simulate a prepared layout and split its step into components.

Every moment of a rank belongs to one component. An action is compute, but for the share of it spent
in collectives of its layers. A gap before an action is p2p from the moment the awaited message was
sent, idle before that. Gradient reduction is collective, copy and optimizer compute, the rest of
the step idle.
"""

import numpy as np

from planner.dependencies import OPS, Graph, graph_of
from planner.objective import price_of
from planner.plan import Candidate, Estimate, StageEstimate
from planner.predict import with_bubble
from planner.prepared import Floats, Inputs, Prepared
from planner.simulate import Timeline, simulate


def estimate(costs: Inputs, prepared: Prepared) -> Candidate:
    """The layout with its full estimate."""
    timeline = simulate(prepared.program, prepared.sharing)
    ranks = tuple(_rank(prepared, timeline, r) for r in range(prepared.config.pp))
    step_s = timeline.step_s
    job, num = costs.job, prepared.config.num_devices
    flops = costs.model.flops_per_token(job.seq_len) * job.tokens_per_step
    peak, price = costs.node.device.flops_per_s[job.precision] * num, price_of(costs.node, num)
    if prepared.groups:
        each = prepared.config.stage_ranks
        peak = sum(g.device.flops_per_s[job.precision] * each for g in prepared.groups)
        price = sum(price_of(g, each) for g in prepared.groups)
    if any(g.price_per_hour is None for g in costs.profile.cluster.groups):
        price = 0.0

    def mean(component: str) -> float:
        return float(sum(getattr(s, component) for s in ranks)) / len(ranks)

    return Candidate(
        config=prepared.config,
        placement=prepared.placement,
        estimate=Estimate(
            step_s=step_s,
            compute_s=mean("compute_s"),
            p2p_s=mean("p2p_s"),
            collective_s=mean("collective_s"),
            idle_s=mean("idle_s"),
            bound_s=min(prepared.bound_s, step_s),
            peak_bytes=prepared.peak_bytes,
            tokens_per_s=job.tokens_per_step / step_s,
            mfu=flops / (step_s * peak),
            measured_share=prepared.measured_share,
            price_per_hour=price,
            stages=ranks,
            terms=with_bubble(prepared.terms, step_s) if prepared.terms else {},
        ),
    )


def _rank(prepared: Prepared, timeline: Timeline, rank: int) -> StageEstimate:
    graph = graph_of(timeline.program.structure)
    row = graph.rows[rank]
    start, end = (
        np.asarray(rows[rank], dtype=np.float64) for rows in (timeline.start, timeline.end)
    )
    free = np.concatenate([[0.0], end[:-1]])
    sent = _sent(timeline, graph, rank)
    moving = np.where(np.isfinite(sent), np.maximum(0.0, start - np.maximum(free, sent)), 0.0)
    talk = _talk(prepared)[graph.kind[row]]
    busy_s, sync_s = timeline.bucket_end[rank], timeline.sync_end[rank]
    compute = _sum((end - start) * (1 - talk)) + (busy_s - (end[-1] if len(end) else 0.0))
    collective = _sum((end - start) * talk) + (sync_s - busy_s)
    idle = _sum(start - free - moving) + (timeline.step_s - timeline.optimizer_end[rank])
    return StageEstimate(
        compute_s=float(compute + (timeline.optimizer_end[rank] - sync_s)),
        p2p_s=_sum(moving),
        collective_s=float(collective),
        idle_s=max(0.0, float(idle)),
        memory=prepared.memory[rank],
    )


def _sum(values: Floats) -> float:
    """In order, so that the last bits do not depend on numpy's blocks."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


def _talk(prepared: Prepared) -> Floats:
    """Share of an action that its rank spends in collectives, by kind."""
    program = prepared.program
    forward, back = prepared.forward_collective_s, prepared.backward_collective_s
    whole = {
        "F": (forward, program.forward_s),
        "B": (back, program.backward_s),
        "I": (back, program.input_s),
        "W": ((0.0,) * len(back), program.weight_s),
    }
    return np.array([_share(a, b) for op in OPS for a, b in zip(*whole[op], strict=True)])


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 0.0


def _sent(timeline: Timeline, graph: Graph, rank: int) -> Floats:
    """When what each action of a rank waits for was sent; -inf where no other rank sends it."""
    needs = graph.needs[graph.rows[rank]] - graph.first
    sender = np.where(needs < 0, rank, graph.rank[needs])
    sent = np.full(len(needs), -np.inf)
    for other in np.unique(sender[sender != rank]):
        ends = np.empty(len(graph.kind))
        ends[graph.rows[other]] = timeline.end[other]
        mine = sender == other
        sent[mine] = ends[needs[mine]]
    return sent
