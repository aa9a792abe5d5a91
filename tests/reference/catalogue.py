"""docs/reference/models.md, devices.md and software.md: the catalogue in tables."""

from profiler.catalog import (
    list_clusters,
    list_devices,
    list_models,
    list_nodes,
    load_cluster,
    load_device,
    load_model,
)
from profiler.catalog.constants import list_software, load_all_software
from profiler.catalog.load import load_model_file
from profiler.catalog.node_types import node_group
from profiler.cluster import DeviceSpec, LinkSpec
from tests.reference.table import table

_GIB = 2**30
_MODELS = """# Models
For `-m`. A Hugging Face `config.json` of these families does as well. Parameters are those of the
shape; a test compares them with what was published.
"""
_DEVICES = """# Devices, node types, clusters
For `-c`: `h100-2x8` is two nodes of eight `h100` with the links below; `aws-p5-16` is sixteen nodes
of a type; a cluster has a name of its own. A file ([cluster](files.md#cluster)) may name all of
these and change what differs. Rates are peaks, of links one way, as vendors state them; each number
has its source in `profiler/catalog`.
"""
_SOFTWARE = """# Training software
For `plan --software`: whose speed and memory are meant, and which values of an axis there are to
choose from. `pytorch` is what `launch` runs. Attention: `flash` or `fused`, one kernel; `none`,
products and passes over scores. What each costs is fitted to published runs:
[the cost model](../cost-model.md), [its errors](../accuracy-published.md).
"""


def models() -> list[str]:
    """The lines of models.md."""
    rows = []
    for item in list_models():
        m = load_model(item.name)
        experts = f"{m.num_experts}, {m.num_experts_per_token} active" if m.num_moe_layers else ""
        rows.append((
            f"`{item.name}`", item.description, _billions(m.num_params), m.num_layers,
            f"{m.hidden_size:,}", f"{m.num_heads} / {m.num_kv_heads}", experts,
            load_model_file(item.name).source,
        ))  # fmt: skip
    head = ("name", "", "parameters", "layers", "hidden", "heads / kv", "experts", "source")
    return [*_MODELS.split("\n"), *table(head, rows)]


def _billions(count: int) -> str:
    return f"{count / 1e9:.4g} B" if count >= 1e9 else f"{count / 1e6:.4g} M"


def devices() -> list[str]:
    """The lines of devices.md: devices, node types, clusters."""
    return [
        *_DEVICES.split("\n"),
        "## Devices",
        "",
        *_devices(),
        "## Node types",
        "",
        *_nodes(),
        "## Clusters",
        "",
        *_clusters(),
    ]


def _devices() -> list[str]:
    rows = []
    for item in list_devices():
        entry = load_device(item.name)
        d = entry.device
        rows.append((
            f"`{item.name}`", item.description, f"{d.memory_bytes / _GIB:.1f}",
            _rates(d), f"{d.memory_bytes_per_s / 1e12:.3g}", _link(entry.intra),
            f"{entry.num_nics(8)} x {_link(entry.nic)}",
        ))  # fmt: skip
    head = ("name", "", "GiB", "TFLOP/s", "memory TB/s", "within a node", "NICs of 8 devices")
    return table(head, rows)


def _rates(device: DeviceSpec) -> str:
    return ", ".join(f"{p} {rate / 1e12:,.5g}" for p, rate in device.flops_per_s.items())


def _link(link: LinkSpec) -> str:
    return f"{link.name}, {link.bytes_per_s / 1e9:.4g} GB/s"


def _nodes() -> list[str]:
    rows = []
    for item in list_nodes():
        g = node_group(item.name, 1)
        rows.append((
            f"`{item.name}`", item.description, f"{g.devices_per_node} x `{g.device.name}`",
            _link(g.intra), f"{g.nics_per_node} x {_link(g.nic)}",
        ))  # fmt: skip
    return table(("name", "", "devices", "within a node", "NICs"), rows)


def _clusters() -> list[str]:
    rows = []
    for item in list_clusters():
        groups = load_cluster(item.name).groups
        shape = ", ".join(f"{g.num_nodes} x {g.devices_per_node} `{g.device.name}`" for g in groups)
        rows.append((f"`{item.name}`", item.description, shape))
    return table(("name", "", "nodes x devices"), rows)


def software() -> list[str]:
    """The lines of software.md."""
    entries = load_all_software()
    rows = []
    for item in list_software():
        only = entries[item.name].only
        limits = "; ".join(f"{axis} {', '.join(values)}" for axis, values in only.items())
        rows.append((f"`{item.name}`", item.description, entries[item.name].kernel, limits))
    head = ("name", "", "attention", "has only")
    return [*_SOFTWARE.split("\n"), *table(head, rows)]
