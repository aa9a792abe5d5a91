"""Checkpoints on disk: which are complete, and which are as they were written.

    RUN/checkpoints/.step-00000010.partial/   being written, or left by a fault
    RUN/checkpoints/step-00000010/            complete

A checkpoint becomes complete by the renaming of its folder, after `seal.json` was written into it
with the size and checksum (CRC-32) of every other file. One that does not match its seal is never
loaded. Knows files alone; `launch.runtime.checkpoint` knows what is in them.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from profiler.errors import UserError

SEAL = "seal.json"
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
        if not table:  # every checkpoint has files: such a seal is nobody's
            return f"`{SEAL}` names no files"
        for name, (size, checksum) in table.items():
            path = folder / name
            if not path.is_file():
                return f"`{name}` is missing"
            if path.stat().st_size != size:
                return f"`{name}` has {path.stat().st_size} bytes of {size}"
            if _checksum(path) != checksum:
                return f"`{name}` has other content than was written"
    except (OSError, ValueError, TypeError, AttributeError):
        return f"`{SEAL}` cannot be read"
    return None


def complete_checkpoints(root: Path) -> list[Path]:
    """Complete ones, newest first, whether damaged or not."""
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
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


def prune(root: Path, keep: int) -> None:
    """Remove all complete checkpoints but the `keep` newest."""
    for folder in complete_checkpoints(root)[keep:]:
        doomed = folder.with_name(f".{folder.name}.removed")
        folder.rename(doomed)  # so that a half-removed one is never taken for complete
        shutil.rmtree(doomed)


def checkpoint_root(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints"


def find_checkpoint(path: Path) -> Path:
    """A checkpoint by its own folder, or the newest sound one of a run's folder.

    Raises `UserError` where there is none.
    """
    if _NAME.fullmatch(path.name):
        wrong = damage(path) if path.is_dir() else "there is no such folder"
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
    return found
