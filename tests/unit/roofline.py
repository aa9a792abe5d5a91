"""A profile from catalogue numbers alone: rooflines for blocks, latency + bandwidth for links.

Time of an operation is the slowest of three: its FLOPs at the device's reachable matrix rate, its
bytes at the reachable memory rate, and the launch of one kernel (Williams, Waterman, Patterson
2009, the roofline model). A block is the sum of its operations; backward does each matrix product
twice (once for the input's gradient, once for the weight's) and moves twice the bytes. Attention
counts its causal half.

Kept activations follow the reference runtime, which runs plain PyTorch operations: per token and
layer

    2h/t (inputs of the two norms) + 2h (gathered inputs of the projections)
    + (2a + 2g)d/t (q, k, v, attention output) + 4f/t (gate, up, silu(gate), their product)

elements with tensor parallel t; a MoE layer keeps 4x/t for each of the token's experts of width x,
plus 2h each for the routed copies, and 4y/t for shared experts of width y (h more where a gate
scales what they give). Nothing here was measured: every entry says `analytic`.
"""

from dataclasses import dataclass

from profiler.cluster import ClusterSpec, DeviceSpec, LinkSpec, NodeGroup
from profiler.job import (
    ACTIVATION_BYTES,
    GRAD_BYTES,
    OPTIMIZER_BYTES,
    WEIGHT_BYTES,
    JobSpec,
    Precision,
)
from profiler.model import BlockKind, ModelSpec
from profiler.profile import BlockEntry, Environment, Profile, Scope, Timing, TransferEntry

LARGEST_MICRO_BATCH = 64
_SIZES = tuple(4**k * 1024 for k in range(11))  # 1 KiB to 1 GiB


@dataclass(frozen=True, slots=True)
class _Device:
    """Reachable rates of a device in one precision."""

    flops_per_s: float
    bytes_per_s: float
    launch_s: float
    element_bytes: int

    @classmethod
    def of(cls, device: DeviceSpec, precision: Precision) -> "_Device":
        """Rates; without the precision those of its best one (the planner refuses such a job)."""
        peak = device.flops_per_s.get(precision, max(device.flops_per_s.values()))
        return cls(
            peak * device.gemm_efficiency,
            device.memory_bytes_per_s * device.memory_efficiency,
            device.launch_s,
            ACTIVATION_BYTES[precision],
        )

    def matrix(self, m: float, n: float, k: float) -> float:
        """Seconds of one (m x k) (k x n) product."""
        moved = (m * k + k * n + m * n) * self.element_bytes
        return max(2 * m * n * k / self.flops_per_s, moved / self.bytes_per_s, self.launch_s)

    def stream(self, elements: float) -> float:
        """Seconds of one pass over `elements` elements, reads and writes counted."""
        return max(elements * self.element_bytes / self.bytes_per_s, self.launch_s)


@dataclass(frozen=True, slots=True)
class _Times:
    """Forward split by what its backward looks like, and what it keeps; one micro-batch."""

    matrix_s: float
    """Matrix products with a weight: backward is input gradient + weight gradient, each as long."""
    scores_s: float
    """Attention: backward has five products for forward's two (FlashAttention-2, Dao 2023)."""
    stream_s: float
    """Element-wise passes: backward moves twice the bytes."""
    saved_elements: float
    peak_elements: float


def _attention(model: ModelSpec, d: _Device, tokens: float, seq: int, tp: int) -> _Times:
    h, q = model.hidden_size, model.num_heads * model.head_dim / tp
    kv = model.num_kv_heads * model.head_dim / tp
    products = d.matrix(tokens, q + 2 * kv, h) + d.matrix(tokens, h, q)
    scores = max(2 * tokens * seq * q / d.flops_per_s, d.launch_s)  # 4 s q, half of it masked
    rope_and_norm = d.stream(2 * (q + kv) * tokens) + d.stream(4 * h * tokens / tp)
    saved = tokens * (h / tp + h + 2 * q + 2 * kv)
    return _Times(products, scores, rope_and_norm, saved, saved + tokens * 2 * h)


def _swiglu(d: _Device, tokens: float, hidden: int, width: float) -> float:
    """Seconds of the matrix products of one SwiGLU."""
    return d.matrix(tokens, 2 * width, hidden) + d.matrix(tokens, hidden, width)


def _dense_ffn(model: ModelSpec, d: _Device, tokens: float, tp: int) -> _Times:
    h, f = model.hidden_size, model.ffn_hidden_size / tp
    passes = d.stream(4 * f * tokens) + d.stream(4 * h * tokens / tp)
    saved = tokens * (h / tp + h + 4 * f)
    return _Times(_swiglu(d, tokens, h, f), 0.0, passes, saved, saved + tokens * (2 * f + h))


def _moe_ffn(model: ModelSpec, d: _Device, tokens: float, tp: int) -> _Times:
    """All experts on every replica, balanced load: each gets its share of the routed tokens."""
    h, x, e = model.hidden_size, model.expert_width / tp, model.num_experts
    routed = tokens * model.num_experts_per_token
    products = d.matrix(tokens, e, h) + e * _swiglu(d, routed / e, h, x)
    passes = d.stream(4 * x * routed) + d.stream(4 * h * routed) + d.stream(4 * h * tokens / tp)
    saved = tokens * (h / tp + h + e) + routed * (2 * h + 4 * x)
    workspace = routed * (2 * x + h)
    if model.shared_ffn_hidden_size:  # every token passes, then both outputs are added
        y = model.shared_ffn_hidden_size / tp
        products += _swiglu(d, tokens, h, y)
        passes += d.stream(4 * y * tokens) + d.stream(3 * h * tokens)
        saved += tokens * 4 * y
        workspace = max(workspace, tokens * (2 * y + h))
    if model.shared_gate:
        products += d.matrix(tokens, 1, h)
        passes += d.stream(2 * h * tokens)
        saved += tokens * h
    return _Times(products, 0.0, passes, saved, saved + workspace)


def _head(model: ModelSpec, d: _Device, tokens: float, tp: int) -> _Times:
    h, v = model.hidden_size, model.vocab_size / tp
    wide = 4 / d.element_bytes  # the loss works on fp32 logits
    passes = d.stream(4 * h * tokens / tp) + d.stream((1 + 3 * wide) * v * tokens)
    saved = tokens * (h / tp + h + wide * v)
    return _Times(d.matrix(tokens, v, h), 0.0, passes, saved, saved + tokens * v * (1 + wide))


def _embed(model: ModelSpec, d: _Device, tokens: float, tp: int) -> _Times:
    h = model.hidden_size
    return _Times(0.0, 0.0, d.stream(2 * h * tokens / tp), tokens * 8 / d.element_bytes, tokens * h)


def _times(
    kind: BlockKind, model: ModelSpec, d: _Device, tokens: float, seq: int, tp: int
) -> _Times:
    if kind == "embed":
        return _embed(model, d, tokens, tp)
    if kind == "head":
        return _head(model, d, tokens, tp)
    a = _attention(model, d, tokens, seq, tp)
    f = (_moe_ffn if kind == "moe" else _dense_ffn)(model, d, tokens, tp)
    return _Times(
        a.matrix_s + f.matrix_s,
        a.scores_s,
        a.stream_s + f.stream_s,
        a.saved_elements + f.saved_elements,
        a.saved_elements + f.peak_elements,
    )


def _num_collectives(kind: BlockKind, tp: int) -> tuple[int, int]:
    """Gathers or scatters of [tokens, hidden] in forward and in backward (sequence parallel)."""
    if tp == 1:
        return 0, 0
    return {"embed": (1, 1), "head": (1, 1), "dense": (4, 4), "moe": (4, 4)}[kind]


def _entry(
    kind: BlockKind, model: ModelSpec, job: JobSpec, node: NodeGroup, tp: int, micro_batch: int
) -> BlockEntry:
    device = _Device.of(node.device, job.precision)
    tokens = float(micro_batch * job.seq_len)
    t = _times(kind, model, device, tokens, job.seq_len, tp)
    link = node.intra if tp <= node.devices_per_node else node.nic
    moved = tokens * model.hidden_size * device.element_bytes
    one = (tp - 1) * (link.latency_s + moved / tp / link.bytes_per_s)
    forward, backward = (n * one for n in _num_collectives(kind, tp))
    params = model.block_params(kind) / tp
    bytes_at_update = 2 * (OPTIMIZER_BYTES[job.precision] + WEIGHT_BYTES[job.precision] + 2)
    return BlockEntry(
        block=kind,
        tp=tp,
        micro_batch=micro_batch,
        source="analytic",
        forward=Timing(median_s=t.matrix_s + t.scores_s + t.stream_s + forward),
        input_grad=Timing(median_s=t.matrix_s + 2.5 * t.scores_s + 2 * t.stream_s + backward),
        weight_grad=Timing(median_s=t.matrix_s),
        optimizer=Timing(median_s=params * bytes_at_update / device.bytes_per_s),
        bucket=Timing(median_s=2 * params * GRAD_BYTES[job.precision] / device.bytes_per_s),
        forward_collective_s=forward,
        backward_collective_s=backward,
        saved_bytes=round(t.saved_elements * device.element_bytes),
        peak_bytes=round(t.peak_elements * device.element_bytes),
    )


def _curve(link: LinkSpec, scope: Scope, ranks: tuple[int, int]) -> list[TransferEntry]:
    return [
        TransferEntry(
            op="p2p",
            ranks=ranks,
            scope=scope,
            num_bytes=size,
            time=Timing(median_s=link.latency_s + size / link.bytes_per_s),
            source="analytic",
        )
        for size in _SIZES
    ]


def _powers_of_two(limit: int) -> list[int]:
    return [2**k for k in range(limit.bit_length()) if 2**k <= limit]


def analytic_profile(model: ModelSpec, job: JobSpec, cluster: ClusterSpec) -> Profile:
    """Profile of `model` on `cluster` from the cluster's numbers; nothing is run.

    Block entries stand at every tensor-parallel degree that divides the heads and at micro-batches
    of powers of two; links at sizes from 1 KiB to 1 GiB.
    """
    node = cluster.uniform
    per_replica = min(job.global_batch, LARGEST_MICRO_BATCH)
    degrees = [
        tp
        for tp in range(1, min(cluster.num_devices, model.num_heads) + 1)
        if model.num_heads % tp == 0 and cluster.num_devices % tp == 0
    ]
    kinds: tuple[BlockKind, ...] = ("embed", *model.layer_kinds, "head")
    blocks = tuple(
        _entry(kind, model, job, node, tp, micro_batch)
        for kind in kinds
        for tp in degrees
        for micro_batch in _powers_of_two(per_replica)
    )
    transfers = _curve(node.intra, "node", (0, 1)) if node.devices_per_node > 1 else []
    if node.num_nodes > 1:
        transfers += _curve(node.nic, "cluster", (0, node.devices_per_node))
    return Profile(
        source="analytic",
        model=model,
        seq_len=job.seq_len,
        precision=job.precision,
        cluster=cluster,
        environment=Environment(device=node.device.name),
        blocks=blocks,
        transfers=tuple(transfers),
    )
