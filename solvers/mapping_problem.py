"""Flows between blocks, and what they take when each block is on a node.

    T(pi) = sum over phases of  max over rows of  sum over flows (a, b) of  c(pi(a), pi(b))

with pi(a) the node of block a and c [n, n] per kind of flow. Many places are evaluated at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAD = 0.02
"""Weight of the mean row beside the largest, in the search alone."""
_AT_ONCE = 1 << 21
"""Flows evaluated together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """Flows between blocks, sorted by row; rows sorted by phase."""

    source: Ints
    target: Ints
    kind: Ints
    """Which of the costs it has."""
    row: Ints
    phase: Ints
    """Of each row, ascending from 0."""

    @property
    def num_phases(self) -> int:
        """Phases with a row at least."""
        return int(self.phase[-1]) + 1 if len(self.phase) else 0


class Problem:
    """Flows, and what each kind takes from node to node, [kinds, n, n] in seconds."""

    def __init__(self, flows: Flows, cost: Floats) -> None:
        self.flows, self.cost = flows, cost
        self.num_nodes = cost.shape[1]
        self._flat = cost.reshape(-1)
        self._kind = flows.kind * self.num_nodes**2
        self._rows = _first_of(flows.row)
        self.first_of_phases = _first_of(flows.phase)
        self._sizes = np.diff(np.append(self.first_of_phases, len(flows.phase)))
        self.evaluated = 0

    def seconds_of(self, flow: Ints, source: Ints, target: Ints) -> Floats:
        """Of flows between nodes, of one shape."""
        at = source * self.num_nodes
        at += target
        at += self._kind[flow]
        return np.asarray(self._flat[at])

    def flow_s(self, places: Ints) -> Floats:
        """Seconds of each flow, [k, flows]."""
        nodes = places[:, self.flows.source] * self.num_nodes
        nodes += places[:, self.flows.target]
        nodes += self._kind
        return np.asarray(self._flat[nodes])

    def rows(self, places: Ints) -> Floats:
        """Seconds of each row, [k, rows], of `places` [k, blocks or more]: the node of each block,
        then the nodes that are idle."""
        seconds = self.flow_s(places)
        if len(self._rows) < seconds.shape[1]:
            seconds = np.add.reduceat(seconds, self._rows, axis=1)
        return np.asarray(seconds)

    def phases(self, places: Ints) -> Floats:
        """Seconds of each phase, [k, phases]."""
        if not len(self.flows.source):
            return np.zeros((len(places), 0))
        return np.asarray(np.maximum.reduceat(self.rows(places), self.first_of_phases, axis=1))

    def seconds(self, places: Ints) -> tuple[Floats, Floats]:
        """(T, T with what leads the search), [k] each."""
        total, led = np.empty(len(places)), np.empty(len(places))
        if not len(self.flows.source):
            return np.zeros(len(places)), np.zeros(len(places))
        self.evaluated += len(places)
        size = max(1, _AT_ONCE // len(self.flows.source))
        for begin in range(0, len(places), size):
            part = slice(begin, begin + size)
            rows = self.rows(places[part])
            worst = np.maximum.reduceat(rows, self.first_of_phases, axis=1)
            mean = np.add.reduceat(rows, self.first_of_phases, axis=1) / self._sizes
            total[part] = worst.sum(axis=1)
            led[part] = total[part] + LEAD * mean.sum(axis=1)
        return total, led


def _first_of(sorted_ids: Ints) -> Ints:
    """Where each id begins."""
    if not len(sorted_ids):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.r_[True, np.diff(sorted_ids) != 0])
