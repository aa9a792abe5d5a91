"""`plan --links`: ranks on hosts whose links differ."""

import json
from itertools import permutations
from pathlib import Path

import pytest

from profiler.catalog import resolve_model
from profiler.codec import canonical, encode
from profiler.job import JobSpec
from profiler.link_files import links_document
from profiler.link_profile import LinkReport, PairTime
from tests.unit import facts
from tests.unit.hosts import links, profiled
from tests.unit.roofline import analytic_profile

MODEL = Path(__file__).resolve().parents[2] / "examples" / "tiny-llama" / "config.json"


@pytest.fixture
def files(tmp_path):
    """profile.json of a host of two, links.json of four hosts with one bad link."""
    job = JobSpec(global_batch=8, seq_len=128, precision="fp32")
    roomy = facts.cluster(1, 2, device=facts.device(memory_bytes=2**30, is_host=True))
    base = analytic_profile(resolve_model(str(MODEL)), job, roomy)
    (tmp_path / "profile.json").write_text(encode(profiled(base=base)))
    made = links((1, 2), (2, 1))
    (tmp_path / "links.json").write_text(canonical(links_document(made)))
    return tmp_path


def plan(meshwright, *more):
    return meshwright(
        "plan", "-m", MODEL, "--profile", "profile.json", "--links", "links.json",
        "--global-batch", 8, *more,
    )  # fmt: skip


def test_ranks_go_around_the_bad_link(meshwright, files):
    result = plan(meshwright, "--pin", "dp=8")
    assert result.code == 0
    assert "4 x 2 toy" in result.out
    assert "times as fast as with ranks in the hosts' order" in result.out
    hosts = next(line for line in result.out.splitlines() if line.startswith("Hosts by"))
    order = [name.strip() for name in hosts.partition(":")[2].split(",")]
    ring = set(zip(order, [*order[1:], order[0]], strict=True))
    assert not ring & {("host1", "host2"), ("host2", "host1")}
    made = json.loads((files / "plan.json").read_text())
    assert sorted(made["chosen"]["placement"]["ranks"]) == list(range(8))
    assert made["default_order_s"] > 2 * made["chosen"]["estimate"]["step_s"]
    why = meshwright("why", "plan.json")
    assert "hosts mapped" in why.out
    for command in ("show", "why"):
        assert all(len(line) <= 80 for line in meshwright(command, "plan.json").out.splitlines())


def test_the_same_question_gives_the_same_bytes(meshwright, files):
    first = plan(meshwright, "--json").out
    assert first == plan(meshwright, "--json").out


def test_a_file_of_other_links_is_refused_with_its_place(meshwright, files):
    (files / "links.json").write_text('{"kind": "links", "hosts": ["a", "b"]}')
    result = plan(meshwright)
    assert result.code == 1
    assert result.err.startswith("error: links.json")


def test_links_want_a_measured_profile(meshwright, files):
    result = meshwright("plan", "-m", "llama3-8b", "-c", "h100-2x8", "--links", "links.json")
    assert result.code == 1
    assert "`--links` goes with a profile of measured blocks" in result.err
    assert "map --plan" in result.err


def test_a_slow_down_out_of_bounds_names_its_host(meshwright, files):
    tree = json.loads((files / "links.json").read_text())
    (files / "links.json").write_text(json.dumps(tree | {"slowdown": [1, 1, 0, 1]}))
    result = plan(meshwright)
    assert result.code == 1
    assert "the slow-down of `host2` is 0" in result.err


def write(path, made):
    path.write_text(canonical(links_document(made)))


def test_a_link_that_went_bad_moves_ranks(meshwright, files):
    """The map goes around host1 - host2; now host1 - host3 is bad instead."""
    assert plan(meshwright, "--pin", "dp=8").code == 0
    same = meshwright("plan", "--from", "plan.json", "--links", "links.json")
    assert same.code == 0
    assert "The layout stays as it is" in same.out
    write(files / "now.json", links((1, 3), (3, 1)))
    result = meshwright("plan", "--from", "plan.json", "--links", "now.json", "--json")
    assert result.code == 4
    found = json.loads(result.out)
    assert (found["verdict"], found["lost_nodes"]) == ("restart", [])
    before, after = (json.loads(Path(f).read_text()) for f in ("plan.json", "new-plan.json"))
    assert after["chosen"]["config"] == before["chosen"]["config"]
    assert after["chosen"]["placement"]["ranks"] != before["chosen"]["placement"]["ranks"]
    kept = next(way for way in found["ways"] if way["name"] == "keep")
    assert kept["step_s"] > 2 * after["chosen"]["estimate"]["step_s"]


def test_hosts_are_known_by_their_names(meshwright, files):
    assert plan(meshwright, "--global-batch", 12).code == 0
    made = links((0, 2), (2, 0))
    write(files / "now.json", made.of_hosts(["host3", "host0", "host1"]))
    result = meshwright("plan", "--from", "plan.json", "--links", "now.json", "--json")
    assert (result.code, json.loads(result.out)["lost_nodes"]) == (4, [2])
    after = json.loads(Path("new-plan.json").read_text())
    assert after["profile"]["links"]["hosts"] == ["host0", "host1", "host3"]
    by_name = meshwright("plan", "--from", "plan.json", "--lost", "host1", "--json")
    assert (by_name.code, json.loads(by_name.out)["lost_nodes"]) == (4, [1])
    left = json.loads(Path("new-plan.json").read_text())["profile"]["links"]
    assert left["hosts"] == ["host0", "host2", "host3"]
    more = meshwright("plan", "--from", "plan.json", "--lost", "host9")
    assert (more.code, "the hosts are host0, host1" in more.err) == (1, True)


def test_processes_of_hosts_take_the_best_of_their_nics(meshwright, files):
    """Two NICs, of which the second is the faster."""
    made = links(rate=1e7)
    pairs = tuple(
        PairTime(
            source=a, target=b, nic=nic, points=(), latency_s=1e-5, bytes_per_s=rate, spread=0.0
        )
        for nic, rate in (("eth0", 1e6), ("eth1", 9e6))
        for a, b in permutations(made.hosts, 2)
    )
    report = LinkReport(
        nics=("eth0", "eth1"), backend="gloo", pairs=pairs, groups=(), flows=(), lost=(),
        failed=(), held_out=None, findings=(),
    )  # fmt: skip
    (files / "links.json").write_text(canonical(links_document(made, report)))
    result = plan(meshwright)
    assert result.code == 0
    assert "Of the NICs eth0, eth1 the plan is for eth1" in result.err
    made_plan = json.loads((files / "plan.json").read_text())
    assert made_plan["chosen"]["placement"]["interfaces"] == ["eth1"] * 4
    assert made_plan["profile"]["links"]["bytes_per_s"][0][1] == pytest.approx(9e6, rel=0.01)
    assert meshwright("why", "plan.json").code == 0
