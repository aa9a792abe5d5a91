"""Files of routing as users have them, `torch.save`d ones too; and our own, written."""

from pathlib import Path

from launch.artifact import write_atomic
from profiler.routing.arrays import read_bytes
from profiler.routing.readers import (
    Wanted,
    is_torch_file,
    routing_of_bytes,
    routing_of_recording,
)
from profiler.routing.store import routing_bytes
from profiler.routing.trace import Routing


def read_any_routing(path: Path, wanted: Wanted) -> Routing:
    """Routing of a file of any form that is read; torch is loaded where `torch.save` wrote it.

    Raises `UserError` where it is none, or torch is needed and not installed.
    """
    data, place = read_bytes(path), str(path)
    if not is_torch_file(data):
        return routing_of_bytes(data, place, wanted)
    from launch.scheduler.single_node import check_torch

    check_torch()
    from launch.runtime.saved import plain_values

    return routing_of_recording(plain_values(data, place), place, wanted.num_experts)


def write_routing(path: Path, routing: Routing) -> None:
    """Write our own file, whole or not at all."""
    write_atomic(path, routing_bytes(routing))
