"""Why a run ended, in a sentence, from what torchrun and the ranks printed.

torchrun's own line names the rank that it saw fail first in each attempt:

    ... failed (exitcode: -9) local_rank: 1 (pid: 21955) of binary: ...

and after the last attempt a block `Root Cause (first observed failure)` gives that rank's number
among all nodes. Ranks print their exceptions with `[rankN]:` in front once the process group is
there, without before. A rank that loses its peer raises too: such an exception is named only where
nothing else is known.
"""

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_LENGTH = 300
_FAILED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: \d+\)")
_ROOT_CAUSE = "Root Cause (first observed failure):"
_GLOBAL = re.compile(r"\s+rank\s+: (\d+) \(local_rank: (\d+)\)")
_OF_RANK = re.compile(r"\[rank(\d+)\]:(?: |$)")
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?::|$)")
_OWN = "error: "
_FOLLOWS = re.compile(
    r"connection (?:was )?(?:closed|reset|refused)|broken pipe|socket closed|timed out|timeout"
    r"|connectFullMesh failed|remote process exited|ncclRemoteError|failed to recv"
    r"|SignalException|ChildFailedError",
    re.IGNORECASE,
)
"""Messages of a rank that lost a peer (gloo, NCCL, TCPStore), and of torchrun about its ranks."""
_OUTRIGHT = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
"""Signals that neither torchrun nor an uncaught exception sends to a rank that is alive."""


@dataclass(slots=True)
class _Raised:
    """An exception, or an error that we print ourselves."""

    rank: int | None
    text: str
    is_own: bool = False

    @property
    def follows(self) -> bool:
        return not self.is_own and _FOLLOWS.search(self.text) is not None


@dataclass(slots=True)
class _Attempt:
    """What is known of one start of all ranks."""

    raised: list[_Raised] = field(default_factory=list)
    failed: int | None = None
    """The rank that torchrun saw fail first."""
    exit_code: int = 0


class _Reader:
    """Takes a log line by line."""

    def __init__(self) -> None:
        self.attempts = [_Attempt()]
        self._in_traceback: set[int | None] = set()
        self._chained: set[int | None] = set()
        self._in_root_cause = False

    def line(self, line: str) -> None:
        """The next line, without its end."""
        current = self.attempts[-1]
        if failed := _FAILED.search(line):
            current.exit_code, current.failed = int(failed[1]), int(failed[2])
            self.attempts.append(_Attempt())
        elif self._in_root_cause:
            self._global_rank(line)
        elif line == _ROOT_CAUSE:
            self._in_root_cause = True
        else:
            prefix = _OF_RANK.match(line)
            rank = int(prefix[1]) if prefix else None
            self._printed(current, rank, line[prefix.end() :] if prefix else line)

    def _global_rank(self, line: str) -> None:
        if found := _GLOBAL.match(line):
            first = int(found[1]) - int(found[2])
            for attempt in self.attempts:
                if attempt.failed is not None:
                    attempt.failed += first
            self._in_root_cause = False

    def _printed(self, current: _Attempt, rank: int | None, text: str) -> None:
        if text == _TRACEBACK:
            self._in_traceback.add(rank)
        elif text in _CHAINED:
            self._chained.add(rank)
        elif rank is None and text.startswith(_OWN):
            self._add(current, _Raised(None, text.removeprefix(_OWN), is_own=True))
        elif rank in self._in_traceback and _EXCEPTION.match(text):
            self._in_traceback.discard(rank)
            self._add(current, _Raised(rank, text))

    def _add(self, current: _Attempt, raised: _Raised) -> None:
        if raised.rank in self._chained:  # the last of a chain is the one that ended the rank
            self._chained.discard(raised.rank)
            for i, earlier in enumerate(current.raised):
                if earlier.rank == raised.rank:
                    current.raised[i] = raised
                    return
        current.raised.append(raised)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What ended the ranks of one log."""

    text: str
    """Empty where the log says nothing."""
    is_cause: bool
    """Whether it is more than ranks that lost each other."""


def fault_of(lines: Iterable[str]) -> Fault:
    """Which rank failed first and why, from the lines of a run's log.

    Of several attempts the last one counts. Where it only shows that ranks lost each other, the
    one before that shows more is named with it.
    """
    reader = _Reader()
    for line in lines:
        reader.line(line.rstrip())
    ended = [a for a in reader.attempts if a.failed is not None]
    faults = [(_sentence(a), _is_cause(a)) for a in ended or reader.attempts[:1]]
    last, is_cause = faults[-1]
    number = f", in attempt {len(ended)} of {len(ended)}" if len(ended) > 1 else ""
    causes = [words for words, known in faults if known]
    if is_cause or not causes:
        return Fault(text=f"{last}{number}" if last else "", is_cause=is_cause)
    return Fault(text=f"{causes[-1]}, and the next attempt failed: {last}", is_cause=True)


def first_fault(lines: Iterable[str]) -> str:
    """The text of `fault_of`; empty where the log says nothing."""
    return fault_of(lines).text


def first_of_hosts(logs: Mapping[str, Iterable[str]]) -> str:
    """What ended a run on several hosts, from the log of each in the order in which they ended: the
    first that shows a cause, with its host's name."""
    faults = [(host, fault_of(lines)) for host, lines in logs.items()]
    known = [(host, fault) for host, fault in faults if fault.text]
    chosen = next((each for each in known if each[1].is_cause), known[0] if known else None)
    return f"host {chosen[0]}: {chosen[1].text}" if chosen else ""


def _is_cause(attempt: _Attempt) -> bool:
    chosen = _chosen(attempt)
    return not chosen.follows if chosen else attempt.failed is not None


def _chosen(attempt: _Attempt) -> _Raised | None:
    """The exception that explains the attempt; None where a signal or an exit code does."""
    causes = [r for r in attempt.raised if not r.follows]
    of_failed = [r for r in causes if r.rank == attempt.failed]
    if of_failed:
        return of_failed[0]
    if -attempt.exit_code in _OUTRIGHT:
        return None
    if causes:
        return causes[0]
    if attempt.failed is None:
        return attempt.raised[0] if attempt.raised else None
    # Its own lost peer, if it said so; a rank that said nothing has only its exit code.
    return next((r for r in attempt.raised if r.rank in (attempt.failed, None)), None)


def _sentence(attempt: _Attempt) -> str:
    chosen = _chosen(attempt)
    if chosen is not None:
        # Printed before ranks had names: torchrun knows which one it was.
        rank = attempt.failed if chosen.rank is None else chosen.rank
        says = chosen.text if chosen.is_own or rank is None else f"rank {rank} raised {chosen.text}"
        return says if len(says) <= MAX_LENGTH else f"{says[: MAX_LENGTH - 3]}..."
    if attempt.failed is None:
        return ""
    if attempt.exit_code >= 0:
        return f"rank {attempt.failed} ended with exit code {attempt.exit_code}"
    number = -attempt.exit_code
    try:
        name = f" ({signal.Signals(number).name})"
    except ValueError:
        name = ""
    why = ", perhaps for lack of memory" if number == signal.SIGKILL else ""
    return f"rank {attempt.failed} was killed by signal {number}{name}{why}"
