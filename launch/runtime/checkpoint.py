"""Training state in PyTorch's distributed checkpoints (DCP), written in the background.

Every tensor is saved under its canonical name (`launch.runtime.pieces`) as boxes that the ranks
hold: `weight/blocks.3.ffn.experts.7.gate`, and for each of them what the optimizer keeps beside it
(`exp_avg/...`). DCP cuts and joins boxes, so a state written in one layout is read in any other. In
bf16 the weights saved are the float32 masters.

Saving copies the state, then writes it in a thread with a process group of its own while training
goes on; the last thing is the seal (`launch.checkpoints`).
"""

import datetime
import errno
import json
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from launch.checkpoints import (
    STATE,
    find_checkpoint,
    newest_sound,
    partial_folder,
    places_in,
    prune,
    seal,
    step_of,
    sweep,
)
from launch.runtime.boxes import Box, BoxLoadPlanner, BoxSavePlanner
from launch.runtime.expert_moves import move_experts
from launch.runtime.pieces import Chunk
from launch.runtime.trainer import Trainer
from profiler.codec import to_plain
from profiler.errors import UserError
from profiler.model import ModelSpec
from profiler.tensors import canonical_names

WRITING = datetime.timedelta(hours=12)
"""Patience of ranks with one that still writes or seals."""
Boxes = dict[str, Box]


class _Copied(AsyncStager):
    """The state is a copy already."""

    _synchronize_after_execute = False

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return state_dict

    def synchronize_staging(self) -> None:
        return None

    def close(self) -> None:
        return None


def state_of(trainer: Trainer) -> tuple[Boxes, list[tuple[Tensor, Tensor]]]:
    """Boxes by name, sharing storage with the trainer, and (source, twin) pairs of what this rank
    holds twice: the twin is to be set after loading."""
    boxes: Boxes = {}
    twins: list[tuple[Tensor, Tensor]] = []
    first: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def add(kind: str, chunk: Chunk, local: Tensor) -> None:
        name, part = f"{kind}/{chunk.name}", local[chunk.where]
        if boxes.setdefault(name, Box(chunk.shape)).add(chunk.offset, part):
            first[name, chunk.offset] = part
        else:
            twins.append((first[name, chunk.offset], part))

    for held, weight in zip(trainer.held, trainer.weights, strict=True):
        beside = trainer.optimizer.state[weight]
        same = {k: v for k, v in beside.items() if v.shape == weight.shape and k != "step"}
        for chunk in held.chunks:
            add("weight", chunk, weight.detach())
            for kind, value in same.items():
                add(kind, chunk, value)
    for stage in trainer.stages.values():
        for name, buffer in stage.named_buffers():
            box = Box(tuple(buffer.shape))
            box.add((0,) * buffer.dim(), buffer)
            boxes[f"buffer/{name}"] = box
    return boxes, twins


def ready_optimizer(trainer: Trainer, step: int) -> None:
    """Give AdamW's state its tensors, as after `step` steps; they are to be loaded into."""
    for weight in trainer.weights:
        trainer.optimizer.state[weight] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }


class Checkpoints:
    """Saves and loads the state of a trainer; collective: every rank makes one and calls alike."""

    def __init__(self, trainer: Trainer, root: Path, *, keep: int) -> None:
        self._trainer, self._root, self._keep = trainer, root, keep
        self._rank = dist.get_rank()
        self._group = dist.new_group(backend="gloo", timeout=WRITING)
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int) -> None:
        """Start saving the state after `step` steps; waits for the save before it."""
        self.wait()
        boxes, _ = state_of(self._trainer)
        copied = {name: box.copy() for name, box in boxes.items()}
        state = {"step": step, "layout": self._trainer.label}
        state["experts"] = to_plain(self._trainer.placement.experts)
        self._pending = self._pool.submit(self._write, copied, step, state)

    def _write(self, copied: Boxes, step: int, state: dict[str, Any]) -> None:
        folder = partial_folder(self._root, step)
        try:
            if self._rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True, exist_ok=True)  # another rank's DCP may be first
                (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
            saved = async_save(
                copied, checkpoint_id=folder, process_group=self._group, planner=BoxSavePlanner(),
                async_stager=_Copied(),
            )  # fmt: skip
            assert isinstance(saved, Future)
            saved.result()
            if self._rank == 0:
                seal(self._root, step)
                prune(self._root, self._keep, step)
        except (OSError, CheckpointException) as e:
            if self._rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            raise _failure(e, step, self._rank, folder) from None

    def poll(self) -> None:
        """Raise `UserError` where saving in the background has failed by now."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until what is being saved is complete on this rank."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def newest(self) -> Path | None:
        """The newest sound checkpoint of this run, the same on every rank."""
        found: list[Path | None] = [None]
        if self._rank == 0:
            sweep(self._root)
            found[0], damaged = newest_sound(self._root)
            for sentence in damaged:
                print(f"warning: {sentence}", flush=True)
        dist.broadcast_object_list(found, src=0, group=self._group)
        return found[0]

    def find(self, path: Path) -> Path:
        """`launch.checkpoints.find_checkpoint`, decided by one rank for all."""
        found: list[Path | UserError | None] = [None]
        if self._rank == 0:
            try:
                found[0] = find_checkpoint(path)
            except UserError as e:
                found[0] = e
        dist.broadcast_object_list(found, src=0, group=self._group)
        if not isinstance(found[0], Path):
            raise found[0] or ValueError("nothing was broadcast")
        return found[0]

    def largest(self, number: int) -> int:
        """Of all ranks' numbers."""
        value = torch.tensor(number)
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._group)
        return int(value)

    def meet(self) -> None:
        """Wait for all ranks, also for one that still seals."""
        dist.barrier(group=self._group)

    def load(self, folder: Path, *, experts_too: bool = False) -> int:
        """Set the trainer's state from a checkpoint of any layout; steps trained by then.

        `experts_too`: where it is of the trainer's own layout, experts go to where they were.
        """
        step = step_of(folder)
        check_names(folder, self._trainer.model)
        if experts_too:
            self._follow(folder)
        ready_optimizer(self._trainer, step)
        boxes, twins = state_of(self._trainer)
        load(boxes, checkpoint_id=folder, process_group=self._group, planner=BoxLoadPlanner())
        with torch.no_grad():
            for source, twin in twins:
                twin.copy_(source)
        self._trainer.publish()
        return step

    def _follow(self, folder: Path) -> None:
        """Experts to where they were when the checkpoint was taken, if they can be there."""
        experts = places_in(folder, self._trainer.label)
        if not experts:
            return
        try:
            move_experts(self._trainer, experts)
        except UserError as e:
            if self._rank == 0:
                print(f"warning: experts stay where the plan has them: {e.message}", flush=True)


def check_names(folder: Path, model: ModelSpec) -> None:
    """Raise `UserError` where the checkpoint is of another model."""
    saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    kinds = ("weight/", "buffer/")
    found = {
        name.partition("/")[2]: tuple(getattr(about, "size", ()))
        for name, about in saved.items()
        if name.startswith(kinds)
    }
    wanted = canonical_names(model)
    for name in sorted(set(wanted) | set(found)):
        if found.get(name) != wanted.get(name):
            has = "does not have" if name not in found else f"holds {found[name]} of"
            raise UserError(
                f"the checkpoint {has} `{name}`, of which the model has {wanted.get(name, 'none')}",
                hint="the checkpoint is of another model than the plan",
                place=str(folder),
            )


def _failures(error: BaseException) -> Iterator[tuple[int | None, BaseException]]:
    """(rank or None for this one, what it could not do)."""
    if isinstance(error, CheckpointException):
        for rank, (wrapped, _stack) in error.failures.items():
            yield rank, wrapped
    else:
        yield None, error


def _failure(error: BaseException, step: int, rank: int, folder: Path) -> UserError:
    """One sentence that names the rank and the cause."""
    failed, cause = next(iter(_failures(error)), (None, error))
    full = isinstance(cause, OSError) and cause.errno == errno.ENOSPC
    text = str(cause) or type(cause).__name__
    if not full and ("No space left" in text or "ENOSPC" in text or "file write failed" in text):
        full = True
    reason = "no space left on device" if full else text.splitlines()[0]
    who = rank if failed is None else failed
    return UserError(
        f"rank {who} ({socket.gethostname()}) cannot write the checkpoint of step {step}: {reason}",
        place=str(folder.parent),
        kind="failed",
        hint="free some space: the run starts again from its last complete checkpoint",
    )
