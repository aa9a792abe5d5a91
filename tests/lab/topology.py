"""What a lab looks like: hosts, their NICs and ranks, and the links between them.

Rates are Mbit/s (10^6 bit), of one direction; delays are ms, one way. NICs of the same name are on
one switch (a rail), so a pair of hosts is joined by the NICs whose names both have. `read` takes a
YAML file; all that is wrong in it is a `UserError`.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic import StringConstraints

from profiler.codec import decode, read_text, record, replace
from profiler.errors import UserError
from profiler.model import Positive
from tests.lab import CONTROLLER

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
NicName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]{0,11}$")]
Rate = Annotated[float, Ge(1), Le(1e5)]
"""Mbit/s."""
Delay = Annotated[float, Ge(0), Le(10_000)]
"""ms, one way."""
Share = Annotated[float, Gt(0), Le(1)]

_NETWORK = ipaddress.ip_network("10.77.0.0/16")


@record
class Nic:
    """A network card: what it sends at most, and what the switch's port gives it at most."""

    name: NicName
    mbit_per_s: Rate
    receive_mbit_per_s: Rate | None = None
    """None: as much as it sends."""

    @property
    def port_mbit_per_s(self) -> float:
        """What it receives at most."""
        return self.receive_mbit_per_s or self.mbit_per_s


@record
class Host:
    """One machine of the cluster."""

    name: Name
    nics: Annotated[tuple[Nic, ...], MinLen(1), MaxLen(8)]
    ranks: Positive = 2
    speed: Share = 1.0
    """Of its ranks, as a share of what a rank of a healthy host computes."""

    def nic(self, name: str) -> Nic | None:
        """Its NIC of that name."""
        return next((nic for nic in self.nics if nic.name == name), None)


@record
class Pair:
    """The link from one host to another where it is not the cluster's usual one."""

    source: str
    target: str
    nic: str | None = None
    """None: all that both have."""
    mbit_per_s: Rate | None = None
    delay_ms: Delay | None = None
    both_ways: bool = False
    """Also from the target to the source."""

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise UserError(f"pair `{self.source}` to itself", hint="a pair is two hosts")

    def covers(self, source: str, target: str, nic: str) -> bool:
        """Whether it speaks of that direction of that NIC's link."""
        ends = {(self.source, self.target)}
        if self.both_ways:
            ends.add((self.target, self.source))
        return (source, target) in ends and self.nic in (None, nic)


@record
class Topology:
    """A cluster in the order of its ranks."""

    name: str
    hosts: Annotated[tuple[Host, ...], MinLen(1), MaxLen(64)]
    pairs: tuple[Pair, ...] = ()
    """Later ones win over earlier ones."""
    mbit_per_s: Rate | None = None
    """Between two hosts where no pair says otherwise. None: only NICs limit it."""
    delay_ms: Delay = 0.0
    """Between two hosts where no pair says otherwise."""
    cpu_share: Share | None = None
    """Of one core, for each rank of a host of speed 1: no rank uses what another leaves idle.
    None: ranks share the machine's cores as they come.
    """

    def __post_init__(self) -> None:
        names = Counter(h.name for h in self.hosts)
        if twice := [n for n, count in names.items() if count > 1]:
            raise UserError(f"host `{twice[0]}` is listed twice")
        if CONTROLLER in names:
            raise UserError(
                f"`{CONTROLLER}` is the controller's name", hint="give the host another name"
            )
        for host in self.hosts:
            if len({nic.name for nic in host.nics}) != len(host.nics):
                raise UserError(f"host `{host.name}` has two NICs of one name")
        for pair in self.pairs:
            self._check(pair)

    def _check(self, pair: Pair) -> None:
        ends = [self.host(pair.source), self.host(pair.target)]
        for host in ends:
            if pair.nic is not None and host.nic(pair.nic) is None:
                raise UserError(
                    f"host `{host.name}` has no NIC `{pair.nic}`",
                    hint=f"it has {', '.join(nic.name for nic in host.nics)}",
                )

    def host(self, name: str) -> Host:
        """A host by name; `UserError` where there is none."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(h.name for h in self.hosts)
        raise UserError(f"no host `{name}`", hint=f"hosts: {known}")

    @property
    def nic_names(self) -> tuple[str, ...]:
        """Of all hosts, in the order of appearance: the rails."""
        return tuple(dict.fromkeys(nic.name for host in self.hosts for nic in host.nics))

    @property
    def cores(self) -> float:
        """Cores that all ranks use together at most; 0 without quotas."""
        return sum(self.share(host) * host.ranks for host in self.hosts)

    def share(self, host: Host) -> float:
        """Of one core, for each rank of the host; 0 without quotas."""
        return (self.cpu_share or 0.0) * host.speed

    def address(self, host: str, nic: str | None = None) -> str:
        """IPv4 address of a NIC (None: the host's first), or of the controller."""
        if host == CONTROLLER:
            rail, last = (self.nic_names.index(nic) if nic else 0), 254
        else:
            found = self.host(host)
            rail = self.nic_names.index(nic or found.nics[0].name)
            last = self.hosts.index(found) + 1
        return str(_NETWORK[rail * 256 + last])

    def mbit(self, source: str, target: str, nic: str) -> float:
        """What the source sends to the target at most, port of the target aside."""
        card = self.host(source).nic(nic)
        assert card is not None
        said = [p.mbit_per_s for p in self.pairs if p.covers(source, target, nic) and p.mbit_per_s]
        return min(card.mbit_per_s, said[-1] if said else self.mbit_per_s or card.mbit_per_s)

    def delay(self, source: str, target: str, nic: str) -> float:
        """One-way delay in ms."""
        said = [p.delay_ms for p in self.pairs if p.covers(source, target, nic)]
        return next((d for d in reversed(said) if d is not None), self.delay_ms)

    def placed(self, order: Iterable[str] | None = None) -> tuple[str, ...]:
        """Host of each rank, where hosts follow each other in that order (None: as listed)."""
        hosts = [self.host(n) for n in order] if order else self.hosts
        return tuple(host.name for host in hosts for _ in range(host.ranks))

    def with_pair(self, pair: Pair) -> "Topology":
        """The topology with a link changed."""
        return replace(self, pairs=(*self.pairs, pair))

    def with_nic(self, host: str, nic: Nic) -> "Topology":
        """The topology with a NIC exchanged for another of its name."""
        old = self.host(host)
        if old.nic(nic.name) is None:
            raise UserError(f"host `{host}` has no NIC `{nic.name}`")
        nics = tuple(nic if n.name == nic.name else n for n in old.nics)
        hosts = (replace(h, nics=nics) if h.name == host else h for h in self.hosts)
        return replace(self, hosts=tuple(hosts))


SHIPPED = Path(__file__).parent / "topologies"


def shipped(name: str) -> Topology:
    """One of the topologies of this folder."""
    return read(SHIPPED / f"{name}.yaml")


def read(path: Path) -> Topology:
    """A topology from a YAML file."""
    return decode(Topology, read_text(path), str(path))
