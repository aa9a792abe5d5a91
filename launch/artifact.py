"""Our files on disk: read with checks, written whole or not at all."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TypeVar

from launch.observed import FORMAT_VERSION as OBSERVED_VERSION
from launch.observed import Observed
from planner.plan import FORMAT_VERSION as PLAN_VERSION
from planner.plan import Plan, check_plan
from profiler.codec import decode_artifact, read_text
from profiler.errors import UserError
from profiler.profile import FORMAT_VERSION as PROFILE_VERSION
from profiler.profile import Profile

T = TypeVar("T")


def _read(cls: type[T], path: Path, kind: str, version: str) -> T:
    value, warning = decode_artifact(cls, read_text(path), str(path), kind=kind, version=version)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return value


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; `UserError` where we may not look."""
    try:
        return path.is_dir()
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise UserError(f"cannot read the folder: {reason}", place=str(path)[:200]) from None


def read_profile(path: Path) -> Profile:
    """`profile.json`; `UserError` with place and hint where it is not one."""
    return _read(Profile, path, "profile", PROFILE_VERSION)


def read_plan(path: Path) -> Plan:
    """`plan.json`, checked against its own id."""
    plan = _read(Plan, path, "plan", PLAN_VERSION)
    check_plan(plan, str(path))
    return plan


def read_observed(path: Path) -> Observed:
    """`observed.json` of a run."""
    return _read(Observed, path, "observed", OBSERVED_VERSION)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside the target and rename: readers see the old file or the new, never a part."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(content.encode("utf-8") if isinstance(content, str) else content)
                f.flush()
                os.fsync(f.fileno())
            mask = os.umask(0)
            os.umask(mask)
            Path(name).chmod(0o666 & ~mask)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise UserError(
            f"cannot write the file: {reason}", place=str(path), kind="failed"
        ) from None
