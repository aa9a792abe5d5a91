"""From what each rank wrote to `observed.json`.

Ranks write when things began and ended on the host's common monotonic clock; who waited for whom is
worked out here, after the run, so that the run itself carries no more than time stamps. A wait is
cut at the moment its cause was ready:

    before an action   idle until the neighbour finished what is awaited, p2p after
    in a reduction     idle until the last replica entered it, collective after
    in tensor parallel collective throughout: members run in step, and their skew is the
    collective's price,
                       in the profile's block times as in the run

A gap before an action that waits for nobody is the executor's own time: compute.
"""

import json
from pathlib import Path
from typing import Any

from launch.observed import (
    MemoryObservation,
    Observed,
    RankObservation,
    Split,
    State,
    StepObservation,
)
from planner.plan import Plan
from profiler.errors import UserError

Step = dict[str, Any]


def read_rank_file(path: Path) -> tuple[dict[str, Any], list[Step]]:
    """(header, steps) of one rank; a torn last line, left by a killed rank, is dropped."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    if not lines:
        return {}, []
    return lines[0], lines[1:]


def collect(plan: Plan, run_dir: Path, state: State) -> Observed | None:
    """What the ranks of a run wrote, up to the last step that all of them finished; None without
    any.
    """
    num = plan.chosen.config.num_devices
    paths = [run_dir / "ranks" / f"rank-{r:05d}.jsonl" for r in range(num)]
    if not all(p.exists() for p in paths):
        return None
    read = [read_rank_file(p) for p in paths]
    done = min(len(steps) for _, steps in read)
    if done == 0:
        return None
    headers = [header for header, _ in read]
    steps = [ranks[:done] for _, ranks in read]
    try:
        return _observed(plan, state, headers, steps)
    except (KeyError, TypeError, IndexError) as e:
        raise UserError(f"the ranks' records cannot be read: {e!r}", place=str(run_dir)) from None


def _observed(
    plan: Plan, state: State, headers: list[dict[str, Any]], steps: list[list[Step]]
) -> Observed:
    num_warmup = sum(bool(s["warmup"]) for s in steps[0])
    ends = [max(rank[i]["end"] for rank in steps) for i in range(len(steps[0]))]
    timed = range(max(num_warmup, 1), len(steps[0]))
    splits = [[_split(plan, steps, r, i) for i in timed] for r in range(len(steps))]
    losses = (next((rank[i]["loss"] for rank in steps if rank[i]["loss"] is not None), None)
              for i in range(len(steps[0])))  # fmt: skip
    return Observed(
        plan_id=plan.id,
        state=state,
        torch=str(headers[0]["torch"]),
        device=str(headers[0]["device"]),
        num_warmup=num_warmup,
        losses=tuple(x for x in losses if x is not None),
        steps=tuple(
            StepObservation(
                step=i, step_s=ends[i] - ends[i - 1], split=_mean([row[j] for row in splits])
            )
            for j, i in enumerate(timed)
        ),
        ranks=tuple(
            RankObservation(
                rank=h["rank"],
                coordinate=h["coordinate"],
                host=h["host"],
                memory=MemoryObservation(**h["memory"]) if h.get("memory") else None,
                steps=tuple(row),
            )
            for h, row in zip(headers, splits, strict=True)
        ),
    )


def _mean(splits: list[Split]) -> Split:
    n = len(splits)
    return Split(
        compute_s=sum(s.compute_s for s in splits) / n,
        p2p_s=sum(s.p2p_s for s in splits) / n,
        collective_s=sum(s.collective_s for s in splits) / n,
        idle_s=sum(s.idle_s for s in splits) / n,
    )


def _split(plan: Plan, steps: list[list[Step]], rank: int, i: int) -> Split:
    """Components of one rank's period."""
    mine = steps[rank][i]
    free: float = steps[rank][i - 1]["end"]
    period = mine["end"] - free
    idle = p2p = collective = 0.0
    sent = _sent(plan, steps, rank, i)
    for op, stage, micro_batch, start, end in mine["actions"]:
        ready = sent.get((op, stage, micro_batch))
        if ready is not None:
            moving = max(0.0, start - max(free, ready))
            p2p += moving
            idle += max(0.0, start - free - moving)
        free = end
    for axis, k, _issued, wait_start, wait_end in mine["collectives"]:
        if wait_start is None:  # nobody needed the result
            continue
        entered = wait_start if axis == "tp" else _last_entered(plan, steps, rank, i, axis, k)
        moving = max(0.0, wait_end - max(wait_start, entered))
        collective += moving
        idle += wait_end - wait_start - moving
    return Split(
        compute_s=max(0.0, period - idle - p2p - collective),
        p2p_s=p2p,
        collective_s=collective,
        idle_s=idle,
    )


def _sent(
    plan: Plan, steps: list[list[Step]], rank: int, i: int
) -> dict[tuple[str, int, int], float]:
    """(op, stage, micro-batch) of this rank -> end of the neighbour's action that it waits for."""
    config = plan.chosen.config
    stride = config.dp_replicate * config.tp
    out: dict[tuple[str, int, int], float] = {}
    for op, shift in (("F", -1), ("B", 1)):
        source = rank + shift * stride
        if 0 <= source < len(steps):
            for their_op, stage, micro_batch, _start, end in steps[source][i]["actions"]:
                if their_op == op:
                    out[op, stage - shift, micro_batch] = end
    return out


def _last_entered(
    plan: Plan, steps: list[list[Step]], rank: int, i: int, axis: str, k: int
) -> float:
    """When the last member of the group issued its k-th collective of the axis in step i."""
    config = plan.chosen.config
    stride = config.dp_replicate * config.tp
    if axis == "tied":
        members = [rank % stride, rank % stride + (config.pp - 1) * stride]
    else:
        base = rank - (rank % stride) // config.tp * config.tp
        members = [base + d * config.tp for d in range(config.dp_replicate)]
    issued = [
        entry[2] for m in members for entry in steps[m][i]["collectives"] if entry[:2] == [axis, k]
    ]
    return float(max(issued))
