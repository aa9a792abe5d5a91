"""Slurm's `topology.conf` for topology/tree (slurm.schedmd.com/topology.conf.html).

    SwitchName=s0 Nodes=tux[0-3] LinkSpeed=900
    SwitchName=s1 Nodes=tux[4-7]
    SwitchName=s2 Switches=s[0-1]

Keys in any case; `#` begins a comment, a backslash at the end goes on in the next line; a node on
several leaf switches has as many rails. Blocks and rings are other plugins, and not read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from profiler.errors import UserError
from profiler.link_files.fabric import Fabric, HostPort
from profiler.link_files.hostlist import expand
from profiler.link_files.table import lines_of
from profiler.names import did_you_mean, one_of

_KEYS = ("SwitchName", "Nodes", "Switches", "LinkSpeed")
_BY_LOWER = {key.lower(): key for key in _KEYS}
_OTHER = ("blockname", "blocksizes", "ringname")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Switch:
    nodes: tuple[str, ...]
    switches: tuple[str, ...]
    at: str


def is_slurm_topology(text: str) -> bool:
    """Whether a line names a switch, or a block or ring."""
    words = (line.split("=")[0].strip().lower() for line in lines_of(text))
    return any(word == "switchname" or word in _OTHER for word in words)


def fabric_of_slurm(text: str, place: str) -> Fabric:
    """Switches and hosts of a `topology.conf`; `UserError` with the line."""
    switches: dict[str, _Switch] = {}
    for line, words in _lines(text):
        at = f"{place}:{line}"
        name, switch = _switch(words, at)
        if name in switches:
            raise UserError(f"switch `{name}` is given twice", place=at)
        switches[name] = switch
    parents: dict[str, list[str]] = {name: [] for name in switches}
    ports: dict[str, list[HostPort]] = {}
    for name, switch in switches.items():
        for child in switch.switches:
            if child not in switches:
                hint = did_you_mean(child, tuple(switches))
                raise UserError(f"switch `{child}` has no line", hint=hint, place=switch.at)
            parents[child].append(name)
        for node in switch.nodes:
            ports.setdefault(node, []).append(HostPort(switch=name))
    _refuse_cycle(switches)
    return Fabric(
        ports={node: tuple(on) for node, on in ports.items()},
        parents={name: tuple(up) for name, up in parents.items()},
        joined={name: (*parents[name], *switch.switches) for name, switch in switches.items()},
        source=place,
    )


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Words of every line that has some, with the number of its first."""
    held, first = "", 0
    for number, line in enumerate((*lines_of(text), ""), start=1):
        first = first if held else number
        held += line.partition("#")[0].rstrip()
        if held.endswith("\\"):
            held = held[:-1] + " "
            continue
        if held.split():
            yield first, re.sub(r"\s*=\s*", "=", held).split()
        held = ""


def _switch(words: list[str], at: str) -> tuple[str, _Switch]:
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key.lower() in _OTHER:
            hint = "the switches of topology/tree are (`SwitchName=...`)"
            raise UserError(f"`{key}` is of a topology that is not read", hint=hint, place=at)
        if not equals or key.lower() not in _BY_LOWER:
            hint = one_of(key, _KEYS, "known keys")
            raise UserError(f"unknown key `{key[:40]}`", hint=hint, place=at)
        if key.lower() in found:
            raise UserError(f"key `{key}` is given twice", place=at)
        found[key.lower()] = value.strip('"')
    name = found.get("switchname", "")
    if not name:
        raise UserError("the line names no switch", hint="`SwitchName=s0 Nodes=...`", place=at)
    if not found.get("nodes") and not found.get("switches"):
        message = f"switch `{name[:60]}` has neither nodes nor switches"
        raise UserError(message, place=at)
    lists = {key: expand(found[key], at) if found.get(key) else () for key in ("nodes", "switches")}
    for key, names in lists.items():
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise UserError(f"`{twice}` is twice in the {key} of `{name[:60]}`", place=at)
    return name, _Switch(nodes=lists["nodes"], switches=lists["switches"], at=at)


def _refuse_cycle(switches: dict[str, _Switch]) -> None:
    """No switch is above itself: switches without any left below them are taken away in turn."""
    below = {name: set(switch.switches) for name, switch in switches.items()}
    above: dict[str, list[str]] = {name: [] for name in switches}
    for name, children in below.items():
        for child in children:
            above[child].append(name)
    free = [name for name, children in below.items() if not children]
    while free:
        name = free.pop()
        del below[name]
        for up in above[name]:
            below[up].discard(name)
            if not below[up]:
                free.append(up)
    if below:
        name = next(iter(below))
        raise UserError(f"switch `{name}` is above itself", place=switches[name].at)
