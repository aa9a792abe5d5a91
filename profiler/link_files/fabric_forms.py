"""The fabric of a file, told by its content: Slurm's `topology.conf`, or ibnetdiscover's output."""

from pathlib import Path

from profiler.codec import read_text
from profiler.errors import UserError
from profiler.link_files.fabric import Fabric
from profiler.link_files.ibnetdiscover import fabric_of_ibnetdiscover, is_ibnetdiscover
from profiler.link_files.slurm_topology import fabric_of_slurm, is_slurm_topology


def read_fabric(path: Path) -> Fabric:
    """The fabric of a file; `UserError` with file and line."""
    return fabric_from_text(read_text(path), str(path))


def fabric_from_text(text: str, place: str) -> Fabric:
    """The fabric of a text; `place` is what errors call the file."""
    if is_ibnetdiscover(text):
        return fabric_of_ibnetdiscover(text, place)
    if is_slurm_topology(text):
        return fabric_of_slurm(text, place)
    raise UserError(
        "this describes no switches",
        hint="understood are Slurm's `topology.conf` and the output of `ibnetdiscover`",
        place=place,
    )
