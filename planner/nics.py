"""Which NIC each GPU of a node sends through: the nearest ones, with an equal number on each.

Near is the order of `nvidia-smi topo -m` (`profiler.link_files.nvidia_topo.KINDS`): one PCIe switch
before several, before a host bridge, before another NUMA node. NCCL looks for the same where it has
a NIC for every GPU; where a node has fewer, or some GPUs have several as near, someone must say.
"""

from dataclasses import dataclass

import numpy as np

from profiler.errors import UserError
from profiler.link_files.nvidia_topo import NvidiaTopo, rank_of
from solvers.matching import spread_evenly


@dataclass(frozen=True, slots=True, kw_only=True)
class NicOfGpu:
    """A GPU of every node, and its NIC."""

    gpu: str
    nic: str
    kind: str
    """How the two are joined."""


def nics_of_gpus(topo: NvidiaTopo, place: str) -> tuple[NicOfGpu, ...]:
    """In the order of the GPUs; of pairs as near as each other, the first. `UserError` where the
    node has no NICs."""
    if not topo.nics:
        raise UserError(
            "the table has no NICs",
            hint="`nvidia-smi topo -m` lists those with an InfiniBand or RoCE driver",
            place=place,
        )
    near = np.array([[rank_of(topo.kind(gpu, nic)) for nic in topo.nics] for gpu in topo.gpus])
    # GPUs take NICs in turn where all are as near.
    turn = np.abs(np.subtract.outer(np.arange(len(topo.gpus)) * len(topo.nics) // len(topo.gpus),
                                    np.arange(len(topo.nics))))  # fmt: skip
    chosen = spread_evenly(near + turn / (1e3 * len(topo.gpus) * len(topo.nics)))
    return tuple(
        NicOfGpu(gpu=gpu, nic=topo.nics[k], kind=topo.kind(gpu, topo.nics[k]))
        for gpu, k in zip(topo.gpus, chosen, strict=True)
    )
