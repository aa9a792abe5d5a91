"""From what was measured to the matrices of a links file, with findings.

The rate of a pair is what it reaches with all its NICs: their sum, less what the NICs of the sender
lose when they send at once; its latency is that of the fastest. What a host sends or receives at
most is the most that its streams reached together, or one of its links alone. Pairs between which
nothing arrived get `LOWEST`, so that nothing is placed across them; pairs that were not measured
are predicted (`link_complete`).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from profiler.errors import UserError
from profiler.link_complete import Ints, complete
from profiler.link_files import Fabric
from profiler.link_files.fabric import NOT_JOINED
from profiler.link_files.table import LOWEST
from profiler.link_findings import find, lost_hosts, matrices, slow_hosts, slowdowns
from profiler.link_profile import FlowTime, GroupTime, HeldOut, LinkReport, TaskResult
from profiler.links import Floats, Links


def fabric_tiers(fabric: Fabric, hosts: Sequence[str]) -> Ints:
    """Tier of each pair, [n, n], 0 under one switch; hosts that nothing joins are farthest."""
    tiers = fabric.tiers(hosts)
    farthest = int(tiers.max(initial=0)) + 1
    return np.asarray(np.maximum(np.where(tiers == NOT_JOINED, farthest, tiers) - 1, 0))


def assemble(
    hosts: Sequence[str],
    nics: Sequence[str],
    results: Iterable[TaskResult],
    failed: Sequence[tuple[str, str]],
    lost: Sequence[str],
    backend: str,
    fabric: Fabric | None = None,
) -> tuple[Links, LinkReport]:
    """Links between `hosts`, which are there, and all that was measured.

    Raises `UserError` (failed) where nothing was measured between them.
    """
    found = tuple(results)
    pairs = tuple(p for r in found for p in r.pairs)
    flows = tuple(f for r in found for f in r.flows)
    works = tuple(w for r in found for w in r.works if w.host in hosts)
    if len(hosts) < 2 or not any(p.source in hosts and p.target in hosts for p in pairs):
        raise UserError(
            "no link was measured",
            hint="two hosts must reach each other: see why each one was left out above",
            kind="failed",
        )
    tiers = None if fabric is None else fabric_tiers(fabric, hosts)
    tables = [matrices(hosts, pairs, nic) for nic in nics]
    shares = np.array([_nics_share(host, flows) for host in hosts])
    rates, latency_s = _all_nics(tables, shares, tiers)
    full, full_latency, error = complete(rates, latency_s, tiers)
    for one, other in failed:
        i, j = hosts.index(one), hosts.index(other)
        full[i, j] = full[j, i] = LOWEST
    np.fill_diagonal(full, np.inf)
    np.fill_diagonal(full_latency, 0.0)
    present = [f for f in flows if {x for p in f.paths for x in (p.source, p.target)} <= set(hosts)]
    links = Links(
        hosts=tuple(hosts),
        bytes_per_s=full,
        latency_s=full_latency,
        out_rate=_ends(hosts, full, present, "out"),
        in_rate=_ends(hosts, full.T, present, "in"),
        slowdown=slowdowns(hosts, works),
    )
    report = LinkReport(
        nics=tuple(nics),
        backend=backend,
        pairs=pairs,
        groups=tuple(g for r in found for g in r.groups),
        flows=flows,
        lost=tuple(lost),
        failed=tuple(failed),
        held_out=error if _predicted(rates, hosts, failed) else None,
        findings=(
            *lost_hosts(lost, failed),
            *slow_hosts(hosts, works),
            *find(hosts, nics, pairs, present, tiers),
        ),
        works=works,
    )
    return links, report


def of_each_nic(links: Links, report: LinkReport) -> dict[str, Links]:
    """Links through each NIC alone, as a process sees them that uses one; of a single NIC, `links`.
    Pairs between which nothing arrived stay as they are there."""
    if len(report.nics) < 2:
        return dict.fromkeys(report.nics, links)
    found = {}
    for nic in report.nics:
        rates, latency_s, _ = matrices(links.hosts, report.pairs, nic)
        full, full_latency, _ = complete(rates, latency_s, None)
        full = np.minimum(full, links.bytes_per_s)
        np.fill_diagonal(full_latency, 0.0)
        found[nic] = Links(
            hosts=links.hosts,
            bytes_per_s=full,
            latency_s=full_latency,
            source=links.source,
            slowdown=links.slowdown,
        )
    return found


def _predicted(rates: Floats, hosts: Sequence[str], failed: Sequence[tuple[str, str]]) -> bool:
    missing = int((~np.isfinite(rates)).sum()) - len(hosts)
    return missing > 2 * len(failed)


def _nics_share(host: str, flows: Sequence[FlowTime]) -> float:
    """Of the sum of a host's NICs, what they send at once."""
    shares = [min(1.0, f.share) for f in flows if f.kind == "nics" and f.host == host]
    return shares[0] if shares else 1.0


def _all_nics(
    tables: Sequence[tuple[Floats, Floats, Floats]], shares: Floats, tiers: Ints | None
) -> tuple[Floats, Floats]:
    """Rates and latencies with all NICs; nan where any of several was not measured."""
    rates = np.sum([table[0] for table in tables], axis=0)
    latency = np.min([table[1] for table in tables], axis=0)
    return rates * shares[:, None], latency


def _ends(
    hosts: Sequence[str], rates: Floats, flows: Sequence[FlowTime], kind: str
) -> Floats | None:
    """Most that each host sends (or receives), [n]; None where no stream was measured."""
    if not any(flow.kind == kind for flow in flows):
        return None
    others = np.where(np.eye(len(hosts), dtype=bool), 0.0, rates)
    best = others.max(axis=1)
    for flow in flows:
        if flow.kind == kind:
            k = hosts.index(flow.host)
            best[k] = max(best[k], sum(flow.together))
    return np.asarray(best)


def predicted_s(group: GroupTime, links: Links) -> float:
    """Seconds of a collective from the lines of the pairs.

    All-reduce and all-gather as rings in the order of the hosts, 2 (n - 1) and n - 1 steps of an
    n-th of the bytes over the slowest neighbours; all-to-all: a host sends an n-th to each other
    one in turn, the slowest host counts.
    """
    at = [links.hosts.index(host) for host in group.hosts]
    n, part = len(at), group.num_bytes / len(at)
    seconds = links.latency_s + part / links.bytes_per_s
    if group.op == "all_to_all":
        return float(max(sum(seconds[i, j] for j in at if j != i) for i in at))
    step = max(seconds[i, j] for i, j in zip(at, [*at[1:], at[0]], strict=True))
    return float(step * (n - 1) * (2 if group.op == "all_reduce" else 1))


def error_words(error: HeldOut) -> str:
    """`12 held-out pairs are predicted within 2.1% (median), 5.0% (9 of 10)`."""
    return (
        f"{error.pairs} held-out pairs are predicted within {error.median:.1%} (median), "
        f"{error.p90:.1%} (9 of 10)"
    )
