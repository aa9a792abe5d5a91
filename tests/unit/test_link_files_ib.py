"""Switches above hosts as ibnetdiscover prints them."""

from pathlib import Path

import pytest

from profiler.link_files import HostPort, fabric_from_text, read_fabric
from tests.unit.test_link_files_fabric import refused

PATH = Path(__file__).parent / "links" / "ibnetdiscover.txt"
IB = PATH.read_text()
MANUAL = """\
   switchguid=0x5442ba00003080(5442ba00003080)
   Switch  24 "S-005442ba00003080"         # "ISR9024 Voltaire" base port 0 lid 6 lmc 0
   [22]    "H-0008f10403961354"[1](8f10403961355)         # "MT23108 InfiniHost Mellanox Technologies" lid 4 4xSDR
   [10][ext 3]    "S-0008f10400410015"[1]         # "SW-6IB4 Voltaire" lid 3 4xSDR

   Switch  8 "S-0008f10400410015"          # "SW-6IB4 Voltaire" base port 0 lid 3 lmc 0
   [6]     "H-0008f10403960984"[1](8f10403960985)         # "MT23108 InfiniHost Mellanox Technologies" lid 16 4xSDR

   Ca      2 "H-0008f10403960984"          # "MT23108 InfiniHost Mellanox Technologies"
   [1](8f10403960985)     "S-0008f10400410015"[6]         # lid 16 lmc 1 "SW-6IB4 Voltaire" lid 3 4xSDR
   Rt      8 "R-b8e924030000b928"          # "MF0;mamba:Q3400_RA/U2/RT"
   [2](b8e924030000b929)   "S-0008f10400410015"[7]         # lid 9 lmc 0 "SW-6IB4 Voltaire" lid 3 1xXDR
"""  # noqa: E501


def test_rails_spines_and_what_is_no_host() -> None:
    fabric = read_fabric(PATH)
    assert fabric.ports["node01"] == (
        HostPort(switch="leaf1", hca="mlx5_0", port=1),
        HostPort(switch="leaf2", hca="mlx5_1", port=1),
    )
    assert sorted(fabric.ports) == ["node01", "node02", "node03", "node04", "node05", "ufm01"]
    spines = ("spine1", "spine2")
    assert fabric.parents == {
        "leaf1": spines, "leaf2": spines, "leaf3": spines, "spine1": (), "spine2": ()
    }  # fmt: skip
    assert fabric.joined["spine1"] == ("leaf1", "leaf2", "leaf3")


def test_levels_over_the_nearest_rails() -> None:
    fabric = fabric_from_text(IB, "f")
    hosts = ["node01", "node02", "node03", "node04", "ufm01"]
    assert fabric.tiers(hosts).tolist() == [
        [0, 1, 1, 2, 2], [1, 0, 1, 2, 2], [1, 1, 0, 2, 2], [2, 2, 2, 0, 2], [2, 2, 2, 2, 0]
    ]  # fmt: skip


def test_switches_or_adapters_alone_tell_the_same() -> None:
    whole = fabric_from_text(IB, "f")
    switches = fabric_from_text(IB[: IB.index("caguid")], "f")
    assert (switches.ports, switches.parents) == (whole.ports, whole.parents)
    adapters = fabric_from_text(IB[IB.index("caguid") :], "f")
    assert adapters.ports == whole.ports


def test_the_sample_of_the_manual() -> None:
    fabric = fabric_from_text(MANUAL, "f")
    one, other = "H-0008f10403961354", "H-0008f10403960984"
    assert fabric.ports == {
        other: (HostPort(switch="SW-6IB4 Voltaire", port=1),),
        one: (HostPort(switch="ISR9024 Voltaire", port=1),),
    }
    assert fabric.tiers([one, other]).tolist() == [[0, 2], [2, 0]]


def test_switches_of_one_name_are_told_apart() -> None:
    boards = IB.replace("leaf1:MQM8790/U1", "core:CS7500/L01").replace(
        "leaf2:MQM8790/U1", "core:CS7500/L02"
    )
    assert fabric_from_text(boards, "f").leaves("node01") == ("core:CS7500/L01", "core:CS7500/L02")
    alike = IB.replace("leaf1:", "leaf2:")
    assert fabric_from_text(alike, "f").leaves("node01") == (
        "S-b8cef603000000a0", "S-b8cef603000000a1"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: this describes no switches"),
        (IB.replace('"H-0c42a10300a1b2c1"[1]', '"H-<redacted>"[1]'),
         "f:12: the line of a node or port cannot be read"),
        ("[1] \"S-0a\"[2]\nSwitch 4 \"S-0a\"\n", "f:1: a port comes before its node"),
        ('Switch 4 "S-0a"\n[1] "S-0b"[1]\n', "f: no host is on a switch of the fabric"),
    ],
)  # fmt: skip
def test_an_output_that_is_wrong_is_told_by_its_line(text: str, message: str) -> None:
    assert str(refused(text)) == message
