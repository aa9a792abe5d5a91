"""Recorded routing of files of any form that is read, told by their content."""

from profiler.routing.readers.forms import Wanted, is_torch_file, read_routing, routing_of_bytes
from profiler.routing.readers.sglang import routing_of_recording

__all__ = ["Wanted", "is_torch_file", "read_routing", "routing_of_bytes", "routing_of_recording"]
