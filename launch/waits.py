"""One step of all ranks, cut into compute, p2p, collective and idle.

Every moment of a rank's period belongs to one component. A wait is cut at the moment its cause was
ready:

    before an action    idle until the neighbour finished what is awaited, p2p after
    in a collective     idle until the last member issued it, collective after
    in tensor parallel  collective throughout: members run in step, and their skew is the
                        collective's price, in the profile's block times as in the run

Forward of stage s waits for that of stage s - 1, backward (whole, or of the input alone) for that
of stage s + 1, a weight gradient for nobody, and nothing for a stage of the same rank. A gap before
an action that waits for nobody is the executor's own time: compute. A wait for a collective inside
a gap is the collective's. In ring attention a member waits for its two neighbours alone.

Clocks of two hosts have nothing to do with each other: what a moment of another host would cut is
p2p, or collective, throughout.
"""

from bisect import bisect_right
from itertools import accumulate

from launch.observed import Split
from launch.records import Step
from planner.config import ParallelConfig, Placement
from planner.grid import DATA_AXES, AnyAxis, Grid
from planner.pipeline import ends_of_chain, owners_of

_AXES: dict[str, tuple[AnyAxis, ...]] = {
    "cp": ("cp",),
    "ep": ("ep",),
    "etp": ("etp",),
    "fsdp": ("dp_shard", "cp"),
    "edp": ("edp",),
    "dp": DATA_AXES,
    "dp_replicate": ("dp_replicate",),
}
"""Axis of a collective, as the recorder names it -> axes along which its members differ."""
LONG_SENT = float("-inf")
Divided = tuple[Split, dict[str, float]]
"""A rank's period, and its collective part by axis."""


class Waits:
    """Who waits for whom in a layout."""

    def __init__(self, config: ParallelConfig, placement: Placement, hosts: list[str]) -> None:
        """`hosts`: of each rank."""
        self._config, self._hosts = config, hosts
        self._grid = Grid(config, placement)
        self._owners = owners_of(config, placement)
        self._ends_of_chain = ends_of_chain(config, placement)
        self._pipelines = {rank: ranks for ranks in self._grid.groups("pp") for rank in ranks}
        self._keys: dict[tuple[str, int], tuple[int, ...]] = {}

    def sender(self, rank: int, op: str, stage: int) -> tuple[int, str, int] | None:
        """(rank, F or B, stage) of what an action waits for; None where it waits for no rank."""
        step = {"F": -1, "B": 1, "I": 1}.get(op)
        if step is None or not 0 <= stage + step < len(self._owners):
            return None
        source = self._pipelines[rank][self._owners[stage + step]]
        return None if source == rank else (source, "F" if step < 0 else "B", stage + step)

    def is_near(self, a: int, b: int) -> bool:
        """Both have one clock."""
        return self._hosts[a] == self._hosts[b]

    def keys(self, axis: str, rank: int) -> tuple[int, ...]:
        """Names of the sets of ranks whose waits end no earlier than this rank issues its
        collective; the first is the set that this rank itself waits for. Empty: the wait is the
        collective's throughout."""
        found = self._keys.get((axis, rank))
        if found is None:
            found = self._keys[axis, rank] = self._find_keys(axis, rank)
        return found

    def _find_keys(self, axis: str, rank: int) -> tuple[int, ...]:
        members = self._members(axis, rank)
        if not all(self.is_near(rank, m) for m in members):
            return ()
        if axis == "cp" and self._config.cp_method == "ring":
            at = members.index(rank)
            return (rank, members[at - 1], members[(at + 1) % len(members)])
        return members[:1]

    def _members(self, axis: str, rank: int) -> tuple[int, ...]:
        if axis == "world":
            return tuple(range(self._grid.num_ranks))
        if axis == "tied":
            return tuple(self._pipelines[rank][pp] for pp in self._ends_of_chain)
        axes = _AXES.get(axis)
        return self._grid.group(rank, *axes) if axes else ()


def split_step(waits: Waits, rows: tuple[Step, ...], begins: list[float]) -> list[Divided]:
    """Parts of every rank's period, from `begins` (the end of its step before) to its end."""
    sent: list[dict[tuple[str, int, int], float]] = [{} for _ in rows]
    issued: dict[tuple[str, int, int], float] = {}
    for rank, row in enumerate(rows):
        for op, stage, micro_batch, _start, end in row["actions"]:
            if op in "FBI":
                sent[rank]["F" if op == "F" else "B", stage, micro_batch] = end
        for axis, k, moment, _start, _end in row["collectives"]:
            for key in waits.keys(axis, rank):
                at = (axis, key, k)
                issued[at] = max(issued.get(at, moment), moment)

    def ready(rank: int, op: str, stage: int, micro_batch: int) -> float | None:
        source = waits.sender(rank, op, stage)
        if source is None:
            return None
        if not waits.is_near(rank, source[0]):
            return LONG_SENT
        return sent[source[0]].get((*source[1:], micro_batch))

    out = []
    for rank, (row, begin) in enumerate(zip(rows, begins, strict=True)):
        spans = _spans(waits, rank, row, begin, issued)
        gaps = [
            (start, end, ready(rank, op, stage, micro_batch))
            for op, stage, micro_batch, start, end in row["actions"]
        ]
        out.append(_split(begin, max(begin, row["end"]), spans, sorted(gaps, key=lambda g: g[:2])))
    return out


Span = tuple[float, float, float, str]
"""Start, end, the moment the last member issued it, axis."""


def _spans(
    waits: Waits, rank: int, row: Step, begin: float, issued: dict[tuple[str, int, int], float]
) -> list[Span]:
    """A rank's waits for collectives inside its period, one after the other."""
    spans = []
    free = begin
    awaited = [c for c in row["collectives"] if c[3] is not None]  # else nobody needed the result
    for axis, k, _issued, start, end in sorted(awaited, key=lambda c: (c[3], c[4])):
        start = max(start, free)
        free = max(start, min(end, row["end"]))
        keys = waits.keys(axis, rank)
        entered = issued[axis, keys[0], k] if keys else start
        spans.append((start, free, entered, axis))
    return spans


def _split(
    begin: float, end: float, spans: list[Span], actions: list[tuple[float, float, float | None]]
) -> Divided:
    """`actions`: start, end and when what it waits for was sent, in the order of starts."""
    idle = p2p = 0.0
    by_axis: dict[str, float] = {}
    for start, stop, entered, axis in spans:
        moving = max(0.0, stop - max(start, entered))
        by_axis[axis] = by_axis.get(axis, 0.0) + moving
        idle += stop - start - moving
    outside = _Outside(spans)
    free = begin
    for start, stop, ready in actions:
        start = min(max(start, free), end)
        if ready is not None:
            cut = min(max(free, ready), start)
            idle += outside.between(free, cut)
            p2p += outside.between(cut, start)
        free = min(max(start, stop), end)
    collective = sum(by_axis.values())
    split = Split(
        compute_s=max(0.0, end - begin - idle - p2p - collective),
        p2p_s=p2p,
        collective_s=collective,
        idle_s=idle,
    )
    return split, by_axis


class _Outside:
    """Time outside of spans that follow each other."""

    def __init__(self, spans: list[Span]) -> None:
        self._starts, self._ends = [s[0] for s in spans], [s[1] for s in spans]
        lengths = (end - start for start, end in zip(self._starts, self._ends, strict=True))
        self._inside = [0.0, *accumulate(lengths)]

    def between(self, start: float, end: float) -> float:
        """Seconds of [start, end] in no span."""
        return max(0.0, end - start - self._until(end) + self._until(start))

    def _until(self, moment: float) -> float:
        """Seconds in spans before a moment."""
        i = bisect_right(self._starts, moment)
        return self._inside[i] - max(0.0, self._ends[i - 1] - moment) if i else 0.0
