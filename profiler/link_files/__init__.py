"""Readers of what people already have about their links: matrices, benchmark output, topologies.

`read_links` gives `profiler.links.Links`; the others give facts of their own kind. What a file
lacks or gets wrong is a `UserError` with its line.
"""

from profiler.link_files.fabric import Fabric, HostPort
from profiler.link_files.fabric_forms import fabric_from_text, read_fabric
from profiler.link_files.fit import LineFit, fit_line
from profiler.link_files.forms import links_from_text, read_link_report, read_links
from profiler.link_files.json_forms import links_document
from profiler.link_files.nccl_tests import (
    NcclRank,
    NcclRow,
    NcclTest,
    nccl_tests_from_text,
    read_nccl_tests,
)
from profiler.link_files.nvidia_topo import (
    NvidiaTopo,
    nvidia_topo_from_text,
    read_nvidia_topo,
)

__all__ = [
    "Fabric",
    "HostPort",
    "LineFit",
    "NcclRank",
    "NcclRow",
    "NcclTest",
    "NvidiaTopo",
    "fabric_from_text",
    "fit_line",
    "links_document",
    "links_from_text",
    "nccl_tests_from_text",
    "nvidia_topo_from_text",
    "read_fabric",
    "read_link_report",
    "read_links",
    "read_nccl_tests",
    "read_nvidia_topo",
]
