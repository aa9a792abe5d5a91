"""Matrices of rates as JSON: our own form, and a bare matrix in GB/s.

Our own form, which `links_document` writes:

    {"format_version": "1.0", "kind": "links", "hosts": ["node1", "node2"],
     "bytes_per_s": [[null, 24.1e9], [23.8e9, null]],
     "latency_s": 5e-6}

`latency_s` is one number between all nodes or a matrix, and may be left out; the diagonal is the
link inside a node, null where it was not measured; `out_bytes_per_s` and `in_bytes_per_s`, what
each node sends and receives at once with all its NICs, may be added; from version 1.1 on
`slowdown`, what each takes for the same computation relative to the one that was profiled, and
`measured`, what `meshwright profile --links` saw (`link_profile.LinkReport`).

The bare form: `{"gpus": [names], "bandwidth": [[GB/s]]}`, GB of 1e9 bytes, one way from the row to
the column; its diagonal is not read, and `hosts` may stand for `gpus`.
"""

import math
from typing import Any

import numpy as np

from profiler.codec import build, to_plain
from profiler.errors import UserError, other_kind
from profiler.link_files.json_file import JsonFile, load
from profiler.link_files.table import (
    HIGHEST,
    LOWEST,
    Cell,
    Matrix,
    latencies_of,
    links_of,
    rate_error,
    rates_of,
)
from profiler.link_profile import LinkReport
from profiler.links import LATENCY_S, Floats, Links
from profiler.names import one_of

FORMAT_VERSION = "1.1"
SLOWEST = 100.0
"""Times as long as the profiled host."""
_KEYS = (
    "format_version", "kind", "hosts", "bytes_per_s", "latency_s", "out_bytes_per_s",
    "in_bytes_per_s", "slowdown", "measured",
)  # fmt: skip


def links_document(links: Links, report: LinkReport | None = None) -> dict[str, Any]:
    """Plain tree of our own form; `codec.canonical` makes it text. The source is left out."""
    tree: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": "links",
        "hosts": list(links.hosts),
        "bytes_per_s": _plain(links.bytes_per_s),
        "latency_s": _plain(links.latency_s),
    }
    for key, values in (
        ("out_bytes_per_s", links.out_rate),
        ("in_bytes_per_s", links.in_rate),
        ("slowdown", links.slowdown),
    ):
        if values is not None:
            tree[key] = [float(value) for value in values]
    if report is not None:
        tree["measured"] = to_plain(report)
    return tree


def _plain(table: Floats) -> list[list[Cell]]:
    return [[float(value) if math.isfinite(value) else None for value in row] for row in table]


def links_of_json(text: str, place: str) -> Links | None:
    """Links of either form; None where the text is JSON of another."""
    tree = load(text, place)
    if not isinstance(tree, dict):
        return None
    file = JsonFile(tree, text, place)
    if "kind" in tree or "bytes_per_s" in tree:
        _check_header(file)
        return _own(file)
    key = next((key for key in ("gpus", "hosts") if key in tree), None)
    if key is None or "bandwidth" not in tree:
        return None
    return links_of(file.matrix("bandwidth", file.hosts(key)), 1e9, place)


def report_of_json(text: str, place: str) -> LinkReport | None:
    """What was measured, where a file of our own form says so; None for any other text."""
    if text.lstrip("\ufeff \t\r\n")[:1] != "{":
        return None
    tree = load(text, place)
    if not isinstance(tree, dict) or tree.get("kind") != "links" or "measured" not in tree:
        return None
    _check_header(JsonFile(tree, text, place))
    return build(LinkReport, tree["measured"], place)


def _check_header(file: JsonFile) -> None:
    kind, version = (file.tree.get(key) for key in ("kind", "format_version"))
    if kind is None:
        raise UserError("key `kind` is missing", hint='`"kind": "links"`', place=file.place)
    if kind != "links":
        raise other_kind(kind, "links", file.place)
    major, _, minor = str(version).partition(".")
    if not (isinstance(version, str) and major.isdecimal() and minor.isdecimal()):
        hint = f'this version writes `"format_version": "{FORMAT_VERSION}"`'
        raise UserError("`format_version` is not a version", hint=hint, place=file.place)
    if major != FORMAT_VERSION.partition(".")[0]:
        raise UserError(
            f"links format {version[:40]} is not one this version reads ({FORMAT_VERSION})",
            hint="upgrade Meshwright",
            place=file.place,
        )
    unknown = next((key for key in file.tree if key not in _KEYS), None)
    newer = int(minor) > int(FORMAT_VERSION.partition(".")[2])
    if unknown is not None and not newer:  # a newer minor may know more
        hint = one_of(unknown, _KEYS, "known keys")
        raise UserError(f"unknown key `{unknown[:60]}`", hint=hint, place=file.at(unknown))


def _own(file: JsonFile) -> Links:
    hosts = file.hosts("hosts")
    rates = rates_of(file.matrix("bytes_per_s", hosts), 1.0)
    for i, inside in enumerate(np.diag(rates)):
        if math.isnan(inside):
            rates[i, i] = np.inf
        elif not LOWEST <= inside <= HIGHEST:
            at = file.at("bytes_per_s", i, i)
            raise rate_error(float(inside), 1.0, f"inside `{hosts[i]}`", at)
    return Links(
        hosts=hosts,
        bytes_per_s=rates,
        latency_s=_latencies(file, hosts),
        source=file.place,
        out_rate=_ends(file, "out_bytes_per_s", hosts),
        in_rate=_ends(file, "in_bytes_per_s", hosts),
        slowdown=_slowdown(file, hosts),
    )


def _latencies(file: JsonFile, hosts: tuple[str, ...]) -> Floats:
    given = file.tree.get("latency_s", LATENCY_S)
    if isinstance(given, list):
        return latencies_of(file.matrix("latency_s", hosts))
    value, n = file.number(given, "latency_s"), len(hosts)
    rows: list[list[Cell]] = [[None if i == j else value for j in range(n)] for i in range(n)]
    return latencies_of(Matrix(hosts=hosts, rows=rows, place=lambda i: file.at("latency_s")))


def _ends(file: JsonFile, key: str, hosts: tuple[str, ...]) -> Floats | None:
    """What each node sends or receives at once, where the file says so."""
    rates = _each(file, key, hosts)
    for i, rate in enumerate([] if rates is None else rates):
        if not LOWEST <= rate <= HIGHEST:
            raise rate_error(float(rate), 1.0, f"of `{hosts[i]}` in `{key}`", file.at(key, i))
    return rates


def _slowdown(file: JsonFile, hosts: tuple[str, ...]) -> Floats | None:
    """What each node takes for the same work, where the file says so."""
    factors = _each(file, "slowdown", hosts)
    for i, factor in enumerate([] if factors is None else factors):
        if not 1 / SLOWEST <= factor <= SLOWEST:
            raise UserError(
                f"the slow-down of `{hosts[i]}` is {factor:g}",
                hint=f"a number from {1 / SLOWEST:g} to {SLOWEST:g}; 1: as the profiled host",
                place=file.at("slowdown", i),
            )
    return factors


def _each(file: JsonFile, key: str, hosts: tuple[str, ...]) -> Floats | None:
    """A number of each host, not a number where it is null; None where the file has no such key."""
    if file.tree.get(key) is None:
        return None
    cells = [file.number(value, key, i) for i, value in enumerate(file.list(key))]
    if len(cells) != len(hosts):
        message = f"`{key}` has {len(cells)} numbers, but there are {len(hosts)} hosts"
        raise UserError(message, place=file.at(key))
    return np.array([math.nan if value is None else value for value in cells])
