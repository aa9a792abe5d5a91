"""A rank map in the forms that launchers read.

hostfile  `HOST slots=N` per node, in the order of ranks (Open MPI, DeepSpeed); ranks of a node
          must follow each other
rankfile  `rank R=HOST slot=K` (Open MPI `--map-by rankfile`, mpirun(1))
slurm     one host per line and rank, for `SLURM_HOSTFILE` with `--distribution=arbitrary`
          (srun(1)); the local rank counts up within a host
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Literal, get_args

from profiler.errors import UserError

RankFile = Literal["hostfile", "rankfile", "slurm"]
KINDS: tuple[RankFile, ...] = get_args(RankFile)


def rank_file(kind: RankFile, hosts: Sequence[str]) -> str:
    """The text for the host of each rank, `hosts` [ranks]; `UserError` where the form cannot say
    it."""
    if kind == "slurm":
        return "".join(f"{host}\n" for host in hosts)
    if kind == "rankfile":
        seen: dict[str, int] = {}
        lines = []
        for rank, host in enumerate(hosts):
            slot = seen.get(host, 0)
            seen[host] = slot + 1
            lines.append(f"rank {rank}={host} slot={slot}\n")
        return "".join(lines)
    runs = [(host, len(list(group))) for host, group in groupby(hosts)]
    if len({host for host, _ in runs}) != len(runs):
        raise UserError(
            "a hostfile numbers the ranks of a host one after the other, and this map does not",
            hint="write a rankfile or for slurm, or keep ranks in order with `--keep-nodes`",
        )
    return "".join(f"{host} slots={number}\n" for host, number in runs)
