"""What joins the hosts: leaf switches, the switches above them, and how far apart two hosts are."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.errors import UserError
from profiler.names import did_you_mean

Ints = NDArray[np.int64]
NOT_JOINED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """A host's port on a leaf switch; `hca` (`mlx5_0`, `HCA-1`) and its port where known."""

    switch: str
    hca: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """Switches and the hosts on them."""

    ports: dict[str, tuple[HostPort, ...]]
    """By host; several where it has rails."""
    parents: dict[str, tuple[str, ...]]
    """Of every switch, the switches one level up."""
    joined: dict[str, tuple[str, ...]]
    """Of every switch, all switches it has cables to."""
    source: str = ""

    def leaves(self, host: str) -> tuple[str, ...]:
        """Switches that a host is on, each once."""
        return tuple(dict.fromkeys(port.switch for port in self.ports[self.find(host)]))

    def find(self, host: str) -> str:
        """The host of that name, with or without its domain."""
        if host in self.ports:
            return host
        short = host.partition(".")[0]
        alike = [name for name in self.ports if name.partition(".")[0] == short]
        if len(alike) == 1 and ("." not in host or "." not in alike[0]):
            return alike[0]
        hint = (
            did_you_mean(host, tuple(self.ports)) or "the file lists the hosts of another cluster"
        )
        raise UserError(f"host `{host[:60]}` is on no switch", hint=hint, place=self.source)

    def tiers(self, hosts: Sequence[str]) -> Ints:
        """Levels of switches that join any two hosts, [n, n], over the nearest of their rails.

        0: the same host; 1: one switch; 2: the level above their leaves, and so on; `NOT_JOINED`:
        no switches join them. Counted in cables of the shortest way, two to a level.
        """
        found = [self.find(host) for host in hosts]
        sets = {leaves: k for k, leaves in enumerate(dict.fromkeys(map(self.leaves, found)))}
        apart = self._levels(tuple(dict.fromkeys(s for leaves in sets for s in leaves)))
        between = np.array(
            [[min(apart[s][t] for s in one for t in other) for other in sets] for one in sets],
            dtype=np.float64,
        ).reshape(len(sets), len(sets))
        tiers = np.where(np.isfinite(between), between, NOT_JOINED).astype(np.int64)
        group = np.array([sets[self.leaves(host)] for host in found], dtype=np.int64)
        number = {host: k for k, host in enumerate(found)}
        same = np.array([number[host] for host in found], dtype=np.int64)
        return np.where(same[:, None] == same, 0, tiers[np.ix_(group, group)])

    def _levels(self, switches: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """1 for the same switch; a level more for every two cables, or part of them, between."""
        levels = {}
        for switch in switches:
            cables = distances(self.joined, (switch,))
            levels[switch] = {
                other: 1 + (cables[other] + 1) // 2 if other in cables else math.inf
                for other in switches
            }
        return levels


def distances(joined: dict[str, tuple[str, ...]], start: Sequence[str]) -> dict[str, int]:
    """Cables from the nearest switch of `start` to every switch that can be reached."""
    found = dict.fromkeys(start, 0)
    queue = deque(start)
    while queue:
        switch = queue.popleft()
        for other in joined.get(switch, ()):
            if other not in found:
                found[other] = found[switch] + 1
                queue.append(other)
    return found
