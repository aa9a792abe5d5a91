"""Small facts for tests: a model, a job, a cluster, and a profile made up from a formula."""

from profiler.cluster import ClusterSpec, DeviceSpec, LinkSpec, NodeGroup
from profiler.codec import replace
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile, SharingEntry
from tests.unit.roofline import analytic_profile


def model(**changes: object) -> ModelSpec:
    """Six small dense layers."""
    spec = ModelSpec(
        name="small",
        family="llama",
        vocab_size=512,
        hidden_size=64,
        num_layers=6,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        ffn_hidden_size=192,
    )
    return replace(spec, **changes)


def job(**changes: object) -> JobSpec:
    """Eight short sequences in fp32."""
    return replace(JobSpec(global_batch=8, seq_len=32, precision="fp32"), **changes)


def device(**changes: object) -> DeviceSpec:
    """A device so slow that a small model is compute-bound."""
    spec = DeviceSpec(
        name="toy",
        memory_bytes=16 * 2**20,
        flops_per_s={"fp32": 1e10},
        memory_bytes_per_s=1e10,
        gemm_efficiency=0.8,
        memory_efficiency=0.8,
        launch_s=1e-6,
    )
    return replace(spec, **changes)


def core() -> DeviceSpec:
    """A core of a host, for what is measured on it."""
    rates = {"flops_per_s": {"fp32": 1e11}, "gemm_efficiency": 0.5, "memory_efficiency": 0.5}
    return device(name="cpu", memory_bytes=2**30, launch_s=1e-5, is_host=True, **rates)


def cluster(num_nodes: int = 1, per_node: int = 4, **changes: object) -> ClusterSpec:
    """Nodes of toy devices; `changes` are fields of the node group."""
    group = NodeGroup(
        device=device(),
        num_nodes=num_nodes,
        devices_per_node=per_node,
        intra=LinkSpec(name="bus", bytes_per_s=1e9, latency_s=1e-5),
        nic=LinkSpec(name="net", bytes_per_s=1e8, latency_s=1e-4),
        nics_per_node=1,
    )
    return ClusterSpec(name="toys", groups=(replace(group, **changes),))


def profile(num_nodes: int = 1, per_node: int = 4, **changes: object) -> Profile:
    """Analytic profile of the small model on the toys."""
    return analytic_profile(model(), job(**changes), cluster(num_nodes, per_node))


def shared(base: Profile, num_cores: int) -> Profile:
    """The same profile on a host whose ranks share `num_cores` cores."""
    entries = tuple(
        SharingEntry(active=k, slowdown=max(1.0, k / num_cores), spread=0.0, source="measured")
        for k in range(1, base.cluster.num_devices + 1)
    )
    return replace(base, sharing=entries)
