"""Which tokens of a run have their routing recorded, what each rank keeps of it, and joining that.

Token g of a step is position g % seq_len of sample g // seq_len of the global batch. The sample of
a step is drawn from a generator seeded by (seed, step) alone, so that every rank knows it without a
word and it is the same in every layout. A rank writes RUN/routing/rank-NNNNN-NNN.npz now and then:

    step, token [n]    which tokens
    layers [l]         MoE layers of the rank's stages
    ids [n, l, k]      experts, -1 where capacity dropped the choice

`join` puts the layers of all ranks together into RUN/routing.npz; tokens that lack a layer, since
the run was stopped in between, are left out.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launch.artifact import write_atomic
from planner.plan import Plan
from profiler.errors import UserError
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.routing.arrays import npz_bytes, read_arrays, read_bytes, smallest
from profiler.routing.store import routing_bytes
from profiler.routing.trace import DROPPED, RoutingTrace

Ids = NDArray[np.int16]
Numbers = NDArray[np.int64]
FOLDER, FILE_NAME = "routing", "routing.npz"
_STREAM = 0x726F757465
"""Keeps the draw apart from that of the data, which has the same seed and steps."""


def sampled_tokens(seed: int, step: int, num_tokens: int, share: float) -> Numbers:
    """Tokens of a step that are recorded, ascending; at least one."""
    number = min(num_tokens, max(1, math.ceil(share * num_tokens)))
    if number == num_tokens:
        return np.arange(num_tokens, dtype=np.int64)
    generator = np.random.default_rng((_STREAM, seed, step))
    return np.sort(generator.choice(num_tokens, number, replace=False, shuffle=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one rank recorded of some tokens."""

    step: Numbers
    token: Numbers
    layers: Numbers
    ids: Ids
    """[tokens, layers, k]."""

    def before(self, step: int) -> "Part":
        """Without what was recorded in `step` and after it."""
        keep = self.step < step
        return Part(
            step=self.step[keep], token=self.token[keep], layers=self.layers, ids=self.ids[keep]
        )


def joined_parts(parts: list[Part]) -> Part:
    """Parts of the same layers, one after the other."""
    return Part(
        step=np.concatenate([part.step for part in parts]),
        token=np.concatenate([part.token for part in parts]),
        layers=parts[0].layers,
        ids=np.concatenate([part.ids for part in parts]),
    )


def part_path(run_dir: Path, rank: int, number: int) -> Path:
    """File of a rank's `number`-th part."""
    return run_dir / FOLDER / f"rank-{rank:05d}-{number:03d}.npz"


def part_paths(run_dir: Path, rank: int | None = None) -> list[Path]:
    """Files that a rank wrote, in the order of time; None: all ranks."""
    which = "*" if rank is None else f"{rank:05d}"
    return sorted((run_dir / FOLDER).glob(f"rank-{which}-*.npz"), key=lambda p: (len(p.name), p))


def write_part(path: Path, part: Part) -> None:
    """Whole or not at all."""
    names = ("step", "token", "layers", "ids")
    write_atomic(path, npz_bytes({name: smallest(getattr(part, name)) for name in names}))


def read_part(path: Path) -> Part:
    """Raises `UserError` where it is none."""
    arrays = read_arrays(read_bytes(path), str(path))
    try:
        part = Part(
            step=arrays["step"].astype(np.int64),
            token=arrays["token"].astype(np.int64),
            layers=arrays["layers"].astype(np.int64),
            ids=arrays["ids"].astype(np.int16),
        )
    except KeyError as e:
        raise UserError(f"array {e} is missing", place=str(path)) from None
    if part.ids.shape[:2] != (len(part.step), len(part.layers)) or part.ids.ndim != 3:
        raise UserError("its arrays do not fit together", place=str(path))
    return part


def join(run_dir: Path, model: ModelSpec, job: JobSpec) -> RoutingTrace | None:
    """The routing of what all ranks wrote, tokens in order; None where they wrote nothing that is
    whole."""
    parts = [part for part in map(read_part, part_paths(run_dir)) if len(part.step)]
    if not parts:
        return None
    per_step = job.tokens_per_step
    keys = [part.step * per_step + part.token for part in parts]
    every = np.unique(np.concatenate(keys))
    shape = (len(every), model.num_moe_layers)
    ids = np.full((*shape, model.num_experts_per_token), DROPPED, np.int16)
    known = np.zeros(shape, np.bool_)
    for part, key in zip(parts, keys, strict=True):
        rows = np.searchsorted(every, key)
        ids[rows[:, None], part.layers] = part.ids
        known[rows[:, None], part.layers] = True
    whole = known.all(axis=1)
    if not whole.any():
        return None
    return RoutingTrace(
        ids=ids[whole], num_experts=model.num_experts, model=model.name,
        step=every[whole] // per_step,
    )  # fmt: skip


def save_joined(plan: Plan, run_dir: Path, *, complete: bool) -> Path | None:
    """Write RUN/routing.npz; its path, or None where nothing was recorded. Of a complete run the
    ranks' parts go."""
    found = join(run_dir, plan.model, plan.job)
    if found is None:
        return None
    path = run_dir / FILE_NAME
    write_atomic(path, routing_bytes(found))
    if complete:
        for part in part_paths(run_dir):
            part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (run_dir / FOLDER).rmdir()
    return path
