"""The hosts of a cluster, in its order, as a hostfile lists them.

A line is `HOST` or `HOST slots=N` (Open MPI, DeepSpeed; `launch.rank_files` writes the same);
`#` begins a comment. A host is a name or an address that ssh takes, with `USER@` where it needs
one.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from planner.plan import Plan
from profiler.codec import read_text, record
from profiler.errors import UserError
from profiler.model import Positive

_NAME = re.compile(r"(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_][\w.:-]*")
"""No host begins with `-`, which ssh would read as an option."""
_FORM = "a line is `HOST` or `HOST slots=N`; `#` begins a comment"


@record
class Host:
    """One line of a hostfile."""

    name: str
    """What ssh is given: `HOST` or `USER@HOST`."""
    slots: Positive | None = None
    """Ranks that it takes; None where the file does not say."""

    @property
    def address(self) -> str:
        """The name without the user."""
        return self.name.rpartition("@")[2]


def read_hosts(path: Path) -> tuple[Host, ...]:
    """Hosts of a file, in its order; `UserError` with the line where it is not one."""
    hosts: list[Host] = []
    first: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        place = f"{path}:{number}"
        host = _host(words, place)
        if host.address in first:
            raise UserError(
                f"host `{host.address}` is there twice, first in line {first[host.address]}",
                hint="a host has one line; `slots=N` says how many ranks it takes",
                place=place,
            )
        first[host.address] = number
        hosts.append(host)
    if not hosts:
        raise UserError("the file names no host", hint=_FORM, place=str(path))
    return tuple(hosts)


def _host(words: list[str], place: str) -> Host:
    name, *settings = words
    if not _NAME.fullmatch(name):
        raise UserError(f"`{name[:80]}` is not a host's name", hint=_FORM, place=place)
    if not settings:
        return Host(name=name)
    key, equals, value = settings[0].partition("=")
    if len(settings) > 1 or key != "slots" or not equals:
        wrong = settings[0] if key != "slots" or not equals else settings[1]
        raise UserError(f"`{wrong[:80]}` is not known after a host", hint=_FORM, place=place)
    if not (value.isascii() and value.isdigit() and len(value) <= 6 and int(value) > 0):
        raise UserError(f"`slots={value[:80]}` is not a number above 0", hint=_FORM, place=place)
    return Host(name=name, slots=int(value))


def hosts_of_plan(
    hosts: Sequence[Host], plan: Plan, wanted: Sequence[tuple[int, int]], place: str
) -> tuple[Host, ...]:
    """Hosts of the nodes that a plan uses (number in the cluster, ranks on it), in its order: that
    of the file, or where the plan knows its hosts by their links, that of their names.

    `UserError` where the file lacks one of them, or one has too few slots.
    """
    if plan.profile.links is None:
        return hosts_of_nodes(hosts, wanted, place)
    named = {host.address: host for host in hosts}
    names = plan.profile.links.hosts
    missing = [names[node] for node, _ in wanted if names[node] not in named]
    if missing:
        raise UserError(
            f"plan `{plan.id}` puts ranks on host `{missing[0]}`, which the file does not name",
            hint="name the hosts as the links file did, or plan again with the links of these",
            place=place,
            kind="stale",
        )
    ordered = [named.get(name, Host(name=name)) for name in names]
    return hosts_of_nodes(ordered, wanted, place)


def hosts_of_nodes(
    hosts: Sequence[Host], wanted: Sequence[tuple[int, int]], place: str
) -> tuple[Host, ...]:
    """Hosts of the nodes (number in the cluster, ranks on it); `UserError` where the file names too
    few, or one has too few slots."""
    needed = max(node for node, _ in wanted) + 1
    if len(hosts) < needed:
        raise UserError(
            f"it names {len(hosts)} hosts, and the plan uses node {needed} of its cluster",
            hint="a host for each node of the cluster, in its order",
            place=place,
        )
    for node, ranks in wanted:
        host = hosts[node]
        if host.slots is not None and host.slots < ranks:
            raise UserError(
                f"host `{host.name}` has {host.slots} slots, and the plan puts {ranks} ranks there",
                hint="plan for the devices that the hosts have",
                place=place,
            )
    return tuple(hosts[node] for node, _ in wanted)
