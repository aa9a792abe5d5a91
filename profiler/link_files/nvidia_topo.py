"""Table of `nvidia-smi topo -m`: how the GPUs and NICs of a node are joined.

            GPU0    GPU1    NIC0    CPU Affinity    NUMA Affinity   GPU NUMA ID
    GPU0     X      NV18    PXB     0-55,112-167    0               N/A
    GPU1    NV18     X      SYS     56-111,168-223  1               N/A
    NIC0    PXB     SYS      X

    NIC Legend:
      NIC0: mlx5_0

Older drivers name the NICs in the table itself (`mlx5_0`), and `SYS` is `SOC` in the oldest. A
terminal's output has the header underlined (ANSI codes), a copied one spaces for tabs: columns are
told by their words.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from profiler.codec import read_text
from profiler.errors import UserError
from profiler.link_files.table import lines_of
from profiler.names import did_you_mean

KINDS = ("X", "NV#", "NVB", "PIX", "PXB", "PHB", "NODE", "SYS")
"""From the nearest to the farthest: itself; # NVLinks, or NVLink through a peer; a PCIe switch;
several; a PCIe host bridge; the bridges of a NUMA node; the link between NUMA nodes."""
_KIND = re.compile(r"X|NV\d{1,4}|NVB|PIX|PXB|PHB|NODE|SYS|SOC", re.ASCII)
_GPU = re.compile(r"GPU\d{1,6}", re.ASCII)
_LEGEND = re.compile(r"\s*(NIC\d{1,6}):\s*(\S+)\s*", re.ASCII)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_HINT = "save what `nvidia-smi topo -m` prints, legend and all"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaTopo:
    """GPUs as in the table, NICs by the names of their devices."""

    gpus: tuple[str, ...]
    nics: tuple[str, ...]
    kinds: tuple[tuple[str, ...], ...]
    """Between `devices`: `NV18`, `PIX` ..."""
    cpus: tuple[str, ...]
    """CPUs near each GPU (`0-55,112-167`), empty where not said."""
    numa: tuple[str, ...]
    """NUMA nodes near each GPU."""

    @property
    def devices(self) -> tuple[str, ...]:
        """GPUs, then NICs."""
        return self.gpus + self.nics

    def kind(self, one: str, other: str) -> str:
        """How two devices are joined."""
        for name in (one, other):
            if name not in self.devices:
                raise UserError(f"no device `{name}`", hint=did_you_mean(name, self.devices))
        return self.kinds[self.devices.index(one)][self.devices.index(other)]

    def nearest_nics(self, gpu: str) -> tuple[str, ...]:
        """NICs of the best kind that the GPU has to any; none where there are none."""
        ranks = {nic: rank_of(self.kind(gpu, nic)) for nic in self.nics}
        return tuple(nic for nic in self.nics if ranks[nic] == min(ranks.values()))


def rank_of(kind: str) -> int:
    """Place in `KINDS`: less is nearer."""
    return KINDS.index(kind) if kind in KINDS else KINDS.index("NV#")


def read_nvidia_topo(path: Path) -> NvidiaTopo:
    """The table in a file; `UserError` with file and line."""
    return nvidia_topo_from_text(read_text(path), str(path))


def nvidia_topo_from_text(text: str, place: str) -> NvidiaTopo:
    """The first table in a text; `place` is what errors call the file."""
    lines = [_ANSI.sub("", line) for line in lines_of(text)]
    start = next((k for k, line in enumerate(lines) if _header(line)), None)
    if start is None:
        raise UserError("this is no table of `nvidia-smi topo -m`", hint=_HINT, place=place)
    labels = _header(lines[start])
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError(f"device `{twice}` is listed twice", place=f"{place}:{start + 1}")
    rows = {}
    for k, label in enumerate(labels):
        line = start + 1 + k
        words = lines[line].split() if line < len(lines) else []
        at = f"{place}:{min(line + 1, len(lines))}"
        if words[:1] != [label]:
            raise UserError(f"the row of `{label}` is missing", hint=_HINT, place=at)
        rows[label] = _row(words[1:], labels, label, at)
    gpus = tuple(label for label in labels if _GPU.fullmatch(label))
    legend = _legend(lines[start:])
    order = (*gpus, *(label for label in labels if label not in gpus))
    nics = tuple(legend.get(label, label) for label in order[len(gpus) :])
    if len(set(nics)) != len(nics):
        raise UserError("two NICs have the same name in the legend", place=place)
    after = {gpu: (*rows[gpu][len(labels) :], "", "") for gpu in gpus}
    return NvidiaTopo(
        gpus=gpus,
        nics=nics,
        kinds=tuple(tuple(rows[a][labels.index(b)] for b in order) for a in order),
        cpus=tuple(after[gpu][0] for gpu in gpus),
        numa=tuple(after[gpu][1] for gpu in gpus),
    )


def _header(line: str) -> list[str]:
    """Devices of a header, which the affinities follow; none where the line is another."""
    words = line.split()
    if not words or not _GPU.fullmatch(words[0]) or any(_KIND.fullmatch(w) for w in words):
        return []
    end = next((k for k, word in enumerate(words) if word in ("CPU", "NUMA")), len(words))
    return words[:end]


def _row(words: list[str], labels: list[str], label: str, at: str) -> list[str]:
    """Kinds to the devices, and what follows them."""
    for other, word in zip(labels, words, strict=False):
        if not _KIND.fullmatch(word) or (word == "X") != (other == label):
            raise UserError(
                f"`{word[:40]}` is no link between `{label}` and `{other}`",
                hint=f"known are {', '.join(KINDS)}; {_HINT}",
                place=at,
            )
    if len(words) < len(labels):
        message = f"the row of `{label}` has {len(words)} links, but there are {len(labels)}"
        raise UserError(f"{message} devices", hint="the output is cut off", place=at)
    return ["SYS" if word == "SOC" else word for word in words]


def _legend(lines: list[str]) -> dict[str, str]:
    """Names of the NICs: `NIC0` -> `mlx5_0`."""
    found = (_LEGEND.fullmatch(line) for line in lines)
    return {match[1]: match[2] for match in found if match is not None}
