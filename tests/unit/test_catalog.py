"""Catalogue: every file loads, every number has its source, names resolve, faults are named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler import catalog
from profiler.catalog.load import MODEL_ALIASES, folder, load_model_file, names
from profiler.codec import parse
from profiler.errors import UserError
from profiler.huggingface import FAMILIES, known_keys
from tests.fuzz import fuzz

LAB = """\
name: lab
nodes:
  - device: h100
    count: 2
    devices_per_node: 8
"""
OWN = """\
name: own
nodes:
  - device:
      name: x1
      memory_bytes: 1000000000
      flops_per_s: {bf16: 1e12}
      memory_bytes_per_s: 1e9
      gemm_efficiency: 0.5
      memory_efficiency: 0.5
      launch_s: 1e-6
    count: 1
    devices_per_node: 2
    intra: {name: a, bytes_per_s: 1e9, latency_s: 1e-6}
    nic: {name: b, bytes_per_s: 1e8, latency_s: 1e-5}
"""
# Published totals, as the models' pages and papers give them.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "qwen2-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "dots.llm1": 142_774_373_888,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "tiny-llama": 5_935_360,
}


def error_of(text: str, place: str = "c.yaml") -> UserError:
    with pytest.raises(UserError) as caught:
        catalog.cluster_from_text(text, place)
    return caught.value


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_its_published_number_of_parameters(name: str) -> None:
    model = catalog.load_model(name)
    assert model.num_params == PUBLISHED[name]
    assert load_model_file(name).num_params.value == PUBLISHED[name]
    assert model.name == name


def test_a_model_file_holds_only_keys_that_are_read() -> None:
    for name in names("model"):
        assert set(load_model_file(name).config) <= known_keys(catalog.load_model(name).family), (
            name
        )


def test_every_family_is_catalogued_and_aliases_point_somewhere() -> None:
    assert {catalog.load_model(name).family for name in names("model")} == set(FAMILIES)
    assert catalog.load_model("llama3-405b").num_params == PUBLISHED["llama3.1-405b"]
    assert set(MODEL_ALIASES.values()) <= set(names("model"))
    assert not set(MODEL_ALIASES) & set(names("model"))


@pytest.mark.parametrize("name", names("device"))
def test_a_device_is_sound(name: str) -> None:
    entry = catalog.load_device(name)
    device = entry.device
    assert device.name == name
    assert "fp32" in device.flops_per_s
    assert device.flops_per_s.get("bf16", 1e30) > device.flops_per_s["fp32"]
    assert device.is_host == (name == "cpu")
    if not device.is_host:
        assert 10 * 2**30 < device.memory_bytes < 300 * 2**30
        assert entry.nic.bytes_per_s <= 2 * entry.intra.bytes_per_s
        assert entry.num_nics(8) in (1, 2, 4, 8)
    assert entry.num_nics(1) == 1


def test_devices_without_bf16_say_so() -> None:
    without = {
        n for n in names("device") if "bf16" not in catalog.load_device(n).device.flops_per_s
    }
    assert without == {"cpu", "t4", "v100", "v100-16"}


def bare_numbers(tree: Any, path: str = "") -> list[str]:
    """Paths of numbers that stand without a source beside them."""
    if isinstance(tree, dict):
        if tree.keys() == {"value", "source"}:
            return [] if str(tree["source"]).strip() else [path]
        return [p for key, value in tree.items() for p in bare_numbers(value, f"{path}.{key}")]
    return [path] if isinstance(tree, int | float) and not isinstance(tree, bool) else []


@pytest.mark.parametrize("name", names("device"))
def test_every_number_of_a_device_has_a_source(name: str) -> None:
    path = folder("device") / f"{name}.yaml"
    tree, _ = parse(path.read_text(encoding="utf-8"), str(path))
    assert bare_numbers(tree) == []


@pytest.mark.parametrize("name", names("cluster"))
def test_a_cluster_loads_and_names_its_source(name: str) -> None:
    cluster = catalog.load_cluster(name)
    assert cluster.name == name
    assert "# Source: " in (folder("cluster") / f"{name}.yaml").read_text(encoding="utf-8")


def test_catalogued_clusters_have_their_published_size() -> None:
    sizes = {name: catalog.load_cluster(name).num_devices for name in names("cluster")}
    assert sizes == {
        "aws-g4dn-12xlarge-4": 16,
        "aws-p4d-4": 32,
        "dgx-a100-4": 32,
        "dgx-h100-superpod-su": 256,
    }


def test_lists_give_names_and_descriptions_without_a_parser() -> None:
    lists = (catalog.list_devices(), catalog.list_models(), catalog.list_clusters())
    for items in lists:
        assert [i.name for i in items] == sorted(i.name for i in items)
        assert all(len(i.description) > 10 and "\n" not in i.description for i in items)
    assert lists[0][0].description == "NVIDIA A100 SXM4 40 GB"


def test_a_sized_name_takes_the_usual_interconnect() -> None:
    cluster = catalog.cluster_from_name("h100-2x8")
    entry = catalog.load_device("h100")
    group = cluster.uniform
    assert (cluster.name, cluster.num_devices) == ("h100-2x8", 16)
    assert (group.num_nodes, group.devices_per_node, group.nics_per_node) == (2, 8, 8)
    assert (group.device, group.intra, group.nic) == (entry.device, entry.intra, entry.nic)
    assert catalog.cluster_from_name("a100-80-3x4").uniform.device.name == "a100-80"
    assert catalog.cluster_from_name("cpu-1x64").uniform.nics_per_node == 1


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("h100-0x8", "cluster `h100-0x8` has no devices", None),
        ("h100-2x0", "cluster `h100-2x0` has no devices", None),
        ("h10-2x8", "no device `h10` in the catalogue", "did you mean `h100-2x8`?"),
        (
            "h100",
            "`h100` is not of the form DEVICE-NODESxDEVICES",
            "`h100-2x8` is two nodes with eight H100 each",
        ),
    ],
)
def test_a_wrong_sized_name(name: str, message: str, hint: str | None) -> None:
    with pytest.raises(UserError) as caught:
        catalog.cluster_from_name(name)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        catalog.load_device("H1000")
    assert caught.value.message == "no device `H1000` in the catalogue"
    assert caught.value.hint == "did you mean `h100`?"
    with pytest.raises(UserError) as caught:
        catalog.load_model("llama3-8")
    assert caught.value.message == "no model `llama3-8` in the catalogue"
    assert caught.value.hint == "did you mean `llama3-8b`?"
    with pytest.raises(UserError) as caught:
        catalog.load_cluster("zzz")
    assert caught.value.message == "no cluster `zzz` in the catalogue"
    assert caught.value.hint == f"known clusters: {', '.join(names('cluster'))}"


def test_a_cluster_file_defaults_to_the_device(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(LAB, encoding="utf-8")
    sized = catalog.cluster_from_name("h100-2x8")
    assert catalog.read_cluster(path).groups == sized.groups
    assert catalog.read_cluster(tmp_path).name == "lab"


def test_a_cluster_file_overrides_links_and_mixes_nodes() -> None:
    text = (
        LAB
        + "    nic: {name: slow, bytes_per_s: 1e9, latency_s: 1e-5}\n"
        + "    nics_per_node: 2\n"
        + "  - {device: v100, count: 1, devices_per_node: 4}\n"
    )
    first, second = catalog.cluster_from_text(text, "c.yaml").groups
    assert (first.nic.name, first.nic.bytes_per_s, first.nics_per_node) == ("slow", 1e9, 2)
    assert (second.device.name, second.nics_per_node) == ("v100", 2)


def test_a_cluster_file_may_describe_its_own_device() -> None:
    group = catalog.cluster_from_text(OWN, "c.yaml").uniform
    assert (group.device.name, group.device.memory_bytes, group.nics_per_node) == ("x1", 10**9, 1)


@pytest.mark.parametrize(
    ("text", "shown", "hint"),
    [
        (
            LAB.replace("count: 2", "count: 0"),
            "c.yaml:4: `count`: input should be greater than 0, not `0`",
            None,
        ),
        (
            LAB.replace("count: 2", "coutn: 2"),
            "c.yaml:4: unknown key `coutn`",
            "did you mean `count`?",
        ),
        (
            LAB.replace("h100", "h10"),
            "c.yaml:3: no device `h10` in the catalogue",
            "did you mean `h100`?",
        ),
        (
            LAB.replace("device: h100", "device: 5"),
            "c.yaml:3: `device`: input should be a valid string, not `5`",
            None,
        ),
        (LAB.replace("    count: 2\n", ""), "c.yaml:3: key `count` is missing", None),
        (LAB.replace("name: lab\n", ""), "c.yaml:1: key `name` is missing", None),
        (LAB.replace("nodes:", "node:"), "c.yaml:2: unknown key `node`", "did you mean `nodes`?"),
        ("name: lab\nnodes: []\n", "c.yaml:2: cluster `lab` has no nodes", None),
        (
            LAB + "    intra: {name: a, bytes_per_s: 0, latency_s: 1e-6}\n",
            "c.yaml:6: `intra.bytes_per_s`: input should be greater than 0, not `0`",
            None,
        ),
        (
            OWN.replace("launch_s", "lunch_s"),
            "c.yaml:10: unknown key `lunch_s`",
            "did you mean `launch_s`?",
        ),
        (
            OWN[: OWN.index("    nic:")],
            "c.yaml:3: key `nic` is missing",
            None,
        ),
    ],
)
def test_a_wrong_cluster_file(text: str, shown: str, hint: str | None) -> None:
    error = error_of(text)
    assert (str(error), error.hint) == (shown, hint)


def test_errors_of_a_json_cluster_file_name_the_line() -> None:
    text = (
        '{"name": "lab",\n"nodes": [\n{"device": "h100",\n"count": 0,\n"devices_per_node": 8}\n]}'
    )
    assert str(error_of(text, "c.json")) == (
        "c.json:4: `count`: input should be greater than 0, not `0`"
    )


def test_a_folder_without_a_cluster_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        catalog.read_cluster(tmp_path)
    assert str(caught.value) == f"{tmp_path}: the folder holds no `cluster.yaml`"


def test_resolving_takes_paths_names_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lab.yaml").write_text(LAB, encoding="utf-8")
    assert catalog.resolve_cluster("lab.yaml").name == "lab"
    assert catalog.resolve_cluster("dgx-a100-4") == catalog.load_cluster("dgx-a100-4")
    assert catalog.resolve_cluster("h200-1x8").num_devices == 8
    assert catalog.resolve_model("llama3-405b").num_layers == 126
    Path("tiny-llama").mkdir()  # a folder without a config hides no name
    assert catalog.resolve_model("tiny-llama") == catalog.load_model("tiny-llama")
    example = Path(__file__).parents[2] / "examples" / "tiny-llama" / "config.json"
    Path("tiny-llama", "config.json").write_text(
        example.read_text(encoding="utf-8").replace('"vocab_size": 256', '"vocab_size": 300'),
        encoding="utf-8",
    )
    assert catalog.resolve_model("tiny-llama").vocab_size == 300


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("h100", "`h100` is a device, not a cluster",
         "say how many: `h100-2x8` is two nodes with eight each"),
        ("dgx-a10-4", "no cluster `dgx-a10-4` in the catalogue", "did you mean `dgx-a100-4`?"),
        ("no/such.yaml", "no such file: `no/such.yaml`", "check the path"),
        ("", "no cluster `` in the catalogue",
         f"known clusters: {', '.join(names('cluster'))}; "
         "or give a cluster file, or a size such as `h100-2x8`"),
    ],
)  # fmt: skip
def test_what_resolves_to_no_cluster(text: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        catalog.resolve_cluster(text)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_what_resolves_to_no_model() -> None:
    with pytest.raises(UserError) as caught:
        catalog.resolve_model("lama3-8b")
    assert caught.value.hint == "did you mean `llama3-8b`?"
    with pytest.raises(UserError) as caught:
        catalog.resolve_model("zzz")
    assert caught.value.message == "no model `zzz` in the catalogue"
    assert str(caught.value.hint).endswith("; or give a folder with a `config.json`")


@fuzz
@given(text=st.text(max_size=300) | st.just("x" * 5000))
def test_resolving_any_text_gives_a_user_error(text: str) -> None:
    known = {*names("model"), *MODEL_ALIASES}
    if text in known or Path(text[:50].replace("\0", "")).exists():
        return
    with pytest.raises(UserError):
        catalog.resolve_model(text)


WORDS = st.sampled_from(
    ["h100", "cpu", "{}", "[]", "null", "0", "-1", "8", "1e9", "1e400", "true", "'", "&a", "- x"]
) | st.text(max_size=6)


@fuzz
@given(
    base=st.sampled_from([LAB, OWN]), changes=st.lists(st.tuples(st.integers(0, 40), WORDS)),
)  # fmt: skip
def test_any_cluster_text_gives_a_cluster_or_a_user_error(
    base: str, changes: list[tuple[int, str]]
) -> None:
    lines = base.splitlines()
    for at, word in changes[:4]:
        index = at % len(lines)
        key, colon, _ = lines[index].partition(":")
        lines[index] = f"{key}{colon} {word}"
    for place in ("c.yaml", "c.json"):
        error: UserError | None = None
        try:
            cluster = catalog.cluster_from_text("\n".join(lines), place)
        except UserError as e:
            error = e
        if error is None:
            assert cluster.num_devices > 0
        else:
            assert error.message
            assert str(error.place).startswith(place)


@fuzz
@given(text=st.text(max_size=80))
def test_any_text_as_a_cluster_gives_a_user_error(text: str) -> None:
    with pytest.raises(UserError):
        catalog.cluster_from_text(text, "c.yaml")
