"""Output of nccl-tests (github.com/NVIDIA/nccl-tests, src/util.cu) and rccl-tests: timed calls.

    # Collective test starting: all_reduce_perf
    # nThread 1 nGpus 1 minBytes 8 maxBytes 8589934592 step: 2(factor) ...
    #  Rank  0 Group  0 Pid   1655 on node1 device  0 [0000:06:00] NVIDIA H100
    #   size    count   type  redop   root     time   algbw   busbw  #wrong     time   algbw ...
    #    (B)  (elements)                       (us)  (GB/s)  (GB/s)             (us)  (GB/s) ...
        1024      256  float    sum     -1    60.47    0.02    0.03       0    55.77    0.02 ...

The header says how many numbers end a row, first out of place, then in place: versions differ in
the columns before them (`root` came late, old ones leave `redop` empty) and in those after
(timestamps, times of single iterations). GB are 1e9 bytes. A file may hold the output of several
runs and the log lines of others in between.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from profiler.codec import read_text
from profiler.errors import UserError
from profiler.link_files.fit import LineFit, fit_line
from profiler.link_files.table import lines_of

_OPS = (
    "all_reduce", "all_gather", "reduce_scatter", "alltoall", "alltoallv", "sendrecv", "broadcast",
    "reduce", "gather", "scatter", "hypercube", "bisection",
)  # fmt: skip
_OP = re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(_OPS)})_perf(?:_mpi)?(?![A-Za-z0-9_])")
_RANK = re.compile(r"#\s+Rank\s+(\d{1,9})\s+(?:Group\s+(\d{1,9})\s+)?Pid\s+\d+\s+on\s+(\S+)\s+"
                   r"device\s+(\d{1,9})\s+\[[^\]]*\]\s*(.*)", re.ASCII)  # fmt: skip
_ROW = re.compile(r"\s*\d{1,18}\s+\d{1,18}\s+[a-z]\w*\s", re.ASCII)
_TIME = ("time", "cputime")


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclRank:
    """A rank of the header: its device of its host."""

    rank: int
    group: int
    host: str
    device: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclRow:
    """One size, as nccl-tests counts it (its doc/PERFORMANCE.md), out of place."""

    num_bytes: int
    dtype: str
    seconds: float
    bus_bytes_per_s: float
    """Printed to two decimals of a GB/s, so 0 where messages are small."""
    in_place_s: float | None
    num_wrong: int | None
    """Wrong elements; None where the run did not check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclTest:
    """One run of one operation; `op` is empty where nothing names it."""

    op: str
    ranks: tuple[NcclRank, ...]
    rows: tuple[NcclRow, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Of the ranks, in their order."""
        return tuple(dict.fromkeys(rank.host for rank in self.ranks))

    @property
    def fit(self) -> LineFit | None:
        """Latency and bytes per second of a call by its size; None where the rows do not tell."""
        return fit_line([(row.num_bytes, row.seconds) for row in self.rows])


def read_nccl_tests(path: Path) -> tuple[NcclTest, ...]:
    """Runs in a file; `UserError` with file and line."""
    return nccl_tests_from_text(read_text(path), str(path))


def nccl_tests_from_text(text: str, place: str) -> tuple[NcclTest, ...]:
    """Runs in a text, at least one; `place` is what errors call the file."""
    tests = tuple(_tests(text, place))
    if not tests:
        raise UserError(
            "this is no output of nccl-tests: it has no table of sizes and times",
            hint="save what `all_reduce_perf` prints, from `# nThread` on",
            place=place,
        )
    return tests


@dataclass(slots=True)
class _Open:
    """The run that is being read."""

    op: str = ""
    ranks: list[NcclRank] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    """Of the header, from its first time on."""
    at: str = ""
    rows: list[NcclRow] = field(default_factory=list)
    next_op: str = ""
    """Named after its rows, as by the command of the next run."""

    def done(self) -> NcclTest:
        if not self.rows:
            hint = "the run failed, or its output is cut off"
            raise UserError("the table of sizes and times has no rows", hint=hint, place=self.at)
        return NcclTest(op=self.op, ranks=tuple(self.ranks), rows=tuple(self.rows))


def _tests(text: str, place: str) -> Iterator[NcclTest]:
    """A run begins at its header, and at the first rank after a table."""
    run = _Open()
    for number, line in enumerate(lines_of(text), start=1):
        at = f"{place}:{number}"
        named, rank = _OP.search(line), _RANK.match(line)
        begins = line.startswith(("# nThread", "# Collective test starting")) or rank is not None
        if run.columns and (begins or _columns(line)):
            yield run.done()
            same = not begins and not run.next_op
            run = _Open(op=run.op if same else run.next_op, ranks=run.ranks if same else [])
        if rank is not None:
            run.ranks.append(_rank(rank))
        elif named is not None and "concluded" not in line:
            if run.rows:
                run.next_op = named[1]
            else:
                run.op = named[1]
        elif _columns(line):
            run.columns, run.at = _columns(line), at
        elif run.columns and _ROW.match(line):
            run.rows.append(_row(line.split(), run.columns, at))
    if run.columns:
        yield run.done()


def _rank(match: re.Match[str]) -> NcclRank:
    rank, group, host, device, name = match.groups()
    return NcclRank(
        rank=int(rank), group=int(group or 0), host=host, device=int(device), name=name.strip()
    )


def _columns(line: str) -> list[str]:
    """Names of a table's header from the first time on; none where it is another line."""
    words = line.split()
    if words[:3] != ["#", "size", "count"]:
        return []
    start = next((k for k, word in enumerate(words) if word in _TIME), len(words))
    return words[start:] if words[start + 1 : start + 3] == ["algbw", "busbw"] else []


def _row(words: list[str], columns: list[str], at: str) -> NcclRow:
    stamp = "timestamp" in columns
    columns = [column for column in columns if column != "timestamp"]
    numbers = words[3 : len(words) - 2 * stamp][-len(columns) :]
    if len(numbers) != len(columns):
        raise UserError(
            f"the row has {len(numbers)} numbers for {len(columns)} columns",
            hint="the output is cut off, or two lines of it are mixed",
            place=at,
        )
    values = [_number(word, at) for word in numbers]
    again = next((k for k, column in enumerate(columns) if k and column in _TIME), None)
    seconds, bus = values[0], values[2]
    if seconds is None or bus is None or seconds < 0 or bus < 0:
        raise UserError("the row has no time or no bandwidth", place=at)
    wrong = values[3] if len(values) > 3 else None
    in_place = None if again is None else values[again]
    return NcclRow(
        num_bytes=int(words[0]),
        dtype=words[2],
        seconds=seconds * 1e-6,
        bus_bytes_per_s=bus * 1e9,
        in_place_s=None if in_place is None else in_place * 1e-6,
        num_wrong=None if wrong is None else int(wrong),
    )


def _number(word: str, at: str) -> float | None:
    if word.lower() in ("n/a", "nan", "-nan"):
        return None
    if not re.fullmatch(r"-?(\d{1,20}\.?\d*|\.\d+)(e[-+]?\d{1,2})?", word, re.ASCII):
        raise UserError(f"`{word[:40]}` is not a number", place=at)
    return float(word)
