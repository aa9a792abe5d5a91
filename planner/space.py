"""The joint space as arrays: all layouts of the open axes, in chunks, less those that break a rule.

For each tp, pp and cp the space is a product of independent lists (`planner.axes`): replicas x
context method x experts make the *meshes*, micro-batch x schedule x recompute x offload the
*steps*. Rules that look at the mesh alone are asked once per mesh, and reject all its layouts at
once; only what is left is written out. Each layout is counted under the first rule of `RULES` that
it breaks.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.axes import Axes, Coverage
from planner.layouts import FIELDS, NAMES, Bools, Ints, Layouts, is_one_of
from planner.plan import SearchOptions
from planner.rules import CONFIG_RULES, UNPLACED_RULES, ConfigRule
from profiler.job import JobSpec
from profiler.model import ModelSpec

CHUNK = 2**18
"""Most layouts of a chunk: 15 MiB of int32."""
_BATCH = 2**15
"""Meshes that are asked together, about."""

Table = NDArray[np.int32]
"""[fields, rows]."""
_MESH = (
    "tp", "pp", "cp", "dp_replicate", "dp_shard", "zero", "cp_method", "cp_heads", "ep", "etp",
    "ep_overlap",
)  # fmt: skip
_STEP = ("micro_batch", "schedule", "vpp", "recompute", "offload")

_ALL_RULES = (
    *CONFIG_RULES,
    *UNPLACED_RULES,
    ConfigRule(
        "gpipe-pp1",
        "on one stage 1f1b does the same in less memory",
        lambda c, m, j: (c.pp == 1) & is_one_of(c, "schedule", "gpipe"),
    ),
)
RULES = tuple(sorted(_ALL_RULES, key=lambda rule: not rule.of_mesh))
"""Of the search, in the order in which they are asked."""
MEMORY_RULE = "memory"
SENTENCES = {rule.id: rule.sentence for rule in RULES} | {
    "pin": "a pinned axis has another value",
    "forbid": "an axis has a forbidden value",
    "split-length": "the pinned split has another number of stages",
    "oom-profiled": "a block alone ran out of memory in the profile",
    "not-profiled": "the profile has no entry near this tp and micro-batch",
    MEMORY_RULE: "no split of the layers fits the devices' memory",
}
"""Of these rules and of those that the search has besides."""


def enumerate_layouts(
    num_devices: int,
    job: JobSpec,
    model: ModelSpec,
    options: SearchOptions,
    coverage: Coverage,
    *,
    devices_per_node: int,
    rejected: Counter[str] | None = None,
    rules: Sequence[ConfigRule] = RULES,
) -> Iterator[Layouts]:
    """Layouts of exactly `num_devices` that break none of `rules`, in chunks of at most `CHUNK`.

    Always in the same order. Those that break one are added to `rejected` as the chunks come, by
    the id of the first: rules of the mesh in their order, then the others. Layouts whose replicas
    do not divide the global batch are not in the space.
    """
    counts: Counter[str] = Counter() if rejected is None else rejected
    axes = Axes(model, job, options, coverage, devices_per_node)
    of_mesh = [rule for rule in rules if rule.of_mesh]
    of_step = [rule for rule in rules if not rule.of_mesh]
    batches = _batches(_blocks(num_devices, job, axes))
    pieces = (
        piece for batch in batches for piece in _valid_meshes(batch, of_mesh, model, job, counts)
    )
    for chunk in _chunks(pieces):
        valid = reject(chunk, of_step, model, job, counts)
        if valid.all():
            yield chunk
        elif valid.any():
            yield chunk.take(np.flatnonzero(valid))


def reject(
    layouts: Layouts,
    rules: Sequence[ConfigRule],
    model: ModelSpec,
    job: JobSpec,
    counts: Counter[str],
    weights: Ints | None = None,
) -> Bools:
    """Which layouts break no rule; the others are counted under the first, with their weight."""
    valid = np.ones(len(layouts), dtype=np.bool_)
    for rule in rules:
        broken = rule.mask(layouts, model, job) & valid
        number = int(np.count_nonzero(broken) if weights is None else weights[broken].sum())
        if number:
            counts[rule.id] += number
            valid ^= broken
    return valid


def _blocks(num_devices: int, job: JobSpec, axes: Axes) -> Iterator[tuple[Table, Table]]:
    """Meshes and steps of each tp, pp and cp; each of the meshes goes with each of the steps."""
    recomputes = [(NAMES["recompute"].index(name),) for name in axes.recomputes()]
    offloads = [(NAMES["offload"].index(name),) for name in axes.offloads()]
    for tp in axes.tensor(num_devices):
        for pp in axes.pipeline(num_devices // tp):
            schedules = [(NAMES["schedule"].index(s), vpp) for s, vpp in axes.schedules(pp)]
            for cp in axes.context(num_devices // (tp * pp)):
                num = num_devices // (tp * pp * cp)
                if job.global_batch % num:
                    continue
                methods = [(NAMES["cp_method"].index(m), heads) for m, heads in axes.methods(cp)]
                replicas, experts = axes.replicas(num, cp * tp), axes.experts(num * cp * tp, tp)
                sizes = [(size,) for size in axes.micro_batches(num, cp)]
                meshes = _table([(tp, pp, cp)], replicas, methods, experts)
                steps = _table(sizes, schedules, recomputes, offloads)
                if meshes.size and steps.size:
                    yield meshes, steps


def _table(*lists: Sequence[tuple[int, ...]]) -> Table:
    """The product of lists of tuples, a row per field, the last list running fastest."""
    if not all(lists):
        return np.empty((0, 0), dtype=np.int32)
    lengths = [len(each) for each in lists]
    table = np.empty((sum(len(each[0]) for each in lists), *lengths), dtype=np.int32)
    field = 0
    for position, each in enumerate(lists):
        shape = [-1 if i == position else 1 for i in range(len(lists))]
        for values in zip(*each, strict=True):
            table[field] = np.array(values, dtype=np.int32).reshape(shape)
            field += 1
    return table.reshape(field, -1)


def _batches(blocks: Iterator[tuple[Table, Table]]) -> Iterator[list[tuple[Table, Table]]]:
    """Consecutive blocks, about `_BATCH` meshes together: arrays long enough to be fast."""
    batch: list[tuple[Table, Table]] = []
    size = 0
    for block in blocks:
        batch.append(block)
        size += block[0].shape[1]
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _valid_meshes(
    batch: list[tuple[Table, Table]],
    rules: Sequence[ConfigRule],
    model: ModelSpec,
    job: JobSpec,
    counts: Counter[str],
) -> Iterator[tuple[Table, Table]]:
    """The blocks less the meshes that break a rule."""
    table = np.concatenate([meshes for meshes, _ in batch], axis=1)
    num_meshes = [meshes.shape[1] for meshes, _ in batch]
    weights = np.repeat([steps.shape[1] for _, steps in batch], num_meshes)
    nothing = np.broadcast_to(np.int32(1), table.shape[1])
    columns: dict[str, Any] = dict.fromkeys(_STEP, nothing) | dict(zip(_MESH, table, strict=True))
    valid = reject(Layouts(**columns), rules, model, job, counts, weights)
    ends = np.cumsum(num_meshes)
    for (meshes, steps), of_block in zip(batch, np.split(valid, ends[:-1]), strict=True):
        if of_block.any():
            yield meshes[:, of_block], steps


def _chunks(blocks: Iterator[tuple[Table, Table]]) -> Iterator[Layouts]:
    """Meshes x steps, written out."""
    buffer = np.empty((len(FIELDS), CHUNK), dtype=np.int32)
    filled, first = 0, len(_MESH)
    for meshes, steps in _pieces(blocks):
        num = meshes.shape[1] * steps.shape[1]
        if filled + num > CHUNK:
            yield _layouts(buffer[:, :filled])
            buffer, filled = np.empty_like(buffer), 0
        shape = (-1, meshes.shape[1], steps.shape[1])
        here = buffer[:, filled : filled + num]
        here[:first].reshape(shape)[:] = meshes[:, :, None]
        here[first:].reshape(shape)[:] = steps[:, None, :]
        filled += num
    if filled:
        yield _layouts(buffer[:, :filled])


def _pieces(blocks: Iterator[tuple[Table, Table]]) -> Iterator[tuple[Table, Table]]:
    """The blocks, cut so that none has more layouts than a chunk."""
    for meshes, steps in blocks:
        num_steps = steps.shape[1]
        at_once = max(1, CHUNK // num_steps)
        for mesh, step in product(range(0, meshes.shape[1], at_once), range(0, num_steps, CHUNK)):
            yield meshes[:, mesh : mesh + at_once], steps[:, step : step + CHUNK]


def _layouts(table: Table) -> Layouts:
    return Layouts(**dict(zip((*_MESH, *_STEP), table, strict=True)))
