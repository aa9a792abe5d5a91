"""Matrices of rates as JSON: what is written is read as it was; errors of either form."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from profiler.codec import canonical
from profiler.errors import UserError
from profiler.link_files import links_document, links_from_text, read_link_report, read_links
from profiler.link_files.json_forms import report_of_json
from profiler.link_findings import lost_hosts
from profiler.link_profile import HeldOut, LinkReport, PairTime
from profiler.links import LATENCY_S, Links
from tests.unit.test_link_files import BARE, between, refused


def own(**changed: object) -> str:
    tree: dict[str, object] = {
        "format_version": "1.0",
        "kind": "links",
        "hosts": ["node1", "node2"],
        "bytes_per_s": [[None, 12e9], [11.5e9, None]],
    }
    tree.update(changed)
    return json.dumps({key: value for key, value in tree.items() if value is not ...}, indent=1)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("inside", [math.inf, 300e9])
def test_written_links_are_read_as_they_were(tmp_path: Path, inside: float, ends: bool) -> None:
    rates = np.array([[inside, 12e9, 1e10 / 3], [11e9, inside, 9e9], [8e9, 7e9, inside]])
    latency = np.array([[0.0, 2e-6, 3e-6], [1e-6, 1e-7, 5e-6], [4e-6, 2e-6, 0.0]])
    out = np.array([13e9, 12e9, 9e9]) if ends else None
    links = Links(
        hosts=("a", "b", "c"), bytes_per_s=rates, latency_s=latency, out_rate=out, in_rate=out
    )
    path = tmp_path / "links.json"
    path.write_text(canonical(links_document(links)))
    read = read_links(path)
    assert read.hosts == links.hosts
    assert read.source == str(path)
    assert np.array_equal(read.bytes_per_s, rates)
    assert np.array_equal(read.latency_s, latency)
    for found in (read.out_rate, read.in_rate):
        assert found is None if out is None else np.array_equal(found, out)  # type: ignore[arg-type]
    assert canonical(links_document(read)) == path.read_text()


def test_latency_is_one_number_a_matrix_or_the_usual() -> None:
    assert links_from_text(own(), "f").latency_s.tolist() == [[0, LATENCY_S], [LATENCY_S, 0]]
    assert links_from_text(own(latency_s=2e-6), "f").latency_s.tolist() == [[0, 2e-6], [2e-6, 0]]
    table = [[1e-6, 3e-6], [4e-6, None]]
    read = links_from_text(own(latency_s=table), "f").latency_s.tolist()
    assert read == [[1e-6, 3e-6], [4e-6, 0]]


def test_a_newer_minor_version_may_have_more_keys() -> None:
    assert links_from_text(own(format_version="1.3", site="here"), "f").hosts == ("node1", "node2")


def test_a_bare_matrix_is_in_gigabytes_and_its_diagonal_is_nothing() -> None:
    for text in (BARE, BARE.replace("19.6", "NaN"), "\ufeff" + BARE, BARE.replace("gpus", "hosts")):
        links = links_from_text(text, "f")
        assert links.hosts == ("node1", "node2")
        assert between(links) == [12, 11.5]
        assert np.diag(links.bytes_per_s).tolist() == [math.inf, math.inf]
        assert np.diag(links.latency_s).tolist() == [0, 0]


OWN_ERRORS = [
    (own(kind=...), "f: key `kind` is missing"),
    (own(kind="plan"), "f: this is a `plan` file, not a `links` file"),
    (own(format_version=1), "f: `format_version` is not a version"),
    (own(format_version="2.0"), "f: links format 2.0 is not one this version reads (1.1)"),
    (own(latencies=1), "f:18: unknown key `latencies`"),
    (own(hosts=...), "f: key `hosts` is missing"),
    (own(hosts="node1"), "f:4: `hosts` is not a list"),
    (own(hosts=[]), "f:4: there are no hosts"),
    (own(hosts=["node1", 2]), "f:6: `hosts.1` is not a name"),
    (own(hosts=["node1", " "]), "f:4: a host has no name"),
    (own(hosts=["node1", "node1"]), "f:4: host `node1` is listed twice"),
    (own(bytes_per_s=[[None, 12e9], 3]), "f:13: `bytes_per_s.1` is not a list of numbers"),
    (own(bytes_per_s=[[None, "12"], [3, 4]]), "f:11: `bytes_per_s.0.1` is not a number"),
    (own(bytes_per_s=[[None, True], [3, 4]]), "f:11: `bytes_per_s.0.1` is not a number"),
    (own(bytes_per_s=[[None, 12e9]]), "f:9: the table has 1 row for 2 hosts"),
    (own(bytes_per_s=[[1e9] * 2] * 3), "f:13: the table has 3 rows for 2 hosts"),
    (own(bytes_per_s=[[None, 12e9], [12e9]]), "f:13: the row of `node2` has 1 number, but there "
                                              "are 2 hosts"),
    (own(bytes_per_s=[[None, None], [12e9, None]]), "f:9: there is no rate from `node1` to "
                                                    "`node2`"),
    (own(bytes_per_s=[[None, 24.1], [12e9, None]]), "f:9: the rate from `node1` to `node2` is "
                                                    "24.1 bytes/s"),
    (own(bytes_per_s=[[None, 10**400], [12e9, 1]]), "f:9: the rate from `node1` to `node2` is "
                                                    "inf bytes/s"),
    (own(bytes_per_s=[[-1, 12e9], [12e9, None]]), "f:10: the rate inside `node1` is negative: -1"),
    (own(latency_s=-1), "f:18: the latency from `node1` to `node2` is -1 s"),
    (own(latency_s="5us"), "f:18: `latency_s` is not a number"),
    (own(latency_s=None), "f:18: there is no latency from `node1` to `node2`"),
    (own(latency_s=[[0, 1e-6], [20, 0]]), "f:23: the latency from `node2` to `node1` is 20 s"),
    (own(latency_s=[[0, 1e-6]]), "f:19: the table has 1 row for 2 hosts"),
    (own(out_bytes_per_s=[12e9]), "f:18: `out_bytes_per_s` has 1 numbers, but there are 2 hosts"),
    (own(in_bytes_per_s=[12e9, 0]), "f:20: there is no rate of `node2` in `in_bytes_per_s`"),
    ('{"kind": "links",', "f:1: not JSON: expecting property name enclosed in double quotes"),
    ('{"gpus": [], "gpus": []}', "f: key `gpus` is given twice"),
    ('{"gpus": ' + "9" * 5000 + "}", "f: a number is too long to read"),
    ("[" * 200_000, "f: nested too deeply"),
    (BARE.replace("12", "0"), "f:4: there is no rate from `node1` to `node2`"),
    (BARE.replace("\n", " "), None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), OWN_ERRORS)
def test_json_that_is_wrong_is_told_by_its_line(text: str, message: str | None) -> None:
    if message is None:
        links_from_text(text, "f")
    else:
        assert str(refused(text)) == message


def test_a_json_error_of_one_line_and_of_a_large_file_needs_no_search() -> None:
    assert refused(BARE.replace("12", "0").replace("\n", "")).place == "f:1"
    assert refused(BARE.replace("12", " " * 300_000 + "0")).place == "f"


REPORT = LinkReport(
    nics=("eth0",),
    backend="gloo",
    pairs=(
        PairTime(
            source="a",
            target="b",
            nic="eth0",
            points=((4, 5e-5), (1 << 20, 9e-3)),
            latency_s=5e-5,
            bytes_per_s=1.2e8,
            spread=0.01,
        ),
    ),
    groups=(),
    flows=(),
    lost=("c",),
    failed=(),
    held_out=HeldOut(pairs=3, median=0.02, p90=0.05),
    findings=lost_hosts(("c",), ()),
)


def test_what_was_measured_is_kept_beside_the_matrices(tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    read = links_from_text(own(), "f")
    assert report_of_json(own(), "f") is None
    assert report_of_json("a,b\n", "f") is None
    path.write_text(canonical(links_document(read, REPORT)))
    assert read_link_report(path) == REPORT
    assert read_links(path).hosts == read.hosts
    old = own(format_version="1.0", more=1)
    with pytest.raises(UserError, match="unknown key `more`"):
        links_from_text(old, "f")
