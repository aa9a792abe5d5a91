"""What each pipeline rank does when, as a picture of a step needs it."""

from dataclasses import dataclass
from typing import Literal

from planner.simulate import Timeline

Kind = Literal["gather", "F", "B", "I", "W", "copy", "reduce", "update"]
KINDS: dict[Kind, str] = {
    "gather": "gather weights",
    "F": "forward",
    "B": "backward",
    "I": "input gradient",
    "W": "weight gradient",
    "copy": "copy gradients",
    "reduce": "reduce gradients",
    "update": "optimizer",
}


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work of a rank; `micro_batch` and `stage` are -1 beside F, B, I and W."""

    start: float
    end: float
    kind: Kind
    micro_batch: int = -1
    stage: int = -1


def spans_of(timeline: Timeline, rank: int) -> tuple[Span, ...]:
    """Work of a pipeline rank in the order of time, without overlap. Of a reduction that runs
    beside other work only the part after it is shown; what is left out is idle."""
    row = zip(timeline.table[rank], timeline.start[rank], timeline.end[rank], strict=True)
    spans = [Span(float(a), float(b), x.op, x.micro_batch, x.stage) for x, a, b in row]
    free = spans[-1].end if spans else 0.0
    bucket, optimizer = float(timeline.bucket_end[rank]), float(timeline.optimizer_end[rank])
    owners = timeline.program.structure.owners
    first = [float(timeline.sync_start[s]) for s, owner in enumerate(owners) if owner == rank]
    synced = float(timeline.sync_end[rank])
    updating = max(bucket, synced)
    tail = (
        Span(0.0, timeline.program.heads[rank], "gather"),
        *spans,
        Span(free, bucket, "copy"),
        Span(max(bucket, min(first, default=bucket)), synced, "reduce"),
        Span(updating, optimizer, "update"),
    )
    return tuple(span for span in tail if span.end > span.start)


def busy_share(timeline: Timeline, rank: int) -> float:
    """Share of the step in which the rank does any of it."""
    busy = sum(span.end - span.start for span in spans_of(timeline, rank))
    return busy / timeline.step_s if timeline.step_s else 0.0


def typical_forward(timeline: Timeline) -> float:
    """Seconds of the shortest forward that takes any time: what a picture should resolve."""
    return min((f for f in timeline.program.forward_s if f > 0), default=timeline.step_s)


def num_actions(timeline: Timeline) -> int:
    """Computations of a step, all ranks."""
    return sum(len(row) for row in timeline.table)


def shown_ranks(num_ranks: int, most: int) -> list[int]:
    """All ranks, or the first and the last where there are more than `most`."""
    if num_ranks <= most:
        return list(range(num_ranks))
    half = most // 2
    return [*range(half), *range(num_ranks - half, num_ranks)]


def windows(timeline: Timeline, resolved: float) -> list[tuple[str, float, float]]:
    """(title, from, to) of the pictures to draw: the whole step, and where `resolved` forwards do
    not fill it, also its start and its end at that scale."""
    step = timeline.step_s
    part = resolved * typical_forward(timeline)
    if part >= step:
        return [("", 0.0, step)]
    return [("whole step", 0.0, step), ("start", 0.0, part), ("end", step - part, step)]
