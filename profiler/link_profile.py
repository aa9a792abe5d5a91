"""What `meshwright profile --links` measured: the facts behind the matrices of a links file.

The rate of a direction is that of a stream of messages, by the clock of who receives it; its
latency is half of the fastest round trip. Both hold on hosts that are busy with other work, where
single messages wait for the processor: their median times are kept beside, as points. What several
flows reach together stands beside what each reached alone, so that the reader sees what is shared.
Stored in `links.json` under `measured`.
"""

from typing import Literal

from profiler.codec import record

GroupOp = Literal["all_reduce", "all_gather", "all_to_all"]
FlowKind = Literal["out", "in", "nics", "round"]
"""To several hosts at once; from several; over several NICs; disjoint pairs of one round."""
FindingKind = Literal[
    "slow_nic", "slow_link", "asymmetric_link", "latency", "failed_link", "shared_nics",
    "shared_switch", "lost_host", "slow_host",
]  # fmt: skip
Direction = Literal["out", "in", "both", ""]


@record
class PairTime:
    """Messages from `source` to `target` over `nic` (empty: the system's choice)."""

    source: str
    target: str
    nic: str
    points: tuple[tuple[int, float], ...]
    """(bytes, median seconds one way) of single messages, ascending."""
    latency_s: float
    bytes_per_s: float
    spread: float
    """Half the interquartile range of the times of eight parts of the stream, over their median."""


@record
class GroupTime:
    """One collective over the first hosts of the list, beside what the pairs' lines predict."""

    hosts: tuple[str, ...]
    op: GroupOp
    num_bytes: int
    """Of the whole tensor: what an all-reduce reduces, what an all-gather returns."""
    seconds: float
    spread_s: float


@record
class FlowPath:
    """A stream of messages one way."""

    source: str
    target: str
    nic: str


@record
class FlowTime:
    """Streams at the same time, and each of them alone, bytes per second as received."""

    kind: FlowKind
    host: str
    """Whose ends are shared; empty for a round."""
    paths: tuple[FlowPath, ...]
    alone: tuple[float, ...]
    together: tuple[float, ...]

    @property
    def share(self) -> float:
        """What all reach together, over the sum of what each reaches alone."""
        return sum(self.together) / sum(self.alone) if sum(self.alone) > 0 else 0.0


@record
class HostWork:
    """Matrix products of one process of a host, all hosts at the same time."""

    host: str
    flops_per_s: float
    """Median over parts of the time."""
    spread: float
    """Half the interquartile range of the parts, over their median."""


@record
class TaskResult:
    """What one case of the journal gave; `error` where it could not be measured."""

    pairs: tuple[PairTime, ...] = ()
    groups: tuple[GroupTime, ...] = ()
    flows: tuple[FlowTime, ...] = ()
    works: tuple[HostWork, ...] = ()
    error: str = ""


@record
class Finding:
    """Something out of the ordinary, in words and in numbers."""

    kind: FindingKind
    host: str = ""
    nic: str = ""
    peer: str = ""
    direction: Direction = ""
    """Of a NIC: what it is slow at. Of a link: `out` from host to peer, or `both`."""
    value: float = 0.0
    """Bytes per second, or seconds for `latency`."""
    usual: float = 0.0
    """What the hosts or links like it reach, in the same unit."""
    message: str = ""
    advice: str = ""


@record
class HeldOut:
    """Measured pairs that were predicted from the others: |predicted / measured - 1|."""

    pairs: int
    median: float
    p90: float


@record
class LinkInputs:
    """What is measured: a journal of other inputs is not gone on with."""

    hosts: tuple[str, ...]
    nics: tuple[str, ...]
    budget_s: float
    serial: bool
    seed: int


@record
class LinkReport:
    """All that was measured, and what follows from it."""

    nics: tuple[str, ...]
    backend: str
    pairs: tuple[PairTime, ...]
    groups: tuple[GroupTime, ...]
    flows: tuple[FlowTime, ...]
    lost: tuple[str, ...]
    """Hosts that did not come, or went away; they are not in the matrices."""
    failed: tuple[tuple[str, str], ...]
    """Pairs of hosts in the matrices between which nothing arrived."""
    held_out: HeldOut | None
    """Where pairs were predicted."""
    findings: tuple[Finding, ...]
    works: tuple[HostWork, ...] = ()
