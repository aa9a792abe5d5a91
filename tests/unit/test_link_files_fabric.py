"""Switches above hosts by Slurm's topology.conf, host lists, and any change of a fabric's file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UserError
from profiler.link_files import Fabric, HostPort, fabric_from_text
from profiler.link_files.hostlist import expand
from tests.fuzz import changed, fuzz

IB = (Path(__file__).parent / "links" / "ibnetdiscover.txt").read_text()
SLURM = """\
# topology.conf
SwitchName=s0 Nodes=tux[0-1]   LinkSpeed=900  # first
SwitchName=s1 Nodes=tux2,tux3
switchname = s2 nodes=tux[4-5]
SwitchName=s3 \\
    Nodes=tux[6-7]
SwitchName=s4 Switches=s[0-1]
SwitchName=s5 Switches=s[2-3]
SwitchName=s6 Switches=s[4,5]
"""


def refused(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        fabric_from_text(text, "f")
    return caught.value


def tux(*numbers: int) -> list[str]:
    return [f"tux{k}" for k in numbers]


def test_levels_of_a_tree() -> None:
    fabric = fabric_from_text(SLURM, "f")
    assert fabric.ports["tux6"] == (HostPort(switch="s3"),)
    assert fabric.parents == {
        "s0": ("s4",), "s1": ("s4",), "s2": ("s5",), "s3": ("s5",), "s4": ("s6",), "s5": ("s6",),
        "s6": (),
    }  # fmt: skip
    assert fabric.tiers(tux(0, 1, 2, 7)).tolist() == [
        [0, 1, 2, 3], [1, 0, 2, 3], [2, 2, 0, 3], [3, 3, 3, 0]
    ]  # fmt: skip
    assert fabric.tiers([]).shape == (0, 0)
    assert fabric.tiers(["tux1", "tux1.cluster.local"]).tolist() == [[0, 0], [0, 0]]


def test_switches_with_several_parents_and_islands() -> None:
    many = "SwitchName=s[0] Nodes=tux[0-3]\n"
    text = "SwitchName=a Nodes=tux[0-3]\nSwitchName=b Nodes=tux[4-7]\nSwitchName=c Nodes=tux8\n"
    tops = "".join(f"SwitchName=t{k} Switches=a,b\n" for k in range(3))
    fabric = fabric_from_text(text + tops, "f")
    assert fabric.parents["a"] == ("t0", "t1", "t2")
    assert fabric.tiers(tux(0, 4, 8)).tolist() == [[0, 2, -1], [2, 0, -1], [-1, -1, 0]]
    assert fabric_from_text(many, "f").leaves("tux3") == ("s[0]",)


def test_a_leaf_nearer_the_root_than_another() -> None:
    text = "SwitchName=a Nodes=x\nSwitchName=b Nodes=y\nSwitchName=c Switches=a\n"
    fabric = fabric_from_text(f"{text}SwitchName=d Switches=b,c Nodes=z\n", "f")
    assert fabric.tiers(["x", "y", "z"]).tolist() == [[0, 3, 2], [3, 0, 2], [2, 2, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tux2,tux3", "tux[2-"), "f:3: `tux[2-` is no list of names: its brackets do not match"),
        (("tux2,tux3", "tux2,,tux3"), "f:3: `tux2,,tux3` is no list of names: a name is empty"),
        (("tux2,tux3", "t[3-2]"), "f:3: `t[3-2]` is no list of names: the range `3-2` is empty"),
        (("tux2,tux3", "t[a-b]"), "f:3: `t[a-b]` is no list of names: `a-b` is no number and no "
                                  "range"),
        (("tux2,tux3", "t[0-1000000]"), "f:3: `t[0-1000000]` is no list of names: it has more than "
                                        "1000000 names"),
        (("tux2,tux3", "t[0-99999]x[0-99]"), "f:3: `t[0-99999]x[0-99]` is no list of names: it has "
                                             "more than 1000000 names"),
        (("tux2,tux3", "tux2,tux2"), "f:3: `tux2` is twice in the nodes of `s1`"),
        (("Nodes=tux2,tux3", ""), "f:3: switch `s1` has neither nodes nor switches"),
        (("Nodes=tux2,tux3", "Node=tux2"), "f:3: unknown key `Node`"),
        (("Nodes=tux2,tux3", "nodes=a NODES=b"), "f:3: key `NODES` is given twice"),
        (("SwitchName=s1", ""), "f:3: the line names no switch"),
        (("SwitchName=s1", "BlockName=s1"), "f:3: `BlockName` is of a topology that is not read"),
        (("SwitchName=s1", "SwitchName=s0"), "f:3: switch `s0` is given twice"),
        (("s[2-3]", "s[2-3],s7"), "f:8: switch `s7` has no line"),
        (("s[2-3]", "s[2-3,6]"), "f:8: switch `s5` is above itself"),
    ],
)  # fmt: skip
def test_a_topology_that_is_wrong_is_told_by_its_line(
    change: tuple[str, str], message: str
) -> None:
    assert str(refused(SLURM.replace(*change))) == message


def test_a_line_that_goes_on_is_told_by_its_first() -> None:
    assert str(refused(SLURM.replace("tux[6-7]", "tux["))).startswith("f:5: ")


def test_host_lists() -> None:
    assert expand("a[08-10,2]b,c,d[1-2]x[0,3]", "f") == (
        "a08b", "a09b", "a10b", "a2b", "c", "d1x0", "d1x3", "d2x0", "d2x3"
    )  # fmt: skip
    assert len(expand(",".join(f"n{k}" for k in range(20_000)), "f")) == 20_000


def test_an_unknown_host_is_told() -> None:
    with pytest.raises(UserError, match="host `tux9` is on no switch") as caught:
        fabric_from_text(SLURM, "f").tiers(["tux9"])
    assert "did you mean" in str(caught.value.hint)
    ambiguous = fabric_from_text("SwitchName=a Nodes=x.one,x.two\n", "f")
    for host in ("x", "x.three"):
        with pytest.raises(UserError, match="is on no switch"):
            ambiguous.leaves(host)


def check(fabric: Fabric) -> None:
    """Levels are symmetric, and 0 on the diagonal alone."""
    hosts = list(fabric.ports)
    tiers = fabric.tiers(hosts)
    assert (tiers == tiers.T).all()
    assert [int(t) for t in tiers.diagonal()] == [0] * len(hosts)
    assert int((tiers == 0).sum()) == len(hosts)


WORDS = st.sampled_from(
    ["", "\n", "[", "]", "-", ",", "=", "s[0-9]", "Nodes=", "SwitchName=", "S-0a", '"', "#", "\\"]
) | st.text(max_size=4)  # fmt: skip


@fuzz
@given(
    base=st.sampled_from([SLURM, IB]),
    changes=st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 9), WORDS), max_size=4),
)
def test_any_change_of_a_file_gives_a_fabric_or_a_user_error(
    base: str, changes: list[tuple[int, int, str]]
) -> None:
    error: UserError | None = None
    try:
        fabric = fabric_from_text(changed(base, changes), "f")
    except UserError as e:
        error = e
    if error is not None:
        assert str(error.place).startswith("f")
    else:
        check(fabric)


@fuzz
@given(text=st.text(max_size=80))
def test_any_text_gives_a_user_error(text: str) -> None:
    refused(text)


@fuzz
@given(text=st.text(alphabet="ab0189[],-", max_size=24))
def test_any_host_list_gives_names_or_a_user_error(text: str) -> None:
    error: UserError | None = None
    try:
        names = expand(text, "f")
    except UserError as e:
        error = e
    if error is not None:
        assert error.place == "f"
    else:
        assert names
