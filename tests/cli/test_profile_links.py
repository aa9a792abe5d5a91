"""`meshwright profile --links` where nothing is measured: files, and what is refused."""

import json

import pytest

HOSTS = ("host0", "host1", "host2", "host3")


@pytest.fixture
def matrix(tmp_path):
    """A CSV of four hosts, of which host2 sends slowly."""
    rows = [
        ",".join([a, *("" if a == b else "2.5" if a == "host2" else "25" for b in HOSTS)])
        for a in HOSTS
    ]
    path = tmp_path / "rates.csv"
    path.write_text("# unit: Gbit/s\n," + ",".join(HOSTS) + "\n" + "\n".join(rows) + "\n")
    return path


def test_a_file_is_converted_and_judged(meshwright, matrix, tmp_path):
    result = meshwright("profile", "--links", "--from", matrix)
    assert result.code == 0, result.err
    assert "the NIC of host2 sends at 2.5 Gbit/s, most hosts at 25 Gbit/s" in result.out
    assert "Saved the links to: `links.json`" in result.err
    assert all(len(line) <= 110 for line in result.out.splitlines())
    document = json.loads((tmp_path / "links.json").read_text())
    assert document["kind"] == "links"
    assert [f["host"] for f in document["measured"]["findings"]] == ["host2"]
    again = meshwright("profile", "--links", "--from", "links.json", "-o", "again.json", "--json")
    assert json.loads(again.out) == document
    assert (tmp_path / "again.json").read_text() == (tmp_path / "links.json").read_text()


def test_a_map_shows_what_it_could_not_avoid(meshwright, matrix):
    meshwright("profile", "--links", "--from", matrix)
    result = meshwright("map", "--links", "links.json", "--axes", "dp=4,tp=8")
    assert result.code == 0, result.err
    assert "the NIC of host2 sends at 2.5 Gbit/s" in result.out
    left = meshwright("map", "--links", "links.json", "--axes", "dp=2,tp=8")
    assert "host2 sends" not in left.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "give a model, or `--links`"),
        (("--links",), 1, "needs the hosts to measure"),
        (("--links", "-m", "llama3-8b"), 1, "links have no model"),
        (("--hosts", "hosts", "-m", "llama3-8b"), 1, "go with `--links`"),
        (("--links", "--hosts", "none"), 1, "no such file: `none`"),
        (("--links", "--hosts", "hosts"), 1, "links need two hosts or more"),
        (("--links", "--hosts", "hosts", "--nics", "eth0,"), 1, "is no list of NICs"),
        (("--links", "--hosts", "hosts", "--from", "hosts"), 1, "needs the hosts to measure"),
        (("--links", "--from", "hosts"), 1, "this is no table of links"),
    ],
)
def test_what_is_refused(meshwright, tmp_path, words, code, message):
    (tmp_path / "hosts").write_text("host0\n")
    result = meshwright("profile", *words)
    assert result.code == code
    assert message in result.err
    assert not (tmp_path / "links.json").exists()
