"""Measured links between the nodes of a cluster: one direction, pair by pair.

A message of n bytes from node i to node j takes `latency_s[i, j] + n / bytes_per_s[i, j]`. The rate
is what the pair reaches with all its NICs; flows at the same time share it, and all that a node
sends or receives shares its NICs (`out_bytes_per_s`, `in_bytes_per_s`: unless measured, what its
best link reaches). The diagonal is the link inside a node.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.errors import UserError
from profiler.profile import HostLinks

Floats = NDArray[np.float64]
LATENCY_S = 5e-6
"""Of a message between nodes where none was measured: RDMA over one switch, as in mpiGraph and OSU
latency tables of InfiniBand clusters (1 to 2 us) with the software's own part."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Links:
    """Between `hosts`, [from, to]."""

    hosts: tuple[str, ...]
    bytes_per_s: Floats
    latency_s: Floats
    source: str = ""
    """File or command it came from."""
    out_rate: Floats | None = None
    in_rate: Floats | None = None
    """What all NICs of a node send and receive at once, [n], where it was measured."""
    slowdown: Floats | None = None
    """What each node takes for the same work, relative to the one whose blocks are known, [n]."""

    def __post_init__(self) -> None:
        n = len(self.hosts)
        for name in ("bytes_per_s", "latency_s"):
            shape = getattr(self, name).shape
            if shape != (n, n):
                raise UserError(
                    f"`{name}` is {' x '.join(map(str, shape))}, but there are {n} hosts",
                    place=self.source,
                )
        if len(set(self.hosts)) != n:
            twice = next(h for h in self.hosts if self.hosts.count(h) > 1)
            raise UserError(f"host `{twice}` is listed twice", place=self.source)
        self._check(self.bytes_per_s, "rate", zero=False)
        self._check(self.latency_s, "latency", zero=True)

        for name in ("out_rate", "in_rate", "slowdown"):
            values = getattr(self, name)
            if values is not None and not (
                values.shape == (n,) and np.isfinite(values).all() and (values > 0).all()
            ):
                raise UserError(
                    f"`{name}` needs a number above 0 for each of {n} hosts", place=self.source
                )

    def _check(self, table: Floats, what: str, *, zero: bool) -> None:
        wrong = ~np.isfinite(table) | (table < 0 if zero else table <= 0)
        np.fill_diagonal(wrong, False)
        if wrong.any():
            i, j = (int(k) for k in np.argwhere(wrong)[0])
            raise UserError(
                f"the {what} from `{self.hosts[i]}` to `{self.hosts[j]}` is {table[i, j]:g}",
                place=self.source,
                hint="every pair of hosts needs a number above 0; leave out a host that is down",
            )

    @property
    def out_bytes_per_s(self) -> Floats:
        """All that a node can send at once, [n]."""
        return self._best(axis=1) if self.out_rate is None else self.out_rate

    @property
    def in_bytes_per_s(self) -> Floats:
        """All that a node can receive at once, [n]."""
        return self._best(axis=0) if self.in_rate is None else self.in_rate

    def _best(self, axis: int) -> Floats:
        others = self.bytes_per_s.copy()
        np.fill_diagonal(others, 0.0 if len(self.hosts) > 1 else 1.0)
        return np.asarray(others.max(axis=axis))

    def stored(self) -> HostLinks:
        """As a profile keeps them; the diagonal must be known."""
        return HostLinks(
            hosts=self.hosts,
            bytes_per_s=_rows(self.bytes_per_s),
            latency_s=_rows(self.latency_s),
            out_bytes_per_s=tuple(self.out_bytes_per_s.tolist()),
            in_bytes_per_s=tuple(self.in_bytes_per_s.tolist()),
            slowdown=() if self.slowdown is None else tuple(self.slowdown.tolist()),
        )

    @classmethod
    def of_stored(cls, kept: HostLinks) -> "Links":
        """From a profile."""
        return cls(
            hosts=kept.hosts,
            bytes_per_s=np.array(kept.bytes_per_s),
            latency_s=np.array(kept.latency_s),
            out_rate=np.array(kept.out_bytes_per_s),
            in_rate=np.array(kept.in_bytes_per_s),
            slowdown=np.array(kept.slowdown) if kept.slowdown else None,
        )

    def of_hosts(self, hosts: Sequence[str]) -> "Links":
        """Of these hosts alone, in this order; each must be there."""
        at = np.array([self.hosts.index(host) for host in hosts])

        def each(values: Floats | None) -> Floats | None:
            return None if values is None else values[at]

        return dataclasses.replace(
            self,
            hosts=tuple(hosts),
            bytes_per_s=self.bytes_per_s[np.ix_(at, at)],
            latency_s=self.latency_s[np.ix_(at, at)],
            out_rate=each(self.out_rate),
            in_rate=each(self.in_rate),
            slowdown=each(self.slowdown),
        )

    def with_inside(self, bytes_per_s: float, latency_s: float | None = None) -> "Links":
        """With this rate between two devices of a node, and this latency unless None, in place of
        the diagonal."""
        rates, latencies = self.bytes_per_s.copy(), self.latency_s.copy()
        np.fill_diagonal(rates, bytes_per_s)
        if latency_s is not None:
            np.fill_diagonal(latencies, latency_s)
        return dataclasses.replace(self, bytes_per_s=rates, latency_s=latencies)


def _rows(table: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())
