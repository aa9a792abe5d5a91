"""Matrices of rates as CSV and from mpiGraph, and any change of any form."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UserError
from profiler.link_files import links_from_text, read_links
from profiler.links import LATENCY_S, Links
from tests.fuzz import changed, fuzz

MPIGRAPH = (Path(__file__).parent / "links" / "mpigraph.txt").read_text()
CSV = """\
# unit: Gbit/s
,node1,node2,node3
node1,,96,88
node2,92,,84
node3,80,72,
"""
BARE = """\
{
 "gpus": ["node1", "node2"],
 "bandwidth": [
  [19.6, 12],
  [11.5, 19.6]
 ]
}
"""
OWN = """\
{
 "format_version": "1.0",
 "kind": "links",
 "hosts": ["node1", "node2"],
 "bytes_per_s": [[null, 12e9], [11.5e9, null]],
 "latency_s": 1e-6
}
"""


def between(links: Links) -> list[float]:
    """Rates between unlike hosts, GB/s."""
    n = len(links.hosts)
    return [float(r) / 1e9 for r in links.bytes_per_s[~np.eye(n, dtype=np.bool_)]]


def refused(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        links_from_text(text, "f")
    return caught.value


# CSV


@pytest.mark.parametrize(
    "text",
    [
        CSV,
        CSV.replace("\n,node1", "\nhost,node1"),
        CSV.replace("\n,node1", "\nnode1"),
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        CSV.replace("\n", "\r\n"),
        "\ufeff" + CSV,
        CSV.replace("Gbit/s", "Gbps").replace("node1,,", '"node1",-,'),
        CSV.replace("72,\n", "72,nan\n\n# done\n"),
        CSV.replace("node1,node2,node3\n", "node1,node2,node3,\n").replace("88", "88,"),
        "\n".join(CSV.splitlines()[k] for k in (0, 1, 4, 2, 3)),
    ],
)
def test_a_csv_matrix_in_its_many_ways(text: str) -> None:
    links = links_from_text(text, "f")
    assert links.hosts == ("node1", "node2", "node3")
    assert between(links) == [12, 11, 11.5, 10.5, 10, 9]
    assert links.latency_s[0, 1] == LATENCY_S


@pytest.mark.parametrize(
    ("unit", "rate"),
    [("", 96e9), ("# unit: GB/s\n", 96e9), ("#unit:MB/s\n", 96e6), ("# Unit: MiB/s\n", 96 * 2**20),
     ("# unit: Mbit/s\n", 12e6),
     ("# by hand, in May: 3\n", 96e9)],
)  # fmt: skip
def test_the_unit_of_a_csv_matrix(unit: str, rate: float) -> None:
    links = links_from_text(CSV.replace("# unit: Gbit/s\n", unit), "f")
    assert links.bytes_per_s[0, 1] == rate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("Gbit/s", "furlongs"), "f:1: unknown unit `furlongs`"),
        (("96", ""), "f:3: there is no rate from `node1` to `node2`"),
        (("84", "0"), "f:4: there is no rate from `node2` to `node3`"),
        (("84", "nan"), "f:4: there is no rate from `node2` to `node3`"),
        (("84", "-8"), "f:4: the rate from `node2` to `node3` is negative: -8"),
        (("84", "inf"), "f:4: the rate from `node2` to `node3` is inf bytes/s"),
        (("84", "84e9"), "f:4: the rate from `node2` to `node3` is 1.05e+19 bytes/s"),
        (("84", "fast"), "f:4: `fast` is not a number"),
        (("84", "8_4"), "f:4: `8_4` is not a number"),
        ((",84", ""), "f:4: the row of `node2` has 2 numbers, but there are 3 hosts"),
        (("84", "84,1"), "f:4: the row of `node2` has 4 numbers, but there are 3 hosts"),
        (("\nnode2", "\nnode1"), "f:4: host `node1` has two rows"),
        (("\nnode2", "\nnode02"), "f:4: the row of `node02` is of no host of the header"),
        (("node2,node3\n", "node2,node2\n"), "f:2: host `node2` is listed twice"),
        (("node2,node3\n", "node2,,node3\n"), "f:2: a host has no name"),
        (("node3,80,72,\n", ""), "f:4: host `node3` has no row"),
    ],
)
def test_csv_that_is_wrong_is_told_by_its_line(change: tuple[str, str], message: str) -> None:
    assert str(refused(CSV.replace(*change, 1))) == message


def test_a_csv_header_alone_is_no_matrix() -> None:
    assert str(refused("a,b\n")) == "f:1: there are no rows of rates"
    assert str(refused(",,\na,1\n")) == "f:1: there are no hosts"
    assert str(refused("a,b\na,1\r2\n")).startswith("f:2: not CSV: ")


# mpiGraph


def test_the_slower_end_of_an_mpigraph_transfer_counts() -> None:
    for text in (MPIGRAPH, MPIGRAPH.expandtabs()):
        links = links_from_text(text, "f")
        assert links.hosts == ("node1", "node2", "node3")
        mib = links.bytes_per_s / 2**20
        assert mib[~np.eye(3, dtype=np.bool_)] == pytest.approx(
            [11990, 11000, 11490, 10490, 11800, 9000]
        )


def test_the_sends_of_mpigraph_stand_alone() -> None:
    links = links_from_text(MPIGRAPH[: MPIGRAPH.index("Recv max")], "f")
    assert links.bytes_per_s[1, 2] == 10500 * 2**20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("node2:1", "node1:1"), "f:14: host `node1` ran several ranks"),
        (("10500.000", "0.000"), "f:16: there is no rate from `node2` to `node3`"),
        (("10500.000", "fast"), "f:16: `fast` is not a number"),
        (("10500.000", ""), "f:16: the row of `node2:1` has 2 numbers for 3 hosts"),
        (("10490.000", "nan"), "f:16: there is no rate from `node2` to `node3`"),
        (("node3:2 to", "node3:2 is"), "f:17: the Send table has 2 rows for 3 hosts"),
        (("node3:2 from", ""), "f:25: the Recv table has 2 rows for 3 hosts"),
    ],
)
def test_mpigraph_output_that_is_wrong_is_told_by_its_line(
    change: tuple[str, str], message: str
) -> None:
    count = -1 if "node2:1" in change else 1
    assert str(refused(MPIGRAPH.replace(*change, count))) == message


def test_mpigraph_output_that_is_cut_off() -> None:
    assert str(refused(MPIGRAPH[:100])) == ("f: mpiGraph's output ends before its table of sends")
    cut = MPIGRAPH[: MPIGRAPH.index("node3:2 from")]
    assert str(refused(cut)) == "f:25: the Recv table has 2 rows for 3 hosts"
    other = MPIGRAPH.replace("Recv\tnode1", "Recv\tnode9").replace("node1:0 from", "node9:0 from")
    assert str(refused(other)) == "f: the tables of sends and receives are of other hosts"


# All forms


@pytest.mark.parametrize("text", ["", "hello", "[1, 2]", '{"a": 1}', "\0", "# a,b\n"])
def test_another_form_is_answered_with_those_that_are_read(text: str) -> None:
    error = refused(text)
    assert str(error) == f"f: {'this is no table of links' if text else 'the file is empty'}"
    assert all(word in str(error.hint) for word in ("gpus", "CSV", "mpiGraph", "links"))


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_links(tmp_path / "links.csv")


WORDS = st.sampled_from(
    ["", "0", "-1", "nan", "NaN", "1e400", "null", "[]", "{", "node1", ",", ";", "\t", "\n", '"',
     "node2:1", "#", "unit: B/s", "to", "Send"]
) | st.text(max_size=4)  # fmt: skip


@fuzz
@given(
    base=st.sampled_from([CSV, BARE, OWN, MPIGRAPH]),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 8), WORDS), max_size=4),
)
def test_any_change_of_a_file_gives_links_or_a_user_error(
    base: str, changes: list[tuple[int, int, str]]
) -> None:
    error: UserError | None = None
    try:
        links = links_from_text(changed(base, changes), "f")
    except UserError as e:
        error = e
    if error is not None:
        assert str(error.place).startswith("f")
    else:
        assert between(links) == [r for r in between(links) if r > 0]


@fuzz
@given(text=st.text(max_size=80))
def test_any_text_gives_a_user_error(text: str) -> None:
    refused(text)
