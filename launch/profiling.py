"""`meshwright profile` without its terminal: starts the measuring processes, watches them, makes
the profile.

The workers write the journal; this process reads it for progress. When they end early, it decides
by what was in flight: a process that the kernel killed ran out of memory; another crash may happen
once per case. Needs torch to be installed, but does not import it.
"""

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from launch.framework.native import WORKER_ENV, torchrun
from launch.scheduler import local
from profiler.cluster import DeviceSpec
from profiler.errors import UserError
from profiler.job import Precision
from profiler.measure.assemble import assemble
from profiler.measure.cases import (
    Case,
    ProfileInputs,
    case_list,
    check_tp_degrees,
    oom_result,
)
from profiler.measure.journal import LOCK, Journal, discard, open_journal
from profiler.model import ModelSpec
from profiler.model_support import check_reference
from profiler.profile import Environment, Profile

Progress = Callable[[int, int, str], None]
"""Called with (finished cases, all cases, name of the case being measured)."""
BUDGET_S = 30.0
"""Time for measuring, start-up and the building of blocks apart."""
POLL_S = 0.1
STOP_S = 10.0
_KILLED = re.compile(r"Root Cause.*?exitcode\s*:\s*-9\b", re.DOTALL)


def partial_folder(out: Path) -> Path:
    """Where the measurements for `out` are kept until it is written."""
    return out.with_name(out.name + ".partial")


def discard_partial(out: Path) -> None:
    """Remove the partial folder of `out`, once the profile is written."""
    discard(partial_folder(out))


def measure_profile(
    model: ModelSpec,
    seq_len: int,
    precision: Precision,
    *,
    num_processes: int,
    micro_batches: Sequence[int],
    tp_degrees: Sequence[int],
    device: DeviceSpec,
    out: Path,
    restart: bool = False,
    progress: Progress | None = None,
    budget_s: float = BUDGET_S,
) -> Profile:
    """Measure on this host and return the profile; writes nothing but the partial folder of `out`.

    `device` gives what is not measured (peak rates). Raises `UserError`: invalid arguments, torch
    not installed, stale (a partial folder of other inputs), failed (a case crashed twice),
    interrupted.
    """
    _check(model, seq_len, precision, num_processes, tp_degrees)
    inputs = ProfileInputs(
        model=model,
        seq_len=seq_len,
        precision=precision,
        micro_batches=tuple(sorted(set(micro_batches))),
        tp_degrees=tuple(sorted(set(tp_degrees))),
        num_processes=num_processes,
        memory_bytes=_memory_bytes(device, num_processes),
        budget_s=budget_s,
        environment=environment(device),
    )
    folder = partial_folder(out)
    with resumable(folder) as lock:
        journal = open_journal(folder, inputs, restart=restart)
        _measure(journal, inputs, lock, progress or (lambda done, total, label: None))
        done = journal.finished()
        return assemble(inputs, device, [done[case.name] for case in case_list(inputs)])


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[int]:
    """Hold a partial folder's lock; an interrupt is an error that says how to go on."""
    with local.signals_interrupt(), only_one(folder) as lock:
        try:
            yield lock
        except KeyboardInterrupt:
            raise UserError(
                "profiling was interrupted",
                hint="the same command again goes on where it stopped",
                kind="interrupted",
            ) from None


def _check(
    model: ModelSpec, seq_len: int, precision: Precision, num_processes: int, tp: Sequence[int]
) -> None:
    hint = "`meshwright profile --analytic` computes the times of any model instead"
    check_reference(model, hint=hint)
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "measuring needs PyTorch, which is not installed",
            hint="pip install 'meshwright[run]'",
        )
    if precision != "fp32":
        raise UserError(
            f"blocks are measured in fp32 alone, not in {precision}",
            hint="profile with precision fp32, or plan from the catalogue's numbers",
        )
    for degree in tp:
        check_tp_degrees(model, seq_len, num_processes, degree)


def _measure(journal: Journal, inputs: ProfileInputs, lock: int, progress: Progress) -> None:
    """Start workers until every case has a result."""
    cases = case_list(inputs)
    crashes: dict[str, int] = {}
    while any(case.name not in journal.finished() for case in cases):
        log_start = _size(journal.log)
        before, lines = len(journal.finished()), len(journal.lines())
        code = _run_workers(journal, inputs, lock, len(cases), progress)
        journal.mend()
        log = journal.log.read_bytes()[log_start:].decode(errors="replace")
        if code == 0:
            continue
        in_flight = next((c for c in cases if c.name == journal.in_flight(lines)), None)
        if in_flight is None:
            if len(journal.finished()) == before:
                raise _crashed("the measuring processes did not start", journal, log)
        elif code == -9 or _KILLED.search(log):
            journal.end(in_flight.name, oom_result(in_flight))
        else:
            _count_crash(in_flight, crashes, journal, log)
    progress(len(cases), len(cases), "")


def _count_crash(case: Case, crashes: dict[str, int], journal: Journal, log: str) -> None:
    crashes[case.name] = crashes.get(case.name, 0) + 1
    if crashes[case.name] > 1:
        raise _crashed(f"measuring `{case.name}` crashed twice", journal, log)


def _crashed(message: str, journal: Journal, log: str) -> UserError:
    errors = [line for line in log.splitlines() if re.search(r"\w(Error|Exception)\b.*: ", line)]
    return UserError(
        message,
        hint=f"what the processes printed is in `{journal.log}`",
        kind="failed",
        details=tuple(errors[:1]),
    )


def _run_workers(
    journal: Journal, inputs: ProfileInputs, lock: int, total: int, progress: Progress
) -> int:
    """One start of all processes, to its end; its exit code."""
    command = [
        *torchrun(inputs.num_processes),
        *("-m", "launch.runtime.profile_worker", str(journal.folder.resolve())),
    ]
    settings = dict(WORKER_ENV) | {"MESHWRIGHT_SUPERVISOR": str(os.getpid())}
    with journal.log.open("ab") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the terminal's interrupt goes to this process alone
            pass_fds=(lock,),  # workers that outlive this process keep the folder
        )
    try:
        _watch(process, journal, total, progress)
        return process.returncode
    finally:
        local.stop(process, STOP_S)


def _watch(
    process: "subprocess.Popen[bytes]", journal: Journal, total: int, progress: Progress
) -> None:
    known = len(journal.lines())
    size = _size(journal.path)
    progress(len(journal.finished()), total, "")
    while process.poll() is None:
        if _size(journal.path) != size:
            size = _size(journal.path)
            progress(len(journal.finished()), total, journal.in_flight(known) or "")
        time.sleep(POLL_S)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; `UserError` where another run holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        reason = (e.strerror or "unknown reason").lower()
        raise UserError(f"cannot write the folder: {reason}", place=str(folder)) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise UserError(
            "another profile run is writing here",
            hint="wait for it, or give another output",
            place=str(folder),
        ) from None
    try:
        yield fd
    finally:
        os.close(fd)


def environment(device: DeviceSpec) -> Environment:
    """This host and its versions."""
    return Environment(
        host=socket.gethostname(),
        device=_cpu_name() if device.is_host else device.name,
        num_cores=len(os.sched_getaffinity(0)),
        backend="gloo" if device.is_host else "nccl",
        python=platform.python_version(),
        torch=importlib.metadata.version("torch"),
        meshwright=importlib.metadata.version("meshwright"),
    )


def _cpu_name() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _memory_bytes(device: DeviceSpec, num_processes: int) -> int:
    """One process's share of the host's memory, or of a container's limit where that is lower."""
    if not device.is_host:
        return device.memory_bytes
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or `max`
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total // num_processes
