"""A rank's record of where a sample of its tokens went, in all MoE layers of its stages.

The layers hand over what their routers chose; what is kept of it waits on the device until the step
ends, and in memory until some seconds have gone by. Which tokens these are: `launch.routing_parts`.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from launch.routing_parts import (
    Numbers,
    Part,
    joined_parts,
    part_path,
    part_paths,
    read_part,
    sampled_tokens,
    write_part,
)
from launch.runtime.context import sequence_index
from launch.runtime.experts import MoE
from launch.runtime.record import Recorder
from launch.runtime.trainer import Trainer
from planner.config import ParallelConfig
from profiler.job import JobSpec
from profiler.routing.trace import DROPPED

FLUSH_S = 20.0
"""Seconds between writes: what a run that is killed loses at most."""


class RoutingLog:
    """Records while `begin` to `end` of a step; `flush` writes what has come together."""

    def __init__(
        self, trainer: Trainer, job: JobSpec, config: ParallelConfig, recorder: Recorder, *,
        share: float, seed: int, run_dir: Path, first_step: int = 0,
    ) -> None:  # fmt: skip
        """`first_step`: what an earlier attempt recorded from there on is dropped."""
        self._job, self._config, self._recorder = job, config, recorder
        self._share, self._seed = share, seed
        self._where = _Where(trainer, job, config)
        self._run_dir, self._rank = run_dir, trainer.mesh.rank
        self._device = torch.device("cpu")
        self._rows: dict[int, Tensor] = {}
        self._found: dict[tuple[int, int], Tensor] = {}
        self._parts: list[Part] = []
        self._layers = _tap(trainer, self._note)
        self._number = self._keep_before(first_step)
        self._written = time.monotonic()

    def begin(self, step: int, device: torch.device) -> None:
        """Draw the step's tokens and find those of this rank."""
        self._step, self._device = step, device
        drawn = sampled_tokens(self._seed, step, self._job.tokens_per_step, self._share)
        self._tokens, micro_batch, rows = self._where.of(drawn)
        self._rows = {
            int(k): torch.from_numpy(rows[micro_batch == k]).to(device)
            for k in np.unique(micro_batch)
        }
        self._found = {}

    def _note(self, layer: int, ids: Tensor, kept: Tensor | None) -> None:
        """Choices [tokens, k] of a layer for a micro-batch; once more in backward is not news."""
        op, _, micro_batch = self._recorder.doing
        rows = self._rows.get(micro_batch) if op == "F" else None
        if rows is None:
            return
        chosen = ids[rows]
        if kept is not None:
            chosen = chosen.masked_fill(~kept[rows], DROPPED)
        self._found[layer, micro_batch] = chosen

    def end(self) -> None:
        """Keep what the step gave; write where it is time."""
        if self._layers and self._rows:
            order = sorted(self._rows)
            chosen = [torch.cat([self._found[layer, k] for k in order]) for layer in self._layers]
            ids = torch.stack(chosen, dim=1).to(torch.int16).cpu().numpy()
            steps = np.full(len(self._tokens), self._step, np.int64)
            layers = np.array(self._layers, np.int64)
            self._parts.append(Part(step=steps, token=self._tokens, layers=layers, ids=ids))
        self._rows, self._found = {}, {}
        if time.monotonic() - self._written > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._parts:
            path = part_path(self._run_dir, self._rank, self._number)
            write_part(path, joined_parts(self._parts))
            self._parts, self._number = [], self._number + 1
        self._written = time.monotonic()

    def _keep_before(self, step: int) -> int:
        """Drop what an earlier attempt recorded from `step` on; number of the next part."""
        paths = part_paths(self._run_dir, self._rank)
        for path in paths:
            part = read_part(path)
            if (part.step >= step).any():
                write_part(path, part.before(step))
        return len(paths)


class _Where:
    """Which tokens of the global batch a rank holds, and where in its micro-batches."""

    def __init__(self, trainer: Trainer, job: JobSpec, config: ParallelConfig) -> None:
        place = trainer.mesh.coordinate
        self._seq_len, self._micro_batch = job.seq_len, config.micro_batch
        replica = place["dp_replicate"] * config.dp_shard + place["dp_shard"]
        samples = job.global_batch // config.num_replicas
        self._samples = (replica * samples, (replica + 1) * samples)
        own = np.arange(job.seq_len)
        if config.cp > 1:
            own = sequence_index(job.seq_len, config.cp, place["cp"], config.cp_method).numpy()
        own = np.split(own, config.tp)[place["tp"]]  # a layer's tokens are spread over tp
        self._length = len(own)
        self._local = np.full(job.seq_len, -1, np.int64)
        self._local[own] = np.arange(len(own))

    def of(self, drawn: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Those of the tokens that are here, their micro-batches (ascending), and their rows in
        them."""
        first, end = (sample * self._seq_len for sample in self._samples)
        drawn = drawn[np.searchsorted(drawn, first) : np.searchsorted(drawn, end)]
        local = self._local[drawn % self._seq_len]
        drawn, local = drawn[local >= 0], local[local >= 0]
        sample = drawn // self._seq_len - self._samples[0]
        rows = sample % self._micro_batch * self._length + local
        return drawn, sample // self._micro_batch, rows


def _tap(trainer: Trainer, note: Callable[[int, Tensor, Tensor | None], None]) -> list[int]:
    """Have the MoE layers of all stages hand over their choices; the layers, ascending."""
    layers = []
    for stage in trainer.stages.values():
        for name, block in stage.blocks.items():
            moe = getattr(block, "ffn", None)
            if isinstance(moe, MoE):
                layer = trainer.model.blocks[: int(name)].count("moe")
                moe.tap = functools.partial(note, layer)
                layers.append(layer)
    return sorted(layers)
