"""From the results of all cases to the profile: the cluster as seen, and its link as one line.

The link inside the node is `latency + bytes / rate`, fitted to the medians over all pairs by least
squares of the relative error: a small message counts as much as a large one. Needs no torch.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from profiler.cluster import ClusterSpec, DeviceSpec, LinkSpec, NodeGroup
from profiler.measure.cases import CaseResult, ProfileInputs
from profiler.profile import BlockEntry, Profile, TransferEntry


def fit_link(name: str, entries: Sequence[TransferEntry]) -> LinkSpec | None:
    """The link that the point-to-point times of `entries` show; None where there are none.

    Where the fit has no positive latency, it is the shortest time measured.
    """
    by_size: dict[int, list[float]] = {}
    for entry in entries:
        if entry.op == "p2p" and entry.time.median_s > 0:
            by_size.setdefault(entry.num_bytes, []).append(entry.time.median_s)
    if len(by_size) < 2:
        return None
    sizes = np.asarray(list(by_size), dtype=np.float64)
    times = np.asarray([np.median(found) for found in by_size.values()])
    rows = np.stack([1 / times, sizes / times], axis=1)
    (latency, per_byte), *_ = np.linalg.lstsq(rows, np.ones(len(times)), rcond=None)
    if latency <= 0:
        latency = times.min()
    if per_byte <= 0:
        per_byte = times.max() / sizes.max()
    return LinkSpec(name=name, bytes_per_s=float(1 / per_byte), latency_s=float(latency))


def middle_of_passes(entries: Iterable[BlockEntry]) -> tuple[BlockEntry, ...]:
    """One entry per block, degree and micro-batch: out of memory in any pass, else the pass with
    the median of forward + backward (the lower of two). Other work on the host adds time for
    seconds on end, so that the spread within a pass does not show it; two of three must be hit."""
    passes: dict[tuple[str, int, int], list[BlockEntry]] = {}
    for entry in entries:
        passes.setdefault((entry.block, entry.tp, entry.micro_batch), []).append(entry)
    return tuple(
        found[0] if found[0].status == "oom" else found[(len(found) - 1) // 2]
        for found in (sorted(group, key=_busy_s) for group in passes.values())
    )


def _busy_s(entry: BlockEntry) -> float:
    """Forward and backward; less than anything measured where memory ran out."""
    times = (entry.forward, entry.input_grad, entry.weight_grad)
    return sum(t.median_s for t in times if t) if entry.status == "ok" else -1.0


def assemble(inputs: ProfileInputs, device: DeviceSpec, results: Iterable[CaseResult]) -> Profile:
    """Profile of one node with `inputs.num_processes` devices.

    A single process has no link: its place is taken by the device's own memory.
    """
    found = list(results)
    transfers = tuple(entry for result in found for entry in result.transfers)
    link = fit_link("measured", transfers) or LinkSpec(
        name="memory", bytes_per_s=device.memory_bytes_per_s, latency_s=device.launch_s
    )
    group = NodeGroup(
        device=dataclasses.replace(device, memory_bytes=inputs.memory_bytes),
        num_nodes=1,
        devices_per_node=inputs.num_processes,
        intra=link,
        nic=link,
        nics_per_node=1,
    )
    return Profile(
        source="measured",
        model=inputs.model,
        seq_len=inputs.seq_len,
        precision=inputs.precision,
        cluster=ClusterSpec(name=f"{device.name}-1x{inputs.num_processes}", groups=(group,)),
        environment=inputs.environment,
        blocks=middle_of_passes(entry for result in found for entry in result.blocks),
        transfers=transfers,
        sharing=tuple(entry for result in found for entry in result.sharing),
        executor=next((result.executor for result in found if result.executor), None),
    )
