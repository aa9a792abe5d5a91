"""Simulate a prepared layout and split its step into components.

Every moment of a rank belongs to one component. An action is compute, but for the share of it spent
in tensor-parallel collectives. A gap before an action is p2p from the moment the awaited message
was sent, idle before that. Gradient reduction is collective, the optimizer compute, the rest of the
step idle.
"""

from planner.cost import CostModel, Prepared
from planner.plan import Candidate, Estimate, StageEstimate
from planner.simulate import Timeline, simulate


def estimate(costs: CostModel, prepared: Prepared) -> Candidate:
    """The layout with its full estimate."""
    timeline = simulate(prepared.program, prepared.sharing)
    stages = tuple(_stage(prepared, timeline, s) for s in range(prepared.config.pp))
    step_s = timeline.step_s
    job, num = costs.job, prepared.config.num_devices
    flops = costs.model.flops_per_token(job.seq_len) * job.tokens_per_step
    peak = costs.node.device.flops_per_s[job.precision] * num

    def mean(component: str) -> float:
        return float(sum(getattr(s, component) for s in stages)) / len(stages)

    return Candidate(
        config=prepared.config,
        placement=prepared.placement,
        estimate=Estimate(
            step_s=step_s,
            compute_s=mean("compute_s"),
            p2p_s=mean("p2p_s"),
            collective_s=mean("collective_s"),
            idle_s=mean("idle_s"),
            bound_s=prepared.bound_s,
            peak_bytes=prepared.peak_bytes,
            tokens_per_s=job.tokens_per_step / step_s,
            mfu=flops / (step_s * peak),
            measured_share=prepared.measured_share,
            stages=stages,
        ),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _stage(prepared: Prepared, timeline: Timeline, s: int) -> StageEstimate:
    program = prepared.program
    talk = {
        "F": _share(prepared.forward_collective_s[s], program.forward_s[s]),
        "B": _share(prepared.backward_collective_s[s], program.backward_s[s]),
    }
    compute = p2p = collective = idle = free = 0.0
    sent = _sent(timeline, s)
    row = zip(timeline.table[s], timeline.start[s], timeline.end[s], strict=True)
    for action, start, end in row:
        ready = sent.get((action.op, action.micro_batch))
        moving = max(0.0, start - max(free, ready)) if ready is not None else 0.0
        p2p += moving
        idle += start - free - moving
        collective += (end - start) * talk[action.op]
        compute += (end - start) * (1 - talk[action.op])
        free = end
    compute += timeline.bucket_end[s] - free
    collective += timeline.sync_end[s] - timeline.bucket_end[s]
    compute += timeline.optimizer_end[s] - timeline.sync_end[s]
    idle += timeline.step_s - timeline.optimizer_end[s]
    return StageEstimate(
        compute_s=float(compute),
        p2p_s=float(p2p),
        collective_s=float(collective),
        idle_s=max(0.0, float(idle)),
        memory=prepared.memory[s],
    )


def _sent(timeline: Timeline, s: int) -> dict[tuple[str, int], float]:
    """(op, micro-batch) of stage s -> when the neighbour finished what that action waits for."""
    sent: dict[tuple[str, int], float] = {}
    for op, source in (("F", s - 1), ("B", s + 1)):
        if 0 <= source < len(timeline.table):
            ends = zip(timeline.table[source], timeline.end[source], strict=True)
            sent |= {(a.op, a.micro_batch): float(end) for a, end in ends if a.op == op}
    return sent
