"""A plan made by hand, with every field that explaining looks at; no search, no cost model."""

from itertools import pairwise

from planner.config import ParallelConfig, Placement
from planner.plan import (
    TERMS,
    Candidate,
    Estimate,
    Plan,
    SearchCounts,
    SearchOptions,
    StageEstimate,
    StageMemory,
    plan_id,
)
from planner.program import Program
from planner.simulate import simulate
from profiler.analytic import analytic_profile
from profiler.catalog import resolve_cluster, resolve_model
from profiler.codec import replace
from profiler.job import JobSpec

GIB = 2**30
MODEL = resolve_model("llama3-70b")
JOB = JobSpec(global_batch=256, seq_len=8192)
CLUSTER = resolve_cluster("h100-4x8")
_SPLIT = (0.61, 0.09, 0.05, 0.01, 0.0, 0.07, 0.0, 0.0, 0.01, 0.11, 0.02, 0.02, 0.01)


def even_stages(num_blocks: int, num: int) -> tuple[tuple[int, int], ...]:
    """Blocks dealt out evenly."""
    ends = [num_blocks * k // num for k in range(num + 1)]
    return tuple(pairwise(ends))


def config(**changes: object) -> ParallelConfig:
    """tp8 pp4 of 32 devices, interleaved."""
    plain = ParallelConfig(
        pp=4, vpp=2, dp_replicate=1, tp=8, micro_batch=1, recompute="none", schedule="interleaved"
    )
    return replace(plain, **changes)


def memory(stage: int) -> StageMemory:
    """Less activations on later stages."""
    return StageMemory(
        weight_bytes=5 * GIB,
        grad_bytes=9 * GIB,
        optimizer_bytes=27 * GIB,
        activation_bytes=max(3, 24 - 5 * stage) * GIB,
        buffer_bytes=GIB // 2,
        workspace_bytes=2 * GIB,
    )


def candidate(step_s: float, layout: ParallelConfig, peak_gib: float, **terms: float) -> Candidate:
    """A layout that takes `step_s`, of which `terms` are other shares than usual."""
    shares = dict(zip(TERMS, _SPLIT, strict=True)) | terms
    total = sum(shares.values())
    stage = StageEstimate(
        compute_s=step_s * 0.8, p2p_s=0.0, collective_s=step_s * 0.1, idle_s=step_s * 0.1,
        memory=memory(0),
    )  # fmt: skip
    tokens = JOB.tokens_per_step / step_s
    return Candidate(
        config=layout,
        placement=Placement(stages=even_stages(len(MODEL.blocks), layout.num_stages)),
        estimate=Estimate(
            step_s=step_s,
            compute_s=step_s * 0.8,
            p2p_s=0.0,
            collective_s=step_s * 0.1,
            idle_s=step_s * 0.1,
            bound_s=step_s * 0.97,
            peak_bytes=int(peak_gib * GIB),
            tokens_per_s=tokens,
            mfu=tokens * 6 * 70e9 / (32 * 989e12),
            measured_share=0.0,
            terms={name: step_s * share / total for name, share in shares.items()},
            stages=tuple(replace(stage, memory=memory(s)) for s in range(layout.pp)),
        ),
    )


def plan(**changes: object) -> Plan:
    """Llama-3 70B on 32 H100."""
    chosen = candidate(35.0, config(), 67.5)
    flat = config(tp=4, dp_replicate=2, vpp=1, schedule="1f1b")
    alternatives = (
        candidate(36.1, flat, 71.9, tensor=0.03, bubble=0.19),
        candidate(37.4, config(tp=4, pp=8), 58.1, bubble=0.2),
        candidate(44.6, config(recompute="full", micro_batch=2), 48.0, recompute=0.24),
    )
    made = Plan(
        id="",
        model=MODEL,
        job=JOB,
        cluster=CLUSTER,
        profile=analytic_profile(MODEL, JOB, CLUSTER),
        options=SearchOptions(pin={}, forbid={"pp": ("16",)}),
        chosen=chosen,
        alternatives=alternatives,
        counts=SearchCounts(
            enumerated=1184,
            rejected={"memory": 902, "kv-heads-tp": 41},
            pruned=200,
            simulated=41,
        ),
        frontier=(chosen, alternatives[1], alternatives[2],
                  candidate(58.0, config(recompute="full", tp=8, pp=4, dp_replicate=1), 39.0)),
        by_axis={
            "tp": {"8": 34.8, "4": 35.9, "2": 41.2},
            "pp": {"4": 34.8, "8": 37.0},
            "vpp": {"2": 34.8, "1": 35.9, "4": 35.1},
            "schedule": {"interleaved": 34.8, "1f1b": 35.9, "zero_bubble": 35.5},
            "dp_replicate": {"1": 34.8, "2": 35.9},
            "mbs": {"1": 34.8, "2": 39.0},
            "recompute": {"none": 34.8, "selective": 36.4, "full": 44.0},
        },
        bound_s=33.2,
    )  # fmt: skip
    made = replace(made, **changes)
    return replace(made, id=plan_id(made))


def bare() -> Plan:
    """The same plan as a search without terms, axes, frontier and bound writes it."""
    known = plan()
    plain = replace(known.chosen, estimate=replace(known.chosen.cost, terms={}))
    return plan(chosen=plain, alternatives=(), frontier=(), by_axis={}, bound_s=0.0)


def timeline(num_microbatches: int = 12):
    """A step of four ranks with two stages each."""
    return simulate(
        Program(
            schedule="interleaved",
            num_microbatches=num_microbatches,
            vpp=2,
            forward_s=(0.1,) * 8,
            input_s=(0.2,) * 8,
            weight_s=(0.0,) * 8,
            send_forward_s=(0.004,) * 8,
            send_backward_s=(0.004,) * 8,
            head_s=(0.05,) * 4,
            bucket_s=(0.04,) * 4,
            sync_s=(0.09,) * 8,
            optimizer_s=(0.08,) * 4,
        )
    )
