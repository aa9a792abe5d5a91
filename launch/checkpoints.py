"""Checkpoints on disk: which are complete, and which are as they were written.

    RUN/checkpoints/.step-00000010.partial/   being written, or left by a fault
    RUN/checkpoints/step-00000010/            complete

A checkpoint becomes complete by the renaming of its folder, after `seal.json` was written into it
with the size and checksum (CRC-32) of every other file. One that does not match its seal is never
loaded. Knows files alone, and what `training.json` says; `launch.runtime.checkpoint` knows what is
in the others.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from launch.artifact import is_folder
from planner.config import ExpertSlots
from profiler.codec import build, parse_json, read_text
from profiler.errors import UserError

SEAL = "seal.json"
STATE = "training.json"
"""Steps trained, written first; DCP's `.metadata` is written last."""
_NAME = re.compile(r"step-(\d{8})")
_CHUNK = 2**22


def partial_folder(root: Path, step: int) -> Path:
    """Where a checkpoint is written."""
    return root / f".step-{step:08d}.partial"


def complete_folder(root: Path, step: int) -> Path:
    """Where it is once it is complete."""
    return root / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Steps trained when a complete checkpoint was taken."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise UserError(f"`{folder.name}` is not a checkpoint folder", place=str(folder))
    return int(match[1])


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            value = zlib.crc32(block, value)
    return value


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != SEAL)


def seal(root: Path, step: int) -> Path:
    """Make the partial checkpoint of a step complete."""
    partial, complete = partial_folder(root, step), complete_folder(root, step)
    table = {str(p.relative_to(partial)): [p.stat().st_size, _checksum(p)] for p in _files(partial)}
    with (partial / SEAL).open("w", encoding="utf-8") as out:
        json.dump(table, out, indent=1, sort_keys=True)
        out.flush()
        os.fsync(out.fileno())
    if complete.exists():  # of an earlier attempt at the same step
        shutil.rmtree(complete)
    partial.rename(complete)
    return complete


def damage(folder: Path) -> str | None:
    """None where every file of a complete checkpoint is as it was written, else what is wrong."""
    try:
        table = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        if not {STATE, ".metadata"} <= set(table):
            return f"`{SEAL}` does not name all files"
        for name, (size, checksum) in table.items():
            path = folder / name
            if not path.is_file():
                return f"`{name}` is missing"
            if path.stat().st_size != size:
                return f"`{name}` has {path.stat().st_size} bytes of {size}"
            if _checksum(path) != checksum:
                return f"`{name}` has other content than was written"
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return f"`{SEAL}` cannot be read"
    return None


def complete_checkpoints(root: Path) -> list[Path]:
    """Complete ones, newest first, whether damaged or not."""
    if not is_folder(root):
        return []
    try:
        found = [p for p in root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise UserError(f"cannot read the folder: {reason}", place=str(root)) from None
    return sorted(found, key=step_of, reverse=True)


def newest_sound(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was written, and a sentence for each newer one that is
    not."""
    warnings: list[str] = []
    for folder in complete_checkpoints(root):
        wrong = damage(folder)
        if wrong is None:
            return folder, warnings
        warnings.append(f"checkpoint `{folder}` is damaged and left out: {wrong}")
    return None, warnings


def prune(root: Path, keep: int, newest: int) -> None:
    """Remove all complete checkpoints but the `keep` newest up to step `newest`, as far as the file
    system lets us. Later ones are of an attempt that was given up: they were damaged."""
    found = complete_checkpoints(root)
    later = [folder for folder in found if step_of(folder) > newest]
    for folder in later + found[len(later) :][keep:]:
        doomed = folder.with_name(f".{folder.name}.removed")
        with contextlib.suppress(OSError):
            folder.rename(doomed)  # so that a half-removed one is never taken for complete
        shutil.rmtree(doomed, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what faults left half written or half removed."""
    for pattern in (".step-*.partial", ".step-*.removed"):
        for folder in root.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def checkpoint_root(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints"


def find_checkpoint(path: Path) -> Path:
    """A checkpoint by its own folder, or the newest sound one of a run's folder.

    Raises `UserError` where there is none.
    """
    if _NAME.fullmatch(path.name):
        wrong = damage(path) if is_folder(path) else "there is no such folder"
        if wrong:
            raise UserError(f"cannot resume from the checkpoint: {wrong}", place=str(path))
        return path
    found, warnings = newest_sound(checkpoint_root(path))
    if found is None:
        raise UserError(
            "no complete checkpoint in this run's folder",
            place=str(path),
            details=tuple(warnings),
            hint="give the folder of a run that wrote one (`--checkpoint-every N`)",
        )
    for sentence in warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    return found


def places_in(folder: Path, layout: str) -> tuple[ExpertSlots, ...]:
    """Slots of every MoE layer when a checkpoint of this layout was taken; empty where it is of
    another, or its experts were where the plan had none named."""
    state = parse_json(read_text(folder / STATE), str(folder / STATE))
    if state.get("layout") != layout:
        return ()
    rows = state.get("experts") or ()
    return tuple(build(ExpertSlots, row, str(folder / STATE)) for row in rows)
