"""Catalogue of devices and models: one YAML file each, every number with its source beside it.

Node types and clusters have modules of their own, `node_types` and `cluster_file`. A device file
gives a `DeviceSpec` and the interconnect its usual servers have; a model file holds the keys of the
model's published `config.json`, read by `profiler.huggingface`. The first line of a file is a
comment that describes it, so that listing needs no parser.
"""

import functools
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from profiler.cluster import DeviceSpec, LinkSpec, PositiveFloat, Share
from profiler.codec import decode, read_text, record
from profiler.errors import UserError
from profiler.huggingface import model_from_config
from profiler.job import Precision
from profiler.model import ModelSpec, Positive
from profiler.names import one_of

Kind = Literal["device", "model", "node", "cluster"]
"""What a device may state a rate for; a job may know fewer."""
Scalar = str | int | float | bool | None
Cited = Annotated[str, MinLen(1)]
"""Where a number comes from: a datasheet, a paper, a measurement, or that it is assumed."""

MODEL_ALIASES = {
    "llama3-405b": "llama3.1-405b",
    "llama3.1-8b": "llama3-8b",
    "llama3.1-70b": "llama3-70b",
    "gpt3-125m": "gpt3-126m",
}
"""Other names of a shape -> the file that has it."""
_ROOT = Path(__file__).parent


@record
class SourcedInt:
    """A whole number and where it comes from."""

    value: Positive
    source: Cited


@record
class SourcedCount:
    """A number of parameters and where it comes from."""

    value: Positive
    rounding: Annotated[int, Ge(0)] = 0
    """What is published was rounded to about a multiple of this; 0: the number is exact."""
    source: Cited


@record
class SourcedFloat:
    """A number and where it comes from."""

    value: PositiveFloat
    source: Cited


@record
class SourcedShare:
    """A share of a peak, above 0 and at most 1, and where it comes from."""

    value: Share
    source: Cited


@record
class SourcedRatio:
    """A ratio, 0 allowed, and where it comes from."""

    value: Annotated[float, Ge(0)]
    source: Cited


@record
class SourcedLink:
    """A link whose rate and latency carry their sources."""

    name: str
    bytes_per_s: SourcedFloat
    latency_s: SourcedFloat

    def to_link(self) -> LinkSpec:
        """The link without its sources."""
        return LinkSpec(
            name=self.name,
            bytes_per_s=self.bytes_per_s.value,
            latency_s=self.latency_s.value,
        )


@record
class DeviceFile:
    """Content of `devices/NAME.yaml`; the fields are those of `DeviceSpec` and `DeviceEntry`."""

    memory_bytes: SourcedInt
    flops_per_s: dict[Precision, SourcedFloat]
    memory_bytes_per_s: SourcedFloat
    gemm_efficiency: SourcedShare
    memory_efficiency: SourcedShare
    launch_s: SourcedFloat
    units: SourcedInt | None = None
    is_host: bool = False
    intra: SourcedLink
    nic: SourcedLink
    nics_per_device: SourcedRatio
    domain_devices: SourcedInt | None = None


@record
class DeviceEntry:
    """A catalogued device and the interconnect that its servers have by default."""

    device: DeviceSpec
    intra: LinkSpec
    nic: LinkSpec
    nics_per_device: Annotated[float, Ge(0)]
    domain_devices: Annotated[int, Ge(0)] = 0
    """Devices that `intra` joins where it reaches past a node; 0: those of the node."""

    def num_nics(self, devices_per_node: int) -> int:
        """NICs of a node with so many devices; at least one."""
        return max(1, int(devices_per_node * self.nics_per_device))

    def domain_of(self, devices_per_node: int) -> int:
        """`NodeGroup.domain_devices` of nodes with so many devices: 0 where whole nodes do not
        fill the domain.
        """
        fills = devices_per_node < self.domain_devices
        return self.domain_devices if fills and self.domain_devices % devices_per_node == 0 else 0


@record
class ModelFile:
    """Content of `models/NAME.yaml`."""

    source: Cited
    """Whose `config.json` it is."""
    num_params: SourcedCount
    """Published number of parameters."""
    config: dict[str, Scalar | dict[str, Scalar]]
    """Keys of the `config.json`."""


@record
class CatalogItem:
    """One line of a listing."""

    name: str
    description: str


def folder(kind: Kind) -> Path:
    """Folder that holds the files of a kind."""
    return _ROOT / f"{kind}s"


def names(kind: Kind) -> tuple[str, ...]:
    """Catalogue names of a kind in alphabetical order; reads the folder alone."""
    return tuple(sorted(path.stem for path in folder(kind).glob("*.yaml")))


def list_kind(kind: Kind) -> tuple[CatalogItem, ...]:
    """Names and descriptions of a kind; reads the first line of each file."""
    items = []
    for name in names(kind):
        with (folder(kind) / f"{name}.yaml").open(encoding="utf-8") as file:
            items.append(CatalogItem(name=name, description=file.readline().lstrip("# ").rstrip()))
    return tuple(items)


def list_devices() -> tuple[CatalogItem, ...]:
    """Catalogued devices."""
    return list_kind("device")


def list_nodes() -> tuple[CatalogItem, ...]:
    """Catalogued node types."""
    return list_kind("node")


def list_models() -> tuple[CatalogItem, ...]:
    """Catalogued models."""
    return list_kind("model")


def unknown(kind: Kind, name: str, known: tuple[str, ...]) -> UserError:
    """The error for a name that the catalogue does not hold."""
    return unknown_name("node type" if kind == "node" else kind, name, known)


def unknown_name(word: str, name: str, known: tuple[str, ...]) -> UserError:
    """The same for any kind of thing, called `word`."""
    hint = one_of(name, known, f"known {word}s")
    return UserError(f"no {word} `{name[:60]}` in the catalogue", hint=hint)


@functools.cache
def load_device(name: str) -> DeviceEntry:
    """The device of that name; `UserError` naming the nearest where there is none."""
    if name not in names("device"):
        raise unknown("device", name, names("device"))
    path = folder("device") / f"{name}.yaml"
    file = decode(DeviceFile, read_text(path), str(path))
    device = DeviceSpec(
        name=name,
        memory_bytes=file.memory_bytes.value,
        flops_per_s={p: rate.value for p, rate in file.flops_per_s.items()},
        memory_bytes_per_s=file.memory_bytes_per_s.value,
        gemm_efficiency=file.gemm_efficiency.value,
        memory_efficiency=file.memory_efficiency.value,
        launch_s=file.launch_s.value,
        units=file.units.value if file.units else 1,
        is_host=file.is_host,
    )
    return DeviceEntry(
        device=device,
        intra=file.intra.to_link(),
        nic=file.nic.to_link(),
        nics_per_device=file.nics_per_device.value,
        domain_devices=file.domain_devices.value if file.domain_devices else 0,
    )


def load_model_file(name: str) -> ModelFile:
    """The file of a model, with its source and published size; `UserError` for an unknown name."""
    known = tuple(sorted((*names("model"), *MODEL_ALIASES)))
    if name not in known:
        raise unknown("model", name, known)
    path = folder("model") / f"{MODEL_ALIASES.get(name, name)}.yaml"
    return decode(ModelFile, read_text(path), str(path))


@functools.cache
def load_model(name: str) -> ModelSpec:
    """The model of that name; `UserError` naming the nearest where there is none."""
    file = load_model_file(name)
    return model_from_config(file.config, name, f"{name}.yaml")
