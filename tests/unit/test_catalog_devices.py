"""Devices and node types against published figures: what a wrong digit or unit would break."""

from pathlib import Path
from typing import Any

import pytest

from profiler import catalog
from profiler.catalog.load import folder, names
from profiler.catalog.node_types import load_node_file, node_group, split_node_name
from profiler.codec import parse, replace, to_plain
from profiler.errors import UserError

GIB = 2**30
GPUS = tuple(name for name in names("device") if name != "cpu")
# Vendors' dense peaks in TFLOP/s: 16-bit, fp8, fp4, fp32; 0 where the device has no such unit.
DENSE = {
    "a100-40": (312, 0, 0, 19.5),
    "a100-80": (312, 0, 0, 19.5),
    "a100-pcie-40": (312, 0, 0, 19.5),
    "a100-pcie-80": (312, 0, 0, 19.5),
    "a10g": (70, 0, 0, 35),
    "b200": (36_000 / 16, 72_000 / 16, 144_000 / 16, 75),
    "b300": (36_000 / 16, 72_000 / 16, 105_000 / 8, 75),
    "gb200": (360_000 / 144, 720_000 / 144, 1_440_000 / 144, 80),
    "gb300": (360_000 / 144, 720_000 / 144, 1_080_000 / 72, 80),
    "h100": (1979 / 2, 3958 / 2, 0, 67),
    "h100-96": (1979 / 2, 3958 / 2, 0, 67),
    "h100-pcie": (1513 / 2, 3026 / 2, 0, 51),
    "h20": (148, 296, 0, 44),
    "h200": (1979 / 2, 3958 / 2, 0, 67),
    "h800": (1979 / 2, 3958 / 2, 0, 67),
    "l40s": (362.05, 733, 0, 91.6),
    "mi250x": (383 / 2, 0, 0, 47.9 / 2),
    "mi300x": (1307.4, 2614.9, 0, 163.4),
    "mi325x": (1307.4, 2614.9, 0, 163.4),
    "mi355x": (2516.6, 5033.2, 10_066.3, 157.3),
    "rtx3090": (71, 0, 0, 35.6),
    "rtx4090": (165.2, 330.3, 0, 82.6),
    "t4": (65, 0, 0, 8.1),
    "v100": (125, 0, 0, 15.7),
    "v100-16": (125, 0, 0, 15.7),
}
# Nominal GB, which on these devices are GiB, and GB/s of the memory.
MEMORY = {
    "a100-40": (40, 1555), "a100-80": (80, 2039), "a100-pcie-40": (40, 1555),
    "a100-pcie-80": (80, 1935), "a10g": (24, 600), "b200": (180, 8000), "b300": (288, 8000),
    "gb200": (186, 8000), "gb300": (288, 8000), "h100": (80, 3350), "h100-96": (96, 2400),
    "h100-pcie": (80, 2039), "h20": (96, 4000), "h200": (141, 4800), "h800": (80, 3350),
    "l40s": (48, 864), "mi250x": (64, 1638.4), "mi300x": (192, 5300), "mi325x": (256, 6000),
    "mi355x": (288, 8000), "rtx3090": (24, 936), "rtx4090": (24, 1008), "t4": (16, 320),
    "v100": (32, 900), "v100-16": (16, 900),
}  # fmt: skip
# Gbit/s that leave one node.
NODE_GBITS = {
    "amd-mi300x": 3200, "aws-g4dn-12xlarge": 50, "aws-g5-48xlarge": 100, "aws-g6e-48xlarge": 400,
    "aws-p4d": 400, "aws-p4de": 400, "aws-p5": 3200, "aws-p5e": 3200, "aws-p5en": 3200,
    "aws-p6-b200": 3200, "aws-p6-b300": 6400, "azure-mi300x": 3200, "azure-ndmv4": 1600,
    "azure-ndv4": 1600, "azure-ndv5": 3200, "deepseek-h800": 3200, "dgx-a100": 1600,
    "dgx-a100-40gb": 1600, "dgx-b200": 3200, "dgx-b300": 6400, "dgx-h100": 3200, "frontier": 800,
    "gb200-nvl72": 1600, "gb300-nvl72": 3200, "gcp-a3-high": 800, "gcp-a3-mega": 1600,
    "gcp-a3-ultra": 3200, "grand-teton": 3200, "hgx-h200": 3200, "jean-zay-a100": 400,
    "l40s-ethernet": 100, "rtx3090-box": 10, "rtx4090-box": 25, "selene": 1600,
}  # fmt: skip


def sources(tree: Any) -> list[str]:
    """All sources of a file; fails on a number that stands without one."""
    if isinstance(tree, dict):
        if tree.keys() == {"value", "source"}:
            return [tree["source"]]
        return [s for value in tree.values() for s in sources(value)]
    assert isinstance(tree, str | bool), tree
    return []


def refused(text: str) -> tuple[str, str | None]:
    with pytest.raises(UserError) as caught:
        catalog.resolve_cluster(text)
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize(
    "path",
    sorted([*folder("device").glob("*.yaml"), *folder("node").glob("*.yaml")]),
    ids=lambda path: path.stem,
)
def test_every_number_has_a_source_and_the_first_line_describes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree, _ = parse(text, str(path))
    found = sources(tree)
    assert found
    assert all(len(source) > 10 for source in found)
    assert text.startswith("# ")
    assert 10 < len(text.splitlines()[0]) <= 2 + 70  # one or two lines of a listing


@pytest.mark.parametrize("name", GPUS)
def test_peaks_are_the_published_dense_ones(name: str) -> None:
    half, fp8, fp4, fp32 = DENSE[name]
    rates = catalog.load_device(name).device.flops_per_s
    assert rates["fp16"] == pytest.approx(half * 1e12, rel=2e-3)
    assert rates.get("bf16", rates["fp16"]) == rates["fp16"]
    assert rates.get("fp8", 0) == pytest.approx(fp8 * 1e12, rel=2e-3)
    assert rates.get("fp4", 0) == pytest.approx(fp4 * 1e12, rel=2e-3)
    assert rates["fp32"] == pytest.approx(fp32 * 1e12, rel=2e-3)


@pytest.mark.parametrize("name", GPUS)
def test_each_halving_of_the_bits_is_faster(name: str) -> None:
    rates = catalog.load_device(name).device.flops_per_s
    order = [rates[p] for p in ("fp32", "fp16", "fp8", "fp4") if p in rates]
    assert order == sorted(set(order))
    assert max(order) < 2e16  # FLOP/s, not TFLOP/s


@pytest.mark.parametrize("name", GPUS)
def test_memory_is_what_a_process_sees_of_the_nominal(name: str) -> None:
    nominal, rate = MEMORY[name]
    device = catalog.load_device(name).device
    assert 0.85 <= device.memory_bytes / (nominal * GIB) <= 1.0
    assert 0.95 <= device.memory_bytes_per_s / (rate * 1e9) <= 1.0


@pytest.mark.parametrize("name", names("device"))
def test_links_grow_slower_with_distance(name: str) -> None:
    entry = catalog.load_device(name)
    assert entry.device.memory_bytes_per_s > entry.intra.bytes_per_s > entry.nic.bytes_per_s
    assert entry.intra.latency_s < entry.nic.latency_s < 1e-3
    assert 0.3 <= entry.device.gemm_efficiency <= 1  # a T4's power limit holds it at 0.37
    assert 0.5 <= entry.device.memory_efficiency <= 1


def test_siblings_differ_only_where_they_should() -> None:
    h100, h800 = (catalog.load_device(name) for name in ("h100", "h800"))
    assert replace(h800.device, name="h100") == h100.device
    assert h800.intra.bytes_per_s < h100.intra.bytes_per_s / 2
    big, small = (catalog.load_device(name) for name in ("v100", "v100-16"))
    same = replace(small.device, name="v100", memory_bytes=big.device.memory_bytes)
    assert same == big.device


@pytest.mark.parametrize("name", names("node"))
def test_a_node_type_resolves(name: str) -> None:
    cluster = catalog.resolve_cluster(f"{name}-3")
    group = cluster.uniform
    file = load_node_file(name)
    assert cluster.name == f"{name}-3"
    assert (group.num_nodes, group.device.name) == (3, file.device)
    assert cluster.num_devices == 3 * group.devices_per_node
    assert group.intra.bytes_per_s > group.nic.bytes_per_s
    leaves = group.nics_per_node * group.nic.bytes_per_s * 8 / 1e9
    assert leaves == pytest.approx(NODE_GBITS[name])
    assert leaves / 8 * 1e9 < group.devices_per_node * group.intra.bytes_per_s
    assert group.price_per_hour is None


def test_no_node_type_is_another_and_a_number() -> None:
    for name in (*names("node"), *names("device")):
        parts = split_node_name(name)
        assert parts is None or parts[0] not in names("node"), name
    assert not set(names("node")) & {*names("device"), *names("cluster")}


def test_a_catalogued_cluster_of_a_node_type_is_that_type() -> None:
    for name in ("aws-g4dn-12xlarge-4", "aws-p4d-4", "dgx-a100-4"):
        assert catalog.load_cluster(name) == catalog.cluster_from_name(name)


def test_a_part_of_a_node_has_its_share_of_the_nics() -> None:
    part = catalog.resolve_cluster("aws-p5-2x4").uniform
    assert (part.devices_per_node, part.nics_per_node, part.num_rails) == (4, 16, 1)
    assert catalog.resolve_cluster("aws-p4d-1x1").uniform.nics_per_node == 1
    whole = catalog.resolve_cluster("aws-p5-2")
    assert catalog.resolve_cluster("aws-p5-2x8").groups == whole.groups


def test_a_rack_is_one_domain_of_many_nodes() -> None:
    rack = catalog.resolve_cluster("gb200-nvl72-18").uniform
    assert (rack.num_nodes, rack.devices_per_node, rack.devices_per_domain) == (18, 4, 72)
    assert catalog.resolve_cluster("gb200-nvl72-18x2").uniform.devices_per_domain == 36
    assert catalog.resolve_cluster("gb200-18x4").uniform.devices_per_domain == 72
    assert catalog.resolve_cluster("gb200-2x5").uniform.devices_per_domain == 5
    assert catalog.resolve_cluster("gb200-1x72").uniform.domain_devices == 0
    assert catalog.resolve_cluster("h100-2x8").uniform.devices_per_domain == 8


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("aws-p55-4", "no cluster `aws-p55-4` in the catalogue", "did you mean `aws-p5-4`?"),
        ("aws-pp5", "no cluster `aws-pp5` in the catalogue", "did you mean `aws-p5-2`?"),
        ("AWS-P5-4", "no cluster `AWS-P5-4` in the catalogue", "did you mean `aws-p5-4`?"),
        ("aws-p5", "`aws-p5` is a node type, not a cluster",
         "say how many: `aws-p5-2` is two nodes"),
        ("aws-p5-0", "cluster `aws-p5-0` has no devices", None),
        ("aws-p5-2x0", "cluster `aws-p5-2x0` has no devices", None),
        ("aws-p5-2x16", "a node of type `aws-p5` has 8 devices, not 16",
         "take more nodes: `aws-p5-4`"),
        ("aws-p55-2x8", "no device `aws-p55` in the catalogue", "did you mean `aws-p5-2x8`?"),
        ("h10-2x8", "no device `h10` in the catalogue", "did you mean `h100-2x8`?"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_answered_with_the_nearest(
    text: str, message: str, hint: str | None
) -> None:
    assert refused(text) == (message, hint)


def test_an_unknown_node_type_is_named() -> None:
    with pytest.raises(UserError) as caught:
        node_group("dgx-h10", 2)
    assert (caught.value.message, caught.value.hint) == (
        "no node type `dgx-h10` in the catalogue",
        "did you mean `dgx-h100`?",
    )


FILE = """\
name: lab
nodes:
  - node: aws-p5
    count: 2
    price_per_hour: 2.5
  - device: gb200
    count: 3
    devices_per_node: 4
    rails: 2
    domain_devices: 12
  - device: gb200
    count: 3
    devices_per_node: 4
"""


def test_a_cluster_file_takes_node_types_domains_rails_and_prices() -> None:
    first, second, third = catalog.cluster_from_text(FILE, "c.yaml").groups
    assert first == replace(node_group("aws-p5", 2), price_per_hour=2.5)
    assert (second.num_rails, second.devices_per_domain, second.price_per_hour) == (2, 12, None)
    assert (third.num_rails, third.devices_per_domain) == (4, 72)
    keys = {"domain_devices", "rails", "price_per_hour"}
    assert keys <= to_plain(third).keys()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (FILE.replace("aws-p5", "aws-p55"), "c.yaml:3: no node type `aws-p55` in the catalogue"),
        (FILE.replace("rails: 2", "rails: 3"),
         "c.yaml:6: `rails` 3 does not divide the 4 NICs of a node"),
        (FILE.replace("domain_devices: 12", "domain_devices: 10"),
         "c.yaml:6: `domain_devices` 10 is no whole number of nodes with 4 devices each"),
        (FILE.replace("domain_devices: 12", "domain_device: 12"),
         "c.yaml:10: unknown key `domain_device`"),
        (FILE.replace("2.5", "0"),
         "c.yaml:5: `price_per_hour`: input should be greater than 0, not `0`"),
        (FILE.replace("node: aws-p5", "node: 5"),
         "c.yaml:3: `node`: input should be a valid string, not `5`"),
        (FILE.replace("count: 2", "count: 2\n    devices_per_node: 9"),
         "c.yaml:3: a node of type `aws-p5` has 8 devices, not 9"),
    ],
)  # fmt: skip
def test_a_wrong_key_of_a_cluster_file_is_named(text: str, shown: str) -> None:
    with pytest.raises(UserError) as caught:
        catalog.cluster_from_text(text, "c.yaml")
    assert str(caught.value) == shown
