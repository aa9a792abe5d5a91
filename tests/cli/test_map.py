"""`meshwright map` from the command line."""

import json
import re
import shlex
from pathlib import Path

import pytest

HOSTS = ("a", "b", "c", "d")


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """Four hosts, of which a and c, b and d are near each other."""
    return near_pairs(tmp_path / "links.json", "ac", "bd")


def near_pairs(path: Path, *pairs: str) -> Path:
    """A file of links between hosts, ten times as fast between those of each pair."""
    near = {frozenset(pair) for pair in pairs}
    rows = [
        [0 if x == y else 10.0 if frozenset((x, y)) in near else 1.0 for y in HOSTS] for x in HOSTS
    ]
    path.write_text(json.dumps({"gpus": HOSTS, "bandwidth": rows}))
    return path


def test_replicas_get_the_near_hosts(meshwright, links):
    result = meshwright(
        "map", "--links", links, "--gpus-per-node", 8, "--axes", "pp=2,dp=2,tp=8", "--json"
    )
    assert result.code == 0
    document = json.loads(result.out)
    assert document["kind"] == "map"
    order = list(dict.fromkeys(document["hosts"]))
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset("ac"), frozenset("bd")}
    assert len(document["hosts"]) == 32
    assert document["ours"]["seconds"] < 0.3 * document["default"]["seconds"]
    assert document["bound_seconds"] <= document["ours"]["seconds"]
    assert document["gain"] == pytest.approx(
        document["default"]["seconds"] / document["ours"]["seconds"]
    )
    assert document["traffic"]["pp"]["shape"] == "chain"


def test_what_is_said_fits_80_columns_and_is_the_same_twice(meshwright, links):
    words = ("map", "--links", links, "--axes", "pp=2,dp=2,tp=8")
    first, second = meshwright(*words), meshwright(*words)
    assert first.code == 0
    assert first.out == second.out
    assert all(len(line) <= 80 for line in first.out.splitlines())
    assert "times as fast as the default order" in first.out


def test_orders_in_the_forms_of_launchers(meshwright, links):
    words = ("map", "--links", links, "--axes", "pp=2,dp=2,tp=8", "--order-out")
    hostfile = meshwright(*words, "hostfile").out.splitlines()
    assert sorted(hostfile) == [f"{host} slots=8" for host in HOSTS]
    slurm = meshwright(*words, "slurm").out.splitlines()
    assert [line.split()[0] for line in hostfile for _ in range(8)] == slurm
    rankfile = meshwright(*words, "rankfile").out.splitlines()
    assert rankfile[9] == f"rank 9={slurm[9]} slot=1"
    assert json.loads(meshwright(*words, "slurm", "--json").out)["order"].splitlines() == slurm


def test_the_example_goes_around_the_bad_cable(meshwright):
    folder = Path(__file__).resolve().parents[2] / "examples" / "unlike-hosts"
    line = re.search(r"^meshwright (map .*)$", (folder / "README.md").read_text(), re.MULTILINE)[1]
    words = shlex.split(line.replace("examples/unlike-hosts", str(folder)))
    document = json.loads(meshwright(*words, "--json").out)
    order = list(dict.fromkeys(document["hosts"]))
    assert {frozenset(order[:2]), frozenset(order[2:])} == {
        frozenset(("host0", "host2")), frozenset(("host1", "host3")),
    }  # fmt: skip
    assert {order[0], order[2]} != {"host2", "host3"}
    assert {order[1], order[3]} != {"host2", "host3"}


def test_hosts_that_are_not_needed_are_left_out(meshwright, links):
    result = meshwright("map", "--links", links, "--axes", "dp=2,tp=8")
    assert result.code == 0
    assert "Left out:" in result.out


def test_traffic_of_a_plan(meshwright, links, tmp_path):
    plan = tmp_path / "plan.json"
    words = ("plan", "-m", "llama3-8b", "-c", "h100-2x8", "--global-batch", 64, "-o", plan)
    assert meshwright(*words, "--pin", "dp=2,tp=8").code == 0
    result = meshwright("map", "--links", links, "--plan", plan, "--json")
    assert result.code == 0
    assert len(json.loads(result.out)["hosts"]) == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--axes", "pp=3,tp=x"), "error: `tp=x` is no degree"),
        (("--axes", "qp=3"), "error: `qp` is no axis"),
        (("--axes", "pp"), "error: `--axes pp` is not of the form"),
        (("--axes", "dp=2,dp_shard=2"), "error: `dp` is dp_replicate x dp_shard"),
        ((), "error: nothing says what the ranks are"),
        (("--axes", "pp=8,tp=8"), "error: the axes need 64 devices; 4 hosts with 8 each have 32"),
        (("--axes", "tp=8", "--intra", "0"), "error: `--intra 0.0` is no rate"),
        (("--axes", "tp=8", "--order-out", "x"), "error: `--order-out x` is not known"),
        (("--axes", "dp=3", "--global-batch", "4"), "error: global batch 4 does not divide"),
        (("--axes", "dp=4,ep=3"), "error: ep 3 x etp 1 does not divide the 4 ranks"),
    ],
)
def test_bad_input_gets_one_line(meshwright, links, words, message):
    result = meshwright("map", "--links", links, *words)
    assert result.code in (1, 2)
    assert not result.out
    errors = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith(message)


def test_no_such_file(meshwright, tmp_path):
    result = meshwright("map", "--links", tmp_path / "none.json", "--axes", "tp=8")
    assert result.code == 1
    assert "error: " in result.err


def test_a_plan_is_saved_with_its_ranks_so_placed(meshwright, tmp_path):
    links = near_pairs(tmp_path / "links.json", "ad", "bc")
    assert meshwright("plan", "-m", "llama3-8b", "-c", "h100-4x8", "--pin", "pp=2,tp=8").code == 0
    words = ("map", "--links", links, "--plan", "plan.json", "-o", "mapped.json", "--json")
    result = meshwright(*words)
    assert result.code == 0
    hosts = json.loads(result.out)["hosts"]
    before, after = (json.loads(Path(f).read_text()) for f in ("plan.json", "mapped.json"))
    placed = after["chosen"]["placement"]
    where = placed["devices"] or placed["ranks"]
    assert where
    assert [HOSTS[device // 8] for device in where] == hosts
    assert sorted(where) == list(range(32))
    assert after["id"] != before["id"]
    assert after["chosen"]["estimate"] == before["chosen"]["estimate"]
    assert meshwright("show", "mapped.json").code == 0


def test_a_plan_of_other_hosts_is_not_saved(meshwright, links):
    assert meshwright("plan", "-m", "llama3-8b", "-c", "h100-2x8").code == 0
    result = meshwright("map", "--links", links, "--plan", "plan.json", "-o", "mapped.json")
    assert result.code == 5
    assert "the plan is for 2 nodes of 8 devices, the map for 4 of 8" in result.err
    assert not Path("mapped.json").exists()
    result = meshwright("map", "--links", links, "--axes", "dp=32", "-o", "mapped.json")
    assert "`--out` saves a plan" in result.err


TOPO = Path(__file__).resolve().parents[1] / "unit" / "links" / "topo-h100.txt"


def test_the_table_of_a_node_gives_each_gpu_a_nic(meshwright, links):
    words = ("map", "--links", links, "--axes", "pp=2,dp=2,tp=2", "--topo", TOPO)
    nics = json.loads(meshwright(*words, "--gpus-per-node", 2, "--json").out)["nics"]
    assert [(n["gpu"], n["kind"]) for n in nics] == [("GPU0", "PIX"), ("GPU1", "PXB")]
    said = meshwright(*words, "--gpus-per-node", 2)
    assert f"GPU0:{nics[0]['nic']}(PIX)" in said.out
    assert all(len(line) <= 80 for line in said.out.splitlines())
    result = meshwright(*words)
    assert result.code == 1
    assert "the table has 2 GPUs, a node 8" in result.err
