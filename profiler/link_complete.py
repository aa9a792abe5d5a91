"""Rates and latencies of all pairs of hosts from some of them: ends, tiers, and the narrowest.

A message is as fast as the narrowest part of its way: `rate[i, j] = min(out[i], in[j], tier[k])`,
k the tier of switches that joins i and j. Ends and tiers are those with the least sum of absolute
deviations of logarithms (L1: a bad link among good ones moves nothing), found by coordinate
descent: each in turn takes the best of the values that were measured, and an end that narrows
nothing is infinite. Latencies are the median of their tier.

Tiers come from the fabric's file, or from the values: hosts joined by links near what their ends
can do are one group; groups are joined likewise by the medians between them, level by level.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.link_profile import HeldOut
from profiler.links import Floats

Ints = NDArray[np.int64]
NEAR = 0.7
"""Share of the best from which links count as alike; lower than noise and protocol overhead make,
higher than the next lower rate of a port (100/200/400 Gbit/s) or half the PCIe lanes."""
_SWEEPS = 8
_CANDIDATES = 64
_TIE = 1e-9
_NOISE = 0.1
"""In logarithms: an end that takes less off its fastest link limits nothing."""
_HELD_OUT = 0.1
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EndsAndTiers:
    """The fitted model."""

    out_rate: Floats
    """Bytes per second that a host sends at most, [n]; infinite where nothing shows a limit."""
    in_rate: Floats
    tiers: Ints
    """Tier of each pair, [n, n], from 0."""
    tier_rate: Floats
    """Bytes per second, by tier."""

    def rates(self) -> Floats:
        """Of every pair, [n, n]; the diagonal has no meaning."""
        ends = np.minimum(self.out_rate[:, None], self.in_rate[None, :])
        return np.asarray(np.minimum(ends, self.tier_rate[self.tiers]))


def infer_tiers(rates: Floats) -> Ints:
    """Tier of each pair, [n, n], 0 nearest; `rates` is nan where nothing was measured."""
    n = len(rates)
    known = np.where(np.isfinite(rates), rates, 0.0)
    np.fill_diagonal(known, 0.0)
    out, into = known.max(axis=1), known.max(axis=0)
    if not (np.isfinite(rates) | np.eye(n, dtype=bool)).all():
        # A host that met none of its neighbours is not near the far ones that it met.
        out, into = np.maximum(out, np.median(out)), np.maximum(into, np.median(into))
    ends = np.minimum(out[:, None], into[None, :])
    alike = np.divide(known, ends, out=np.zeros_like(known), where=ends > 0)
    likeness = np.where((known > 0) | (known.T > 0), np.maximum(alike, alike.T), np.nan)
    np.fill_diagonal(likeness, np.nan)
    group = _components(np.nan_to_num(likeness) >= NEAR)
    tiers = np.where(group[:, None] == group[None, :], 0, -1)
    level = 0
    while group.max(initial=0) > 0:
        level += 1
        between = _between(likeness, group)
        best = np.nanmax(between) if np.isfinite(between).any() else np.nan
        joined = _components(np.nan_to_num(between) >= NEAR * best) if best > 0 else None
        merged = np.zeros(n, dtype=np.int64) if joined is None else joined[group]
        tiers[(tiers < 0) & (merged[:, None] == merged[None, :])] = level
        group = merged
    return tiers


def _components(near: NDArray[np.bool_]) -> Ints:
    """Number of the connected component of each node, from 0."""
    found = np.full(len(near), -1, dtype=np.int64)
    near = near | near.T
    count = 0
    for start in range(len(near)):
        if found[start] >= 0:
            continue
        reached = np.zeros(len(near), dtype=bool)
        reached[start] = True
        while True:
            wider = reached | near[reached].any(axis=0)
            if (wider == reached).all():
                break
            reached = wider
        found[reached] = count
        count += 1
    return found


def _between(likeness: Floats, group: Ints) -> Floats:
    """Median likeness between groups, [g, g]; nan where no pair was measured."""
    count = int(group.max()) + 1
    between = np.full((count, count), np.nan)
    rows, columns = np.nonzero(np.isfinite(likeness) & (group[:, None] < group[None, :]))
    label = group[rows] * count + group[columns]
    values = likeness[rows, columns]
    for one in np.unique(label):
        between[one // count, one % count] = np.median(values[label == one])
    return between


def fit(rates: Floats, tiers: Ints) -> EndsAndTiers:
    """The model of measured rates (nan: not measured) in known tiers."""
    rates = rates.copy()
    np.fill_diagonal(rates, np.nan)
    log = np.log(rates)
    tiers = np.maximum(tiers, 0)
    count = int(tiers.max(initial=0)) + 1
    known = np.isfinite(log)
    out = np.where(known.any(axis=1), np.nanmax(np.where(known, log, -np.inf), axis=1), np.inf)
    into = np.where(known.any(axis=0), np.nanmax(np.where(known, log, -np.inf), axis=0), np.inf)
    tier = np.array([_top(log[(tiers == k) & known]) for k in range(count)])
    for _ in range(_SWEEPS):
        before = (out.copy(), into.copy(), tier.copy())
        ends = np.minimum(out[:, None], into[None, :])
        for k in range(count):
            of = (tiers == k) & known
            tier[k] = _best(log[of], ends[of], tier[k], open_ended=False)
        for i in range(len(log)):
            of = known[i]
            out[i] = _best(log[i, of], np.minimum(into[of], tier[tiers[i, of]]), np.inf)
        for j in range(len(log)):
            of = known[:, j]
            into[j] = _best(log[of, j], np.minimum(out[of], tier[tiers[of, j]]), np.inf)
        if all(np.array_equal(a, b) for a, b in zip(before, (out, into, tier), strict=True)):
            break
    tier = _filled(tier)
    return EndsAndTiers(
        out_rate=np.exp(out), in_rate=np.exp(into), tiers=tiers, tier_rate=np.exp(tier)
    )


def _top(values: Floats) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _filled(tier: Floats) -> Floats:
    """A tier without a measured pair is taken to be as its nearest one below (or above)."""
    known = np.flatnonzero(np.isfinite(tier))
    if not len(known):
        return np.zeros_like(tier)
    nearest = [known[np.argmin(np.abs(known - k) + 0.1 * (known > k))] for k in range(len(tier))]
    return np.asarray(tier[nearest])


def _best(values: Floats, others: Floats, default: float, *, open_ended: bool = True) -> float:
    """The limit x, in logarithms, with the least sum of |value - min(x, other)|.

    Among equals the highest; infinite (`open_ended`) where no limit does better by more than
    noise.
    """
    if not len(values):
        return default
    candidates = np.unique(values)
    if len(candidates) > _CANDIDATES:
        candidates = np.quantile(candidates, np.linspace(0, 1, _CANDIDATES))
    cost = np.abs(values - np.minimum(candidates[:, None], others)).sum(axis=1)
    best = float(candidates[np.flatnonzero(cost <= cost.min() + _TIE)[-1]])
    if open_ended:
        free = np.where(np.isfinite(others), others, values)
        if best >= free.max() - _NOISE or np.abs(values - free).sum() <= cost.min() + _TIE:
            return float("inf")
    return best


def complete(
    rates: Floats, latency_s: Floats, tiers: Ints | None = None
) -> tuple[Floats, Floats, HeldOut | None]:
    """Rates and latencies of all pairs, and the error of the predicted ones.

    Args:
        rates: bytes per second, [n, n], nan where not measured.
        latency_s: seconds, [n, n], nan likewise.
        tiers: of each pair, [n, n]; None: inferred.

    Measured values stay. The error is that of a tenth of the measured pairs, predicted from the
    other nine; None where nothing had to be predicted.
    """
    missing = ~np.isfinite(rates)
    np.fill_diagonal(missing, False)
    if not missing.any():
        return rates, latency_s, None
    model = fit(rates, infer_tiers(rates) if tiers is None else tiers)
    full = np.where(missing, model.rates(), rates)
    return full, _latencies(latency_s, model.tiers), held_out(rates, tiers)


def _latencies(latency_s: Floats, tiers: Ints) -> Floats:
    known = np.isfinite(latency_s) & ~np.eye(len(latency_s), dtype=bool)
    every = float(np.median(latency_s[known])) if known.any() else 0.0
    full = latency_s.copy()
    for k in np.unique(tiers):
        of = tiers == k
        values = latency_s[of & known]
        full[of & ~known] = float(np.median(values)) if len(values) else every
    np.fill_diagonal(full, 0.0)
    return full


def held_out(rates: Floats, tiers: Ints | None = None) -> HeldOut | None:
    """Error of pairs, both directions at once, that are predicted without having been seen."""
    rows, columns = np.nonzero(np.triu(np.isfinite(rates) & np.isfinite(rates.T), 1))
    count = int(len(rows) * _HELD_OUT)
    if count < 1:
        return None
    chosen = np.random.default_rng(_SEED).choice(len(rows), count, replace=False)
    i, j = rows[chosen], columns[chosen]
    seen = rates.copy()
    seen[i, j] = seen[j, i] = np.nan
    guess = fit(seen, infer_tiers(seen) if tiers is None else tiers).rates()
    off = np.abs(np.concatenate([guess[i, j] / rates[i, j], guess[j, i] / rates[j, i]]) - 1)
    return HeldOut(pairs=count, median=float(np.median(off)), p90=float(np.quantile(off, 0.9)))
