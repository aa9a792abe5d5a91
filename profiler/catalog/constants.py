"""Fitted constants of the time model: `constants.yaml`, written by `tests/accuracy/fit.py`.

A constant holds for all, or differs by device, by network between nodes (`fabric`), by attention
kernel and chip generation (`kernel`), or by training software. What was in no fitted run takes the
value of all, which is the mean of the group that the fit drew the others towards. `low` and `high`
hold 95 % of what the data leaves possible.
"""

import functools
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from profiler.catalog.load import CatalogItem, load_device, unknown_name
from profiler.cluster import NodeGroup
from profiler.codec import decode, read_text, record
from profiler.profile import Software

Scope = Literal["all", "device", "fabric", "kernel", "software"]
Number = Annotated[float, Ge(0)]
_ROOT = Path(__file__).parent
_GENERATIONS = {
    "ampere": ("a100", "a10g", "rtx3090"),
    "hopper": ("h100", "h200", "h800", "h20"),
    "blackwell": ("b200", "gb200", "b300", "gb300"),
}
_FABRICS = ("infiniband", "efa", "roce", "omni-path", "ethernet", "slingshot", "gpudirect")


@record
class Fitted:
    """A value and the range in which 95 % of its posterior lies."""

    value: Number
    low: Number
    high: Number


@record
class Constant:
    """One constant of `planner.timing.quantities.Constants`."""

    meaning: str
    unit: str
    by: Scope
    all: Fitted
    of: dict[str, Fitted] = field(default_factory=dict)


@record
class ConstantsFile:
    """Content of `constants.yaml`."""

    fitted_from: str
    constants: dict[str, Constant]


@record
class SoftwareEntry:
    """A training software of `software.yaml`; fields as in `profiler.profile.Software`."""

    description: str
    kernel: Literal["flash", "fused", "none"]
    sequence_parallel: bool = True
    balanced: bool = False
    """Splits layers by itself for equal parameters of the stages (nanotron)."""
    stalls: bool = False
    recipe: str
    broadcasts: bool = False
    """ZeRO sends each owner's weights in a broadcast of its own."""
    graph: Annotated[float, Ge(0), Le(1)] = 0.0
    fused_exchange: bool = False
    overlap_exchange: bool = False
    chunked_exchange: bool = False
    constants: str = ""
    """Software whose fitted constants it takes; empty: its own."""
    reduce_bytes: Annotated[float, Ge(1)] = 4.0
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def facts(self, name: str) -> Software:
        """What a profile holds of it."""
        return Software(
            name=name,
            kernel=self.kernel,
            sequence_parallel=self.sequence_parallel,
            stalls=self.stalls,
            recipe=self.recipe,
            broadcasts=self.broadcasts,
            graph=self.graph,
            fused_exchange=self.fused_exchange,
            overlap_exchange=self.overlap_exchange,
            chunked_exchange=self.chunked_exchange,
            reduce_bytes=self.reduce_bytes,
            only=self.only,
        )


@functools.cache
def load_constants() -> ConstantsFile:
    """The catalogue's constants."""
    path = _ROOT / "constants.yaml"
    return decode(ConstantsFile, read_text(path), str(path))


@functools.cache
def load_all_software() -> dict[str, SoftwareEntry]:
    """The catalogue's training software by name."""
    path = _ROOT / "software.yaml"
    return decode(dict[str, SoftwareEntry], read_text(path), str(path))


def list_software() -> tuple[CatalogItem, ...]:
    """Names and descriptions of the training software."""
    known = load_all_software().items()
    return tuple(CatalogItem(name=n, description=e.description) for n, e in sorted(known))


def load_software(name: str) -> SoftwareEntry:
    """A training software; `UserError` naming the nearest where there is none."""
    known = load_all_software()
    if name not in known:
        raise unknown_name("training software", name, tuple(sorted(known)))
    return known[name]


def fabric_of(group: NodeGroup) -> str:
    """Kind of network between the nodes, from its name."""
    name = group.nic.name.lower()
    return next((f for f in _FABRICS if f in name), "other")


def kernel_of(device: str, software: SoftwareEntry) -> str:
    """Attention kernel on that chip: `hopper-flash`."""
    generation = next((g for g, names in _GENERATIONS.items() if device.startswith(names)), "other")
    return f"{generation}-{software.kernel}"


def scopes_of(group: NodeGroup, software: str) -> dict[Scope, str]:
    """What each scope is for a cluster's nodes and a software."""
    return {
        "all": "",
        "device": group.device.name,
        "fabric": fabric_of(group),
        "kernel": kernel_of(group.device.name, load_software(software)),
        "software": load_software(software).constants or software,
    }


def resolve_constants(group: NodeGroup, software: str) -> dict[str, float]:
    """Name -> value, for nodes of that kind and a training software."""
    scopes = scopes_of(group, software)
    values = {
        name: constant.of.get(scopes[constant.by], constant.all).value
        for name, constant in load_constants().constants.items()
    }
    matrix = load_constants().constants["matrix_efficiency"]
    if group.device.name not in matrix.of:
        values["matrix_efficiency"] = group.device.gemm_efficiency * _reached(matrix)
    return values


def _reached(matrix: Constant) -> float:
    """Share of its best measured product that a fitted device reaches in training, their mean: what
    a device that was not fitted is taken to reach of its own."""
    ratios = [
        fitted.value / load_device(name).device.gemm_efficiency
        for name, fitted in matrix.of.items()
    ]
    return sum(ratios) / len(ratios)
