"""How fast each piece runs: block times, transfer times, and how processes of one host slow each
other.

Measured and analytic profiles are the same type; each entry says its source. Times are medians of
repetitions with half the interquartile range as spread. Bytes of a transfer are those of the whole
tensor: what an all-reduce reduces, what an all-gather returns, what a reduce-scatter takes.

A host that trains on its CPU shares its cores among its ranks. `sharing` holds the measured
slow-down of a layer when several ranks of the host compute at once; an accelerator has none.
"""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from profiler.cluster import ClusterSpec
from profiler.codec import record
from profiler.errors import UserError
from profiler.job import JobSpec, Precision
from profiler.model import BlockKind, ModelSpec, NotNegative, Positive

FORMAT_VERSION = "1.4"
Source = Literal["measured", "interpolated", "analytic"]
TransferOp = Literal["p2p", "all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
ProfiledBlock = BlockKind | Literal["experts"]
"""A block of the model, or all experts of a layer alone, each with equally many of the choices."""
Scope = Literal["node", "cluster"]
"""node: all ranks in one node. cluster: each rank in a node of its own."""
Seconds = Annotated[float, Ge(0)]
Rate = Annotated[float, Gt(0)]


@record
class Timing:
    """Median and spread (half the interquartile range) of `repeats` measurements; 0 repeats:
    computed.
    """

    median_s: Seconds
    spread_s: Seconds = 0.0
    repeats: NotNegative = 0


@record
class BlockEntry:
    """One block on one rank of a tensor-parallel group, for one micro-batch.

    Times include the group's collectives; `*_collective_s` is the part of them. All times are those
    of the group alone on its host. An entry with status `oom` has no times.
    """

    block: ProfiledBlock
    tp: Positive
    micro_batch: Positive
    """Sequences."""
    source: Source
    status: Literal["ok", "oom"] = "ok"
    forward: Timing | None = None
    input_grad: Timing | None = None
    weight_grad: Timing | None = None
    """Backward is `input_grad` + `weight_grad`."""
    optimizer: Timing | None = None
    """Optimizer step over the block's parameters (independent of the micro-batch)."""
    bucket: Timing | None = None
    """Copy of the block's gradients into the flat buckets that data parallelism reduces."""
    forward_collective_s: Seconds = 0.0
    backward_collective_s: Seconds = 0.0
    saved_bytes: NotNegative = 0
    """Activations kept from forward to backward."""
    peak_bytes: NotNegative = 0
    """Most bytes above the parameters at any moment of forward + backward, gradients apart."""


@record
class TransferEntry:
    """One transfer of one size between the ranks named (`p2p`: from the first to the second)."""

    op: TransferOp
    ranks: tuple[NotNegative, ...]
    scope: Scope
    num_bytes: Positive
    time: Timing
    source: Source


@record
class SharingEntry:
    """Slow-down of a layer when `active` ranks of one host, in tensor-parallel groups of `tp`,
    compute at once, relative to one group alone."""

    tp: Positive = 1
    active: Positive
    slowdown: Annotated[float, Ge(1)]
    spread: Annotated[float, Ge(0)]
    source: Source


@record
class ExecutorEntry:
    """What the runtime's pipeline executor spends on an action beside its blocks: on each message
    it sends, and on each it receives that has already arrived."""

    send: Timing
    receive: Timing
    source: Source


@record
class HostLinks:
    """Links between the hosts of the cluster, in its order, [from][to] (see `profiler.links`). The
    diagonal is the link inside a host."""

    hosts: tuple[str, ...]
    bytes_per_s: tuple[tuple[Rate, ...], ...]
    latency_s: tuple[tuple[Seconds, ...], ...]
    out_bytes_per_s: tuple[Rate, ...]
    """All that a host can send at once."""
    in_bytes_per_s: tuple[Rate, ...]
    slowdown: tuple[Rate, ...] = ()
    """What each host takes for the same work, relative to the one whose blocks are in the profile;
    empty: all are alike."""

    def __post_init__(self) -> None:
        n = len(self.hosts)
        tables = (*self.bytes_per_s, *self.latency_s, self.out_bytes_per_s, self.in_bytes_per_s)
        if len(tables) != 2 * n + 2 or any(len(row) != n for row in tables):
            raise UserError(f"the links are not those of {n} hosts")
        if len(self.slowdown) not in (0, n):
            raise UserError(f"`slowdown` has {len(self.slowdown)} numbers for {n} hosts")


@record
class ExpertLoad:
    """What the routing that was recorded leaves to the fullest of `ep` ranks, experts placed by it.
    Choices over those of the mean rank, as the placed tokens had them."""

    ep: Positive
    etp: Positive = 1
    """Devices that share each rank's experts."""
    group: NotNegative | None = None
    """Node group of the cluster on which all ranks are; none: the only one, or any."""
    slots_per_rank: Positive
    """Experts that a rank holds, replicas included."""
    imbalance: Annotated[float, Ge(1)]
    """Of the fullest rank of each layer, mean over layers."""
    held_imbalance: Annotated[float, Ge(1)]
    """Of the rank with most over all layers together."""
    group_computed: tuple[Annotated[float, Ge(0)], ...] = ()
    """Where experts are spread over unlike node groups: of each, the choices that take it as long
    as the slowest rank takes to compute its own. Empty: `imbalance`."""
    group_sent: tuple[Annotated[float, Ge(0)], ...] = ()
    """The same of what is exchanged."""
    replicated: Annotated[float, Ge(0)] = 0.0
    """Experts that several ranks hold, mean over layers."""
    shares: tuple[tuple[Annotated[float, Ge(0)], ...], ...] = ()
    """Per MoE layer, what part of its choices goes to each rank; empty: not kept."""


@record
class Environment:
    """Where and with what the figures were taken; empty strings in an analytic profile."""

    host: str = ""
    device: str = ""
    num_cores: NotNegative = 0
    backend: str = ""
    python: str = ""
    torch: str = ""
    meshwright: str = ""


@record
class Software:
    """The training code that an analytic profile speaks of, as far as time and memory depend on
    it."""

    name: str
    kernel: Literal["flash", "fused", "none"]
    """flash: FlashAttention-2. fused: cuDNN or FlashAttention-3. none: scores go through memory."""
    sequence_parallel: bool = True
    stalls: bool = False
    """Its tensor-parallel collectives wait for pending receives of a pipeline between nodes."""
    recipe: str = "megatron"
    """Of `planner.peak`: what it keeps in memory."""
    broadcasts: bool = False
    """ZeRO sends each owner's weights in a broadcast of its own."""
    graph: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the kernels that start from CUDA graphs."""
    fused_exchange: bool = False
    """Tokens go to experts by fused kernels (DeepEP, HybridEP)..."""
    overlap_exchange: bool = False
    """...beside the computation of another micro-batch."""
    chunked_exchange: bool = False
    """They go in chunks beside the experts' computing, as the layout's `ep_overlap` says."""
    reduce_bytes: Annotated[float, Ge(1)] = 4.0
    """Per parameter in the reduction of gradients over replicas."""
    only: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Axis of the search -> the values that it has; an axis left out: all."""


@record
class Profile:
    """All facts, measured or computed, for one model, sequence length and cluster.

    An analytic one has no entries: constants of the time model instead, by name, as the catalogue
    has them for the cluster's nodes and the software.
    """

    format_version: str = FORMAT_VERSION
    kind: Literal["profile"] = "profile"
    source: Source
    model: ModelSpec
    seq_len: Positive
    precision: Precision
    cluster: ClusterSpec
    environment: Environment
    blocks: tuple[BlockEntry, ...]
    transfers: tuple[TransferEntry, ...]
    sharing: tuple[SharingEntry, ...] = ()
    executor: ExecutorEntry | None = None
    software: Software | None = None
    constants: dict[str, float] = dataclasses.field(default_factory=dict)
    group_constants: tuple[dict[str, float], ...] = ()
    """Per node group of a cluster of several; empty: `constants` for the only one."""
    links: HostLinks | None = None
    """Between each two hosts, where that was measured; else all are as the transfers say."""
    expert_loads: tuple[ExpertLoad, ...] = ()
    """By ep, etp and node group, where routing was recorded; else all experts get equally many
    tokens."""

    def __post_init__(self) -> None:
        if self.links and len(self.links.hosts) != sum(g.num_nodes for g in self.cluster.groups):
            raise UserError("the profile has links of other hosts than those of its cluster")

    @property
    def is_analytic(self) -> bool:
        """Nothing was measured: all comes from the constants."""
        return self.software is not None

    def of_group(self, index: int, num_nodes: int | None = None) -> "Profile":
        """An analytic profile of one node group, or of so many nodes like its own. Of the loads
        those of ranks on this group, or of ranks on all of them as its own see them."""
        group = self.cluster.groups[index]
        group = dataclasses.replace(group, num_nodes=num_nodes or group.num_nodes)
        constants = self.group_constants[index] if self.group_constants else self.constants
        wanted = index if len(self.cluster.groups) > 1 and num_nodes is None else None
        loads = tuple(
            dataclasses.replace(
                each,
                group=None,
                group_computed=each.group_computed[index : index + 1],
                group_sent=each.group_sent[index : index + 1],
            )
            for each in self.expert_loads
            if each.group == wanted
        )
        return dataclasses.replace(
            self,
            expert_loads=loads,
            cluster=dataclasses.replace(self.cluster, groups=(group,)),
            constants=constants,
            group_constants=(),
        )

    def fits(self, model: ModelSpec, job: JobSpec) -> str | None:
        """None where the profile speaks of this model and job, else what differs."""
        if dataclasses.replace(self.model, name=model.name) != model:
            return f"it was measured for model `{self.model.name}`"
        if self.seq_len != job.seq_len:
            return f"it was measured at sequence length {self.seq_len}"
        if self.precision != job.precision:
            return f"it was measured in {self.precision}"
        return None
