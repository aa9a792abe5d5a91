"""What has been measured so far, on disk, so that an interrupted run goes on where it stopped.

A folder beside the output: `inputs.json` says what is measured, `journal.jsonl` has a line when a
case starts and a line with its result when it ends. Lines are appended with one write each and
flushed to the disk; a last line without its end (the writer was killed) is dropped. Needs no
torch.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from profiler.codec import build, content_id, decode, encode, read_text, record, to_plain
from profiler.errors import UserError
from profiler.measure.cases import CaseResult, ProfileInputs

INPUTS = "inputs.json"
JOURNAL = "journal.jsonl"
LOG = "workers.log"
LOCK = "lock"
RESTART_HINT = "`--restart` discards what was measured and begins again"


In = TypeVar("In")
R = TypeVar("R")


J = TypeVar("J", bound="JournalOf[Any, Any]")


@record
class _Stored:
    """A line as it is stored."""

    case: str
    event: str
    result: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLine(Generic[R]):
    """One line: `start` of a case, or its `end` with the result."""

    case: str
    event: str
    result: R | None = None


class JournalOf(Generic[In, R]):
    """The journal of one folder, for inputs and results that are records. Several processes may
    append; each line is one write."""

    def __init__(self, folder: Path, inputs_type: type[In], result_type: type[R]) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self._inputs_type, self._result_type = inputs_type, result_type

    @property
    def log(self) -> Path:
        """What the workers print."""
        return self.folder / LOG

    def start(self, case: str) -> None:
        """Note that a case starts."""
        self._append(JournalLine(case=case, event="start"))

    def end(self, case: str, result: R) -> None:
        """Note the result of a case."""
        self._append(JournalLine(case=case, event="end", result=result))

    def _append(self, line: JournalLine[R]) -> None:
        text = json.dumps(to_plain(line), allow_nan=False) + "\n"
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, text.encode())
            os.fsync(fd)
        finally:
            os.close(fd)

    def mend(self) -> None:
        """Cut off a torn last line, before anyone appends."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def lines(self) -> tuple[JournalLine[R], ...]:
        """All whole lines; `UserError` where one of them is not ours."""
        if not self.path.exists():
            return ()
        text = self.path.read_bytes()
        rows = text[: text.rfind(b"\n") + 1].splitlines()
        return tuple(self._line(row, number) for number, row in enumerate(rows, start=1))

    def _line(self, row: bytes, number: int) -> JournalLine[R]:
        place = f"{self.path}:{number}"
        try:
            tree: Any = json.loads(row)
        except ValueError:
            raise UserError("the journal is damaged", place=place, hint=RESTART_HINT) from None
        line = build(_Stored, tree, place)
        result = None if line.result is None else build(self._result_type, line.result, place)
        return JournalLine(case=line.case, event=line.event, result=result)

    def finished(self) -> dict[str, R]:
        """Name of each finished case -> its result; the first result of a case counts."""
        done: dict[str, R] = {}
        for line in self.lines():
            if line.result is not None:
                done.setdefault(line.case, line.result)
        return done

    def in_flight(self, since: int = 0) -> str | None:
        """The case started last, behind the first `since` lines, where it has no result."""
        lines = self.lines()
        done = {line.case for line in lines if line.event == "end"}
        started = [line.case for line in lines[since:] if line.event == "start"]
        return started[-1] if started and started[-1] not in done else None

    def inputs(self) -> In:
        """What the folder was opened for."""
        path = self.folder / INPUTS
        return decode(self._inputs_type, read_text(path), str(path))


class Journal(JournalOf[ProfileInputs, CaseResult]):
    """The journal of a profile of blocks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ProfileInputs, CaseResult)


def open_journal(folder: Path, inputs: ProfileInputs, *, restart: bool) -> Journal:
    """The journal of a profile of blocks in `folder`, opened by `opened`."""
    return opened(Journal(folder), inputs, restart=restart)


def opened(journal: J, inputs: object, *, restart: bool) -> J:
    """The journal, for these inputs; its folder is made where there is none.

    `restart` discards what is there. A journal of other inputs is refused with a `UserError`
    (stale).
    """
    folder = journal.folder
    if restart:
        _clear(folder)
    path = folder / INPUTS
    if path.exists():
        _check_same(journal, inputs)
        journal.mend()
        return journal
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(encode(inputs), encoding="utf-8")
    draft.replace(path)
    return journal


def _check_same(journal: JournalOf[Any, Any], inputs: object) -> None:
    try:
        old = to_plain(journal.inputs())
    except UserError as e:
        raise UserError(e.message, place=e.place, hint=RESTART_HINT, kind="stale") from None
    new = to_plain(inputs)
    if content_id(old, "i") != content_id(new, "i"):
        other = ", ".join(f"`{key}`" for key in new if old[key] != new[key])
        raise UserError(
            f"an unfinished profile of other inputs is in the way: {other} differ",
            place=str(journal.folder),
            hint=RESTART_HINT,
            kind="stale",
        )


def _clear(folder: Path) -> None:
    for name in (INPUTS, JOURNAL, LOG):
        (folder / name).unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove the partial folder: its own files, then the folder where nothing else is in it."""
    _clear(folder)
    (folder / LOCK).unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
