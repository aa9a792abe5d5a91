"""What is out of the ordinary in measured links, by host and NIC, with what to do about it.

The job of C4 (Dong et al. 2024, "Boosting Large-scale Parallel Training Efficiency with C4"), from
a profile: links are compared with what the two ends and the tier of switches reach elsewhere
(`link_complete.fit`), so that a slow NIC is one finding and not one for every link of its host.

A value is far off below `NEAR` of what is usual and beyond `NOISE` times its own spread: overhead
of protocols (4%) and noise (10%) are less, the faults that are looked for (a lower port rate, half
the PCIe lanes, a bad cable) are at least that. Latencies are told by both directions of a pair,
which are measured one after the other, and only where the usual small message is near the fastest,
so that hosts busy with other work are no finding.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from profiler.link_complete import NEAR, EndsAndTiers, Ints, fit, infer_tiers
from profiler.link_profile import Direction, Finding, FlowTime, HostWork, PairTime
from profiler.links import Floats

NOISE = 3.0
FLOOR_S = 50e-6
"""Latencies nearer to the usual one are the noise of hosts that compute."""
TIMES_LATENCY = 3.0
MAD_LATENCY = 6.0
QUIET = 1.5
"""Usual over fastest time of small messages, up to which the latency is that of the link."""
LITTLE_WORK = 0.05
"""Hosts that compute as fast as others but for this share are alike."""
SHARED = 0.8
"""Flows at once below this part of their sum alone share something."""


def rate_words(bytes_per_s: float) -> str:
    """`290 Mbit/s`, `23.1 Gbit/s`."""
    bits = bytes_per_s * 8
    return f"{bits / 1e9:.3g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.3g} Mbit/s"


def matrices(
    hosts: Sequence[str], pairs: Sequence[PairTime], nic: str
) -> tuple[Floats, Floats, Floats]:
    """Rates, latencies and spreads over one NIC, [n, n], nan where not measured."""
    place = {host: k for k, host in enumerate(hosts)}
    tables = np.full((3, len(hosts), len(hosts)), np.nan)
    for pair in pairs:
        if pair.nic == nic and pair.source in place and pair.target in place:
            at = place[pair.source], place[pair.target]
            tables[(slice(None), *at)] = (pair.bytes_per_s, pair.latency_s, pair.spread)
    return tables[0], tables[1], tables[2]


def find(
    hosts: Sequence[str],
    nics: Sequence[str],
    pairs: Sequence[PairTime],
    flows: Sequence[FlowTime] = (),
    tiers: Ints | None = None,
) -> tuple[Finding, ...]:
    """All findings, NICs before links before what is shared; `tiers` [n, n] where known."""
    found: list[Finding] = []
    for nic in nics:
        rates, latency_s, spread = matrices(hosts, pairs, nic)
        if not np.isfinite(rates).any():
            continue
        model = fit(rates, infer_tiers(rates) if tiers is None else tiers)
        found += _slow_nics(hosts, nic, model)
        found += _slow_links(hosts, nic, rates, spread, model)
        found += _latencies(hosts, nic, latency_s, _quiet(hosts, pairs, nic), model.tiers)
    order = ("slow_nic", "slow_link", "asymmetric_link", "latency")
    return (*sorted(found, key=lambda f: order.index(f.kind)), *_shared(flows))


def _slow_nics(hosts: Sequence[str], nic: str, model: EndsAndTiers) -> list[Finding]:
    """Hosts whose ends narrow their links far below what most hosts reach."""
    best = np.where(np.eye(len(hosts), dtype=bool), 0.0, model.tier_rate[model.tiers])
    found = []
    ends = (np.minimum(model.out_rate, best.max(axis=1)), np.minimum(model.in_rate, best.max(0)))
    usual = [float(np.sort(end)[(len(hosts) - 1) // 2]) for end in ends]
    for k, host in enumerate(hosts):
        slow = [bool(end[k] < NEAR * usual[way]) for way, end in enumerate(ends)]
        if not any(slow) or len(hosts) < 3:  # of two ends nobody knows which one it is
            continue
        way = 0 if slow[0] and (not slow[1] or ends[0][k] <= ends[1][k]) else 1
        direction: Direction = "both" if all(slow) else "out" if slow[0] else "in"
        verb = {"out": "sends", "in": "receives", "both": "sends and receives"}[direction]
        found.append(
            Finding(
                kind="slow_nic", host=host, nic=nic, direction=direction,
                value=float(ends[way][k]), usual=usual[way],
                message=f"{_card(host, nic)} {verb} at {rate_words(float(ends[way][k]))}, "
                f"most hosts at {rate_words(usual[way])}",
                advice="check its cable, port rate and PCIe width; until then leave the host out "
                "or map around it",
            )
        )  # fmt: skip
    return found


def _card(host: str, nic: str) -> str:
    return f"{host} {nic}" if nic else f"the NIC of {host}"


def _slow_links(
    hosts: Sequence[str], nic: str, rates: Floats, spread: Floats, model: EndsAndTiers
) -> list[Finding]:
    """Links far below both ends and tier: both ways one finding, else the way that is slow."""
    usual = model.rates()
    with np.errstate(invalid="ignore"):
        slow = (rates < NEAR * usual) & (rates < usual * (1 - NOISE * np.nan_to_num(spread) / 2))
    found = []
    for i, j in np.argwhere(slow | slow.T):
        both = bool(slow[i, j] and slow[j, i])
        if (both and i > j) or not slow[i, j]:
            continue
        arrow = "<->" if both else "->"
        over = f" over {nic}" if nic else ""
        value = float(min(rates[i, j], rates[j, i])) if both else float(rates[i, j])
        found.append(
            Finding(
                kind="slow_link" if both else "asymmetric_link", host=hosts[i], nic=nic,
                peer=hosts[j], direction="both" if both else "out",
                value=value, usual=float(usual[i, j]),
                message=f"{hosts[i]} {arrow} {hosts[j]}{over} reaches {rate_words(value)}, both "
                f"ends {rate_words(float(usual[i, j]))} with others",
                advice="check the switches and cables between the two; map neighbours of a ring "
                "or a pipeline elsewhere",
            )
        )  # fmt: skip
    return found


def _quiet(hosts: Sequence[str], pairs: Sequence[PairTime], nic: str) -> NDArray[np.bool_]:
    """Pairs, [n, n], whose usual small message is near their fastest: nothing else held it up."""
    place = {host: k for k, host in enumerate(hosts)}
    quiet = np.ones((len(hosts), len(hosts)), dtype=bool)
    for pair in pairs:
        if pair.nic == nic and pair.points and pair.source in place and pair.target in place:
            at = place[pair.source], place[pair.target]
            quiet[at] = pair.points[0][1] <= QUIET * pair.latency_s
    return quiet & quiet.T


def _latencies(
    hosts: Sequence[str], nic: str, latency_s: Floats, quiet: NDArray[np.bool_], tiers: Ints
) -> list[Finding]:
    """Pairs whose messages take far longer than those of their tier, in both directions."""
    known = np.isfinite(latency_s) & ~np.eye(len(hosts), dtype=bool)
    low = np.fmin(latency_s, latency_s.T)
    found = []
    for k in np.unique(tiers[known]):
        of = (tiers == k) & known
        usual = float(np.median(low[of]))
        noise = 1.4826 * float(np.median(np.abs(low[of] - usual)))
        limit = max(TIMES_LATENCY * usual, usual + MAD_LATENCY * noise, usual + FLOOR_S)
        for i, j in np.argwhere(np.triu(of & (low > limit) & known.T & quiet)):
            found.append(
                Finding(
                    kind="latency", host=hosts[i], nic=nic, peer=hosts[j], direction="both",
                    value=float(low[i, j]), usual=usual,
                    message=f"{hosts[i]} <-> {hosts[j]}{f' over {nic}' if nic else ''}: a message "
                    f"takes {low[i, j] * 1e6:.0f} us, others {usual * 1e6:.0f} us",
                    advice="a longer way, or a queue that is full: check routes and congestion",
                )
            )  # fmt: skip
    return found


def _shared(flows: Sequence[FlowTime]) -> list[Finding]:
    """NICs of a host and pairs of a round that together reach less than alone."""
    found = []
    for flow in flows:
        if flow.kind not in ("nics", "round") or flow.share >= SHARED:
            continue
        together, alone = rate_words(sum(flow.together)), rate_words(sum(flow.alone))
        if flow.kind == "nics":
            names = " and ".join(path.nic for path in flow.paths)
            message = f"{names} of {flow.host} send {together} at once, {alone} one by one"
            advice = "they share a PCIe slot, a socket or a processor: count them as one"
        else:
            message = f"{len(flow.paths)} disjoint pairs reach {together} at once, {alone} alone"
            advice = "they share a switch or an uplink; `--serial` measures pairs one by one"
        found.append(
            Finding(
                kind="shared_nics" if flow.kind == "nics" else "shared_switch", host=flow.host,
                value=sum(flow.together), usual=sum(flow.alone), message=message, advice=advice,
            )
        )  # fmt: skip
    return found


def slowdowns(hosts: Sequence[str], works: Sequence[HostWork]) -> Floats | None:
    """What each host takes for the same work, relative to the middle one, [n]; 1 where that is
    within noise; None where the work of some was not measured."""
    found = {work.host: work for work in works}
    if not hosts or not all(host in found for host in hosts):
        return None
    rates = np.array([found[host].flops_per_s for host in hosts])
    noise = np.array([max(LITTLE_WORK, NOISE * found[host].spread) for host in hosts])
    slow = np.median(rates) / rates
    return np.where(np.abs(slow - 1) <= noise, 1.0, slow)


def slow_hosts(hosts: Sequence[str], works: Sequence[HostWork]) -> tuple[Finding, ...]:
    """Hosts that compute below `NEAR` of what is usual."""
    slow = slowdowns(hosts, works)
    if slow is None:
        return ()
    usual = float(np.median([work.flops_per_s for work in works]))
    return tuple(
        Finding(
            kind="slow_host",
            host=host,
            value=usual / times,
            usual=usual,
            message=f"{host} takes {times:.2f} times as long as others for the same work",
            advice="look for other work, a power or heat limit, a slower clock; else leave it out",
        )
        for host, times in zip(hosts, slow.tolist(), strict=True)
        if times > 1 / NEAR
    )


def lost_hosts(lost: Sequence[str], failed: Sequence[tuple[str, str]]) -> tuple[Finding, ...]:
    """Hosts that went away, and pairs between which nothing arrived."""
    gone = (
        Finding(
            kind="lost_host",
            host=host,
            message=f"{host} did not answer, and its links are not in the file",
            advice="leave it out, or measure again when it is back",
        )
        for host in lost
    )
    cut = (
        Finding(
            kind="failed_link",
            host=source,
            peer=target,
            direction="both",
            message=f"between {source} and {target} no message arrived",
            advice="check firewalls and routes between the two; the file gives the lowest rate",
        )
        for source, target in failed
    )
    return (*gone, *cut)
