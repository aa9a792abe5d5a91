"""What is measured in link profiling, in which batches, and for how long.

Times are shares of one budget: most of it goes to the rounds of pairs, each of which takes as long
as one pair, the rest to collectives and to streams at the same time. Sizes of messages ascend until
they take too long on the link (`profiler.measure.links`).
"""

import math
from collections.abc import Sequence

from launch.link_agents import Outcome, Task
from launch.link_wire import MESSAGE_BYTES, Message
from profiler.link_profile import (
    FlowKind,
    FlowPath,
    FlowTime,
    GroupOp,
    GroupTime,
    HostWork,
    PairTime,
    TaskResult,
)

SIZES = (4, 1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
"""Bytes of messages between two hosts."""
GROUP_BYTES = (1 << 16, 1 << 18, 1 << 28)
"""Of collectives: where latency counts; the least and most where the rate does."""
GROUP_MESSAGE_S = 10e-3
"""The larger collective has as many bytes as the slowest link moves in so long."""
GROUP_OPS: tuple[GroupOp, ...] = ("all_reduce", "all_gather", "all_to_all")
PAIRS_SHARE, GROUPS_SHARE = 0.6, 0.15
PAIR_S = (0.2, 1.0)
"""Least and most seconds for one direction of a pair."""
GROUP_S = (0.1, 0.5)
STREAM_S = 0.5
STREAM_MESSAGE_S = 5e-3
"""A message of a stream takes about so long."""
WORK_S = 2.0
"""Of each host's own work, all hosts at once."""
TIMEOUT_S = 15.0
"""For every wait of a measurement, above `SILENT_S` so that a lost host is known to be lost."""
FAN = 3
"""Hosts that one sends to at once: most NICs are full with fewer."""


def pair_name(nic: str, a: str, b: str) -> str:
    """Name of a case in the journal."""
    return f"pair {nic or '-'} {a} {b}"


def pair_budget_s(budget_s: float, num_rounds: int, num_nics: int) -> float:
    """Seconds for one direction of a pair."""
    share = PAIRS_SHARE * budget_s / max(1, 2 * num_rounds * num_nics)
    return min(max(share, PAIR_S[0]), PAIR_S[1])


def pair_task(nic: str, a: str, b: str, budget_s: float) -> Task:
    """Messages between two hosts, both directions."""
    part = {"kind": "pair", "hosts": [a, b], "nic": nic, "sizes": SIZES, "budget_s": budget_s}
    return Task(name=pair_name(nic, a, b), parts=(part,), timeout_s=TIMEOUT_S)


def pair_result(task: Task, outcome: Outcome) -> TaskResult:
    """Both directions: points and latency are the sender's, rate and spread the receiver's."""
    if outcome.error:
        return TaskResult(error=outcome.error)
    part = task.parts[0]
    pairs = []
    for source, target in (part["hosts"], part["hosts"][::-1]):
        sent, received = outcome.results[0, source], outcome.results[0, target]
        pairs.append(
            PairTime(
                source=source,
                target=target,
                nic=part["nic"],
                points=tuple((int(n), float(t)) for n, t in sent["points"]),
                latency_s=float(sent["latency_s"]),
                bytes_per_s=float(received["bytes_per_s"]),
                spread=float(received["spread"]),
            )
        )
    return TaskResult(pairs=tuple(pairs))


def group_sizes(num_hosts: int) -> tuple[int, ...]:
    """2, 4, 8 ... and all."""
    powers = [1 << k for k in range(1, num_hosts.bit_length()) if 1 << k <= num_hosts]
    return tuple(sorted({*powers, num_hosts}))


def group_budget_s(budget_s: float, num_hosts: int) -> float:
    """Seconds for one operation over one group."""
    share = GROUPS_SHARE * budget_s / max(1, len(GROUP_OPS) * len(group_sizes(num_hosts)))
    return min(max(share, GROUP_S[0]), GROUP_S[1])


def group_task(nic: str, op: GroupOp, hosts: Sequence[str], budget_s: float, rate: float) -> Task:
    """One operation over some hosts; `rate`: bytes per second of the slowest link."""
    least, low, high = GROUP_BYTES
    large = 1 << round(math.log2(min(max(rate * GROUP_MESSAGE_S, low), high)))
    part = {
        "kind": "group", "op": op, "hosts": list(hosts), "nic": nic, "sizes": (least, large),
        "budget_s": budget_s,
    }  # fmt: skip
    return Task(name=f"group {op} {len(hosts)}", parts=(part,), timeout_s=TIMEOUT_S)


def group_result(task: Task, outcome: Outcome) -> TaskResult:
    """Times of each size, means over the hosts."""
    if outcome.error:
        return TaskResult(error=outcome.error)
    part = task.parts[0]
    return TaskResult(
        groups=tuple(
            GroupTime(
                hosts=tuple(part["hosts"]),
                op=part["op"],
                num_bytes=int(n),
                seconds=float(t),
                spread_s=float(s),
            )
            for n, t, s in outcome.results[0, part["hosts"][0]]["points"]
        )
    )


def work_task(host: str) -> Task:
    """Matrix products of a host."""
    part: Message = {"kind": "work", "hosts": [host], "seconds": WORK_S}
    return Task(name=f"work {host}", parts=(part,), timeout_s=TIMEOUT_S)


def work_result(task: Task, outcome: Outcome) -> TaskResult:
    """How fast they were."""
    if outcome.error:
        return TaskResult(error=outcome.error)
    host = task.parts[0]["hosts"][0]
    seen = outcome.results[0, host]
    rate, spread = float(seen["flops_per_s"]), float(seen["spread"])
    return TaskResult(works=(HostWork(host=host, flops_per_s=rate, spread=spread),))


def flow_task(name: str, paths: Sequence[FlowPath], rates: Sequence[float]) -> Task:
    """Streams at the same time; `rates`: bytes per second that each is likely to reach."""
    parts: list[Message] = []
    for path, rate in zip(paths, rates, strict=True):
        size = min(max(rate * STREAM_MESSAGE_S, MESSAGE_BYTES[0]), MESSAGE_BYTES[1])
        part: Message = {
            "kind": "stream", "hosts": [path.source, path.target], "nic": path.nic,
            "seconds": STREAM_S, "num_bytes": 1 << round(math.log2(size)),
        }  # fmt: skip
        parts.append(part)
    return Task(name=name, parts=tuple(parts), timeout_s=TIMEOUT_S)


def flow_rates(task: Task, outcome: Outcome) -> tuple[float, ...]:
    """Bytes per second of each stream of a task without error."""
    return tuple(
        float(outcome.results[k, part["hosts"][1]]["bytes_per_s"])
        for k, part in enumerate(task.parts)
    )


def flow_result(
    kind: FlowKind, host: str, task: Task, outcome: Outcome, alone: Sequence[float]
) -> TaskResult:
    """Streams together beside each alone."""
    if outcome.error:
        return TaskResult(error=outcome.error)
    paths = tuple(
        FlowPath(source=p["hosts"][0], target=p["hosts"][1], nic=p["nic"]) for p in task.parts
    )
    together = flow_rates(task, outcome)
    flow = FlowTime(kind=kind, host=host, paths=paths, alone=tuple(alone), together=together)
    return TaskResult(flows=(flow,))
