"""Simulate a prepared layout and split its step into components.

Every moment of a rank belongs to one component. An action is compute, but for the share of it spent
in collectives of its layers. A gap before an action is p2p from the moment the awaited message was
sent, idle before that. Gradient reduction is collective, copy and optimizer compute, the rest of
the step idle.
"""

from planner.objective import price_of
from planner.plan import Candidate, Estimate, StageEstimate
from planner.predict import with_bubble
from planner.prepared import Inputs, Prepared
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


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 0.0


def _rank(prepared: Prepared, timeline: Timeline, rank: int) -> StageEstimate:
    program = prepared.program
    forward, backward = prepared.forward_collective_s, prepared.backward_collective_s
    whole_s = program.backward_s
    sent = _sent(timeline, rank)
    compute = p2p = collective = idle = free = 0.0
    row = zip(timeline.table[rank], timeline.start[rank], timeline.end[rank], strict=True)
    for action, start, end in row:
        stage = action.stage
        ready = sent.get((stage, action.op == "F", action.micro_batch))
        moving = max(0.0, start - max(free, ready)) if ready is not None else 0.0
        p2p += moving
        idle += start - free - moving
        if action.op == "F":
            talk = _share(forward[stage], program.forward_s[stage])
        elif action.op == "W":
            talk = 0.0
        else:
            whole = whole_s[stage] if action.op == "B" else program.input_s[stage]
            talk = _share(backward[stage], whole)
        collective += (end - start) * talk
        compute += (end - start) * (1 - talk)
        free = end
    compute += timeline.bucket_end[rank] - free
    collective += timeline.sync_end[rank] - timeline.bucket_end[rank]
    compute += timeline.optimizer_end[rank] - timeline.sync_end[rank]
    idle += timeline.step_s - timeline.optimizer_end[rank]
    return StageEstimate(
        compute_s=float(compute),
        p2p_s=float(p2p),
        collective_s=float(collective),
        idle_s=max(0.0, float(idle)),
        memory=prepared.memory[rank],
    )


def _sent(timeline: Timeline, rank: int) -> dict[tuple[int, bool, int], float]:
    """(virtual stage, forward, micro-batch) of a rank's actions -> when what they wait for was
    sent, where another rank sends it."""
    owners = timeline.program.structure.owners
    wanted: dict[tuple[int, str, int], tuple[int, bool, int]] = {}
    for action in timeline.table[rank]:
        forward = action.op == "F"
        source = action.stage - 1 if forward else action.stage + 1
        if action.op != "W" and 0 <= source < len(owners) and owners[source] != rank:
            for op in ("F",) if forward else ("B", "I"):
                key = (action.stage, forward, action.micro_batch)
                wanted[(source, op, action.micro_batch)] = key
    sent = {}
    for other in {owners[source] for source, _, _ in wanted}:
        for action, end in zip(timeline.table[other], timeline.end[other], strict=True):
            found = wanted.get((action.stage, action.op, action.micro_batch))
            if found is not None:
                sent[found] = float(end)
    return sent
