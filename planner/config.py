"""A layout: the parallel degrees, the micro-batch, the schedule, and where each block, rank and
expert goes.

The ranks of a pipeline stage are seen as two meshes at once (parallel folding, Liu et al. 2025,
arXiv:2504.14960): attention and dense layers over (dp_replicate, dp_shard, cp, tp), experts over
(edp, ep, etp), both row-major over the same ranks, so

    dp_replicate * dp_shard * cp * tp = edp * ep * etp.

Rank of a coordinate is row-major over `AXIS_ORDER`, outermost axis first, unless `ranks` maps it
elsewhere. Tensor-parallel neighbours are adjacent ranks by default, so they sit in one node where
the node is large enough (Megatron-LM's default order `tp-cp-ep-dp-pp`).
"""

from typing import Literal

from profiler.codec import record
from profiler.job import JobSpec
from profiler.model import NotNegative, Positive, PositiveFloat

Axis = Literal["pp", "dp_replicate", "dp_shard", "cp", "tp"]
ExpertAxis = Literal["edp", "ep", "etp"]
Recompute = Literal["none", "selective", "full"]
ScheduleName = Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipev", "table"]
CpMethod = Literal["ring", "all_gather", "ulysses", "hybrid"]
Offload = Literal["none", "optimizer", "activations"]
ZeroStage = Literal[0, 1, 2, 3]
AXIS_ORDER: tuple[Axis, ...] = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
EXPERT_ORDER: tuple[ExpertAxis, ...] = ("edp", "ep", "etp")


@record
class ParallelConfig:
    """Degrees and choices of one layout, before blocks are assigned to stages."""

    pp: Positive
    dp_replicate: Positive
    tp: Positive
    """Tensor parallel with sequence parallel and vocabulary-parallel loss."""
    micro_batch: Positive
    """Sequences per micro-batch of one replica."""
    recompute: Recompute
    """selective: attention core and activation product run again in backward. full: each layer
    keeps its input alone and runs forward again."""
    schedule: ScheduleName
    """`table`: the actions that `Placement.table` lists."""
    vpp: Positive = 1
    """Virtual stages per pipeline rank."""
    dp_shard: Positive = 1
    """Replicas that share weights, gradients or optimizer state among them, as `zero` says; the
    context-parallel ranks of a replica take part in the sharing."""
    zero: ZeroStage = 0
    """ZeRO stage (Rajbhandari et al. 2020): 1 optimizer state, 2 and gradients, 3 and weights."""
    cp: Positive = 1
    cp_method: CpMethod = "ring"
    """hybrid: Ulysses inside groups of `cp_heads` ranks, a ring over the cp / cp_heads groups (USP,
    Fang & Zhao 2024, arXiv:2405.07719)."""
    cp_heads: Positive = 1
    """For `hybrid`, ranks of a cp group that trade the sequence for heads by all-to-all; they are
    neighbours. Where they do not divide the key/value heads of a rank, these are first repeated to
    the query heads', as the runtime's `ulysses` does: exact, with more bytes to send."""
    ep: Positive = 1
    etp: Positive = 1
    """Tensor-parallel degree of each expert."""
    ep_overlap: Positive = 1
    """Chunks in which a micro-batch's tokens are exchanged over `ep`, so that experts compute one
    while others are on their way (Tutel's `a2a_ffn_overlap_degree`, Hwang et al. 2022,
    arXiv:2206.03382); 1: exchange, compute, exchange."""
    offload: Offload = "none"
    """What lies in the host's memory while it is not needed. optimizer: fp32 weights and moments
    (ZeRO-Offload, Ren et al. 2021, arXiv:2101.06840). activations: what a layer keeps for its
    backward."""

    @property
    def num_devices(self) -> int:
        """Devices the layout uses."""
        return self.pp * self.stage_ranks

    @property
    def stage_ranks(self) -> int:
        """Ranks of one pipeline rank's mesh."""
        return self.num_replicas * self.cp * self.tp

    @property
    def num_replicas(self) -> int:
        """Ways in which the global batch is divided."""
        return self.dp_replicate * self.dp_shard

    @property
    def edp(self) -> int:
        """Ranks that hold the same part of the same experts."""
        return self.stage_ranks // (self.ep * self.etp)

    @property
    def num_stages(self) -> int:
        """Virtual stages of the pipeline."""
        return self.pp * self.vpp

    def num_microbatches(self, job: JobSpec) -> int:
        """Micro-batches of one replica in a step."""
        return job.global_batch // (self.num_replicas * self.micro_batch)

    @property
    def label(self) -> str:
        """Short form for people: `tp8 pp4 dp1 mbs1`, and what is unusual."""
        vpp = f"x{self.vpp}" if self.vpp > 1 else ""
        parts = [f"tp{self.tp} pp{self.pp}{vpp} dp{self.dp_replicate}"]
        if self.dp_shard > 1:
            parts.append(f"shard{self.dp_shard} zero{self.zero}")
        if self.cp > 1:
            inside = self.cp_heads if self.cp_method == "hybrid" else ""
            parts.append(f"cp{self.cp} {self.cp_method}{inside}")
        if self.ep > 1:
            parts.append(f"ep{self.ep}")
        if self.ep_overlap > 1:
            parts.append(f"overlap{self.ep_overlap}")
        if self.etp not in (1, self.tp):
            parts.append(f"etp{self.etp}")
        parts.append(f"mbs{self.micro_batch}")
        if self.recompute != "none":
            parts.append(f"{self.recompute}-recompute")
        if self.offload != "none":
            parts.append(f"{self.offload}-offload")
        return " ".join(parts)


@record
class ExpertSlots:
    """Where the experts of one MoE layer are."""

    slots: tuple[tuple[NotNegative, ...], ...]
    """Per rank of the expert-parallel axis, the ids of the experts it holds; an expert may have
    several holders (replicas), a rank may hold none."""
    shares: tuple[tuple[PositiveFloat, ...], ...] = ()
    """Per slot, the weight with which it takes its expert's tokens; empty: all equal."""


@record
class Placement:
    """Blocks to stages, coordinates to ranks, experts to slots."""

    stages: tuple[tuple[NotNegative, NotNegative], ...]
    """Per virtual stage [first, end) over the model's chain of blocks (0 is the embedding); a
    stage may be empty."""
    ranks: tuple[NotNegative, ...] = ()
    """Global rank of each coordinate, in row-major order; empty: the same number. Groups go round
    in the order of coordinates, so this is also the order of rings."""
    devices: tuple[NotNegative, ...] = ()
    """Device of the cluster, in its order, of each coordinate in row-major order; empty: the same
    number. It says which devices are idle, and which pipeline ranks sit in which node group."""
    interfaces: tuple[str, ...] = ()
    """Per node, the network interface that its ranks use; empty: the system's choice."""
    recompute: tuple[Recompute, ...] = ()
    """Per transformer layer; empty: the layout's own for all."""
    experts: tuple[ExpertSlots, ...] = ()
    """Per MoE layer; empty: contiguous experts, equally many per rank."""
    table: tuple[str, ...] = ()
    """Per pipeline rank, the actions of schedule `table`: `0F0 1F0 1B0 0B0`."""

    def layers_per_stage(self, num_layers: int) -> tuple[int, ...]:
        """Transformer layers of each stage, embedding and head left out."""
        return tuple(max(0, min(end, num_layers + 1) - max(first, 1)) for first, end in self.stages)

    def recompute_of(self, layer: int, config: ParallelConfig) -> Recompute:
        """What transformer layer `layer` (from 0) recomputes."""
        return self.recompute[layer] if self.recompute else config.recompute


def num_chunks(cp: int, method: CpMethod) -> int:
    """Pieces that context parallelism cuts a sequence into: two per rank where the causal work is
    levelled by giving each an early and a late one."""
    return 2 * cp if cp > 1 and method != "ulysses" else cp
