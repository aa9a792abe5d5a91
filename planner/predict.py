"""Step time and memory of given runs, each with a model, machine and software of its own.

Layers are timed for all runs at once (`planner.timing`), then each run's pipeline is simulated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.chain import (
    BlockTimes,
    balanced_stages,
    equal_stages,
    number,
    program_of,
    threshold_stages,
)
from planner.config import ParallelConfig, Placement
from planner.layouts import CP_METHODS, OFFLOADS, RECOMPUTES, SCHEDULES, Layouts
from planner.peak import Degrees, Peaks, Recipe, Sizes, stage_peaks
from planner.plan import TERMS
from planner.routed import EVEN, Routed
from planner.schedules import stage_owner
from planner.simulate import simulate
from planner.timing.inputs import machine_of, shape_of
from planner.timing.layer import Layer
from planner.timing.quantities import (
    Array,
    Constants,
    Machine,
    Shape,
    Software,
    Split,
    columns,
    rows,
)
from planner.timing.step import Step, head_s, lateness, step_times
from profiler.cluster import NodeGroup
from profiler.job import JobSpec
from profiler.model import BlockKind, ModelSpec
from solvers.partition import Stages

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that a prediction of one run needs."""

    model: ModelSpec
    job: JobSpec
    config: ParallelConfig
    group: NodeGroup
    num_devices: int
    software: Software
    constants: Constants
    recipe: Recipe

    @property
    def num_microbatches(self) -> float:
        """Per replica and step; the last may be smaller."""
        return self.job.global_batch / (self.config.num_replicas * self.config.micro_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantities:
    """Runs as arrays, ready for the time model."""

    shape: Shape
    split: Split
    machine: Machine
    software: Software

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Quantities":
        """The runs' own."""
        return cls(
            shape=columns([shape_of(r.model, r.job.seq_len) for r in runs]),
            split=columns([_split(r) for r in runs]),
            machine=columns([machine_of(r.group, r.num_devices, r.job.precision) for r in runs]),
            software=columns([r.software for r in runs]),
        )


def _split(run: Run) -> Split:
    c = run.config
    return Split(
        pp=c.pp, vpp=c.vpp, replicas=c.num_replicas, dp_shard=c.dp_shard, zero=c.zero, cp=c.cp,
        cp_method=CP_METHODS.index(c.cp_method), cp_heads=c.cp_heads, tp=c.tp, ep=c.ep, etp=c.etp,
        micro_batch=c.micro_batch, num_microbatches=run.num_microbatches,
        recompute=RECOMPUTES.index(c.recompute), schedule=SCHEDULES.index(c.schedule),
        offload=OFFLOADS.index(c.offload),
    )  # fmt: skip


def predict_steps(
    runs: Sequence[Run], progress: Progress | None = None
) -> list[tuple[float, dict[str, float]]]:
    """(seconds of a step, seconds by term) of each run; the terms add up to the step."""
    if not runs:
        return []
    q = Quantities.of(runs)
    constants = columns([r.constants for r in runs])
    step = step_times(q.shape, q.split, q.machine, q.software, constants)
    heads = np.broadcast_arrays(*head_s(q.shape, q.split, q.machine, constants))
    late = lateness(q.machine, constants)
    found = []
    for index, run in enumerate(runs):
        if progress is not None and index % 50 == 0:
            progress(index, len(runs), "predicting runs")
        one = _entry(step, index)
        head = (float(heads[0][index]), float(heads[1][index]), float(heads[2][index]))
        seconds = _simulated(run, one, head, float(late[index]))
        found.append((seconds, terms_of(run, one, head, float(late[index]), seconds)))
    return found


def _entry(step: Step, index: int) -> Step:
    """One run's step, as numbers."""
    names = Step.__dataclass_fields__
    values = {n: getattr(step, n) for n in names}
    return Step(
        **{
            n: rows(v, np.array(index))
            if n in ("dense", "moe")
            else np.asarray(v).flat[index if np.ndim(v) else 0]
            for n, v in values.items()
        }
    )


def _simulated(run: Run, step: Step, head: tuple[float, float, float], late: float) -> float:
    c = run.config
    if c.pp == 1:
        return float(step.step_s)
    moe = step.moe if run.model.num_moe_layers else step.dense
    times = BlockTimes.of_layers(step.dense, moe, head)
    blocks, stages = run.model.blocks, stages_of(run)
    if stages is None:
        stages = balanced_stages(blocks, times, c.num_stages)
    program = program_of(
        blocks=blocks, stages=stages, times=times, schedule=c.schedule, pp=c.pp, vpp=c.vpp,
        num_microbatches=max(1, round(run.num_microbatches)), send_s=float(step.send_s),
        exposed_send=float(run.constants.exposed_send) if run.software.overlaps else 1.0, late=late,
        sync_s=float(step.exposed_reduction_s), update_s=float(step.update_s),
        base_s=float(step.base_s),
    )  # fmt: skip
    return float(simulate(program).step_s)


def stages_of(run: Run) -> Stages | None:
    """How the run's software splits the layers; None where it says only that stages are even."""
    blocks, stages = run.model.blocks, run.config.num_stages
    if run.software.balanced:
        costs = [float(run.model.block_params(kind)) for kind in blocks]
        costs[0], costs[-1] = 0.0, float(run.model.vocab_size * run.model.hidden_size)
        return threshold_stages(costs, stages)
    return equal_stages(blocks, stages)


def terms_of(
    run: Run, step: Step, head: tuple[float, float, float], late: float, seconds: float
) -> dict[str, float]:
    """The step by `TERMS`; they add up to `seconds`."""
    share = terms_of_step(run.model.blocks, run.config, run.num_microbatches, step, head, late)
    return with_bubble(share, seconds)


def with_bubble(share: dict[str, float], seconds: float) -> dict[str, float]:
    """The terms with the bubble as what is left of the step; scaled where nothing is."""
    used = sum(share.values())
    if used > seconds:
        return {n: v * seconds / used for n, v in share.items()}
    return {**share, "bubble": seconds - used}


def terms_of_step(
    blocks: Sequence[BlockKind],
    config: ParallelConfig,
    num_microbatches: float,
    step: Step,
    head: tuple[float, float, float],
    late: float,
) -> dict[str, float]:
    """Seconds by `TERMS` of an average rank, the bubble left out."""
    m = num_microbatches * late
    moe = sum(kind in ("moe", "mtp") for kind in blocks) / config.pp
    dense = sum(kind == "dense" for kind in blocks) / config.pp
    share = dict.fromkeys(TERMS, 0.0)
    for count, layer in ((dense, step.dense), (moe, step.moe)):
        if count:
            for name, value in _layer_terms(layer).items():
                share[name] += m * count * value
    share["matrix"] += m * sum(head) / config.pp
    share["messages"] += number(step.exposed_send_s) * late
    share["reduction"] += number(step.exposed_reduction_s)
    share["update"] += number(step.update_s)
    share["base"] += number(step.base_s)
    return share


def _layer_terms(layer: Layer) -> dict[str, float]:
    """One layer's forward and backward; what no part explains is the host's."""
    parts = {
        "matrix": number(layer.matrix_s) + 2 * number(layer.weight_s),
        "attention": number(layer.attention_s) + number(layer.attention_back_s),
        "stream": 3 * number(layer.stream_s),
        "tensor": 2 * number(layer.tensor_s),
        "context": number(layer.context_s) + number(layer.context_back_s),
        "expert": number(layer.expert_s) + number(layer.expert_back_s),
        "recompute": number(layer.recompute_s),
    }
    known = sum(parts.values())
    total = number(layer.forward_s) + number(layer.input_s) + number(layer.weight_s)
    shrink = min(1.0, total / known) if known else 0.0
    return {n: v * shrink for n, v in parts.items()} | {"host": max(0.0, total - known)}


def predict_peaks(run: Run) -> Peaks:
    """Memory of a run's first, a middle and its last rank."""
    sizes = sizes_of(run.model, run.job.seq_len)
    return stage_peaks(sizes, degrees_of(run), run.recipe, _rank_layers(run))


def _rank_layers(run: Run) -> Array | None:
    """Layers of the first, the second and the last pipeline rank, [3, 1]; None where only their
    number is known: then the first ranks are taken to hold one more where they do not divide."""
    stages, c = stages_of(run), run.config
    if stages is None or c.pp == 1 or not run.software.balanced:
        return None
    layers = Placement(stages=stages).layers_per_stage(run.model.num_layers)
    held = [0] * c.pp
    for owner, count in zip(stage_owner(c.schedule, c.pp, c.vpp), layers, strict=True):
        held[owner] += count
    return np.array([[held[0]], [held[1]], [held[-1]]], dtype=np.float64)


def sizes_of(model: ModelSpec, seq_len: int) -> Sizes:
    """A model as the memory model sees it."""
    return Sizes(
        hidden=model.hidden_size, num_layers=model.num_layers, num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads, head_dim=model.head_dim,
        ffn_hidden=model.ffn_hidden_size, vocab=model.vocab_size, seq_len=seq_len,
        value_head_dim=model.value_head_dim, q_lora_rank=model.q_lora_rank,
        kv_lora_rank=model.kv_lora_rank, rope_head_dim=model.rope_head_dim,
        gated=float(model.gated_ffn), tied=float(model.tie_embeddings),
        num_experts=model.num_experts, topk=model.num_experts_per_token,
        expert_ffn=model.expert_width if model.num_experts else 0,
        shared_ffn=model.shared_ffn_hidden_size, first_dense=model.first_dense_layers,
        moe_every=model.moe_every,
        mtp=model.num_mtp_layers,
    )  # fmt: skip


def degrees_of(run: Run) -> Degrees:
    """A run's layout as the memory model sees it."""
    layouts = Layouts.from_configs([run.config])
    return memory_degrees(
        layouts, np.array([max(1.0, run.num_microbatches)]), run.software.sequence_parallel
    )


def memory_degrees(
    layouts: Layouts, num_microbatches: np.ndarray, sequence: float, routed: Routed = EVEN
) -> Degrees:
    """Layouts as the memory model sees them."""
    return Degrees(
        pp=layouts.pp, vpp=layouts.vpp, dp_replicate=layouts.dp_replicate,
        dp_shard=layouts.dp_shard, zero=layouts.zero, cp=layouts.cp, tp=layouts.tp,
        ep=layouts.ep, etp=layouts.etp,
        imbalance=routed.kept(layouts.ep, layouts.etp),
        expert_copies=routed.copies(layouts.ep, layouts.etp),
        micro_batch=layouts.micro_batch.astype(np.float64),  # tokens exceed 32 bits
        recompute=layouts.recompute, schedule=layouts.schedule,
        num_microbatches=num_microbatches, sequence_parallel=sequence, offload=layouts.offload,
    )  # fmt: skip
