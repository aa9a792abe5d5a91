"""`experts show` and `experts import`: what they print, draw and write, and what they refuse."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer

from launch.cli import experts
from profiler.routing.readers import read_routing
from profiler.routing.store import routing_bytes
from profiler.routing.trace import RoutingCounts, RoutingTrace
from tests.unit.made_routing import drawn_ids, drawn_trace


@pytest.fixture(scope="module")
def content():
    """Of 2,000 tokens with 30 layers of 300 experts, top 4."""
    return routing_bytes(drawn_trace(2000, 30, 300, 4))


@pytest.fixture
def trace(tmp_path, content):
    """A file of that."""
    path = tmp_path / "trace.npz"
    path.write_bytes(content)
    return path


DOCS = Path(__file__).resolve().parents[2] / "docs" / "routing.md"


def test_commands_and_options_of_the_docs_exist(meshwright):
    (block,) = re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL)
    lines = block.splitlines()
    assert len(lines) == 3
    for line in lines:
        words = line.split()
        command = words[1:3] if words[1] == "experts" else words[1:2]
        helped = meshwright(*command, "--help").out
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", line):
            assert re.search(rf"(?<!\S){option}\b", helped), option


def test_help_fits(meshwright):
    for args in (["experts", "--help"], ["experts", "show", "-h"], ["experts", "import", "-h"]):
        result = meshwright(*args)
        assert result.code == 0
        assert max(map(len, result.out.splitlines())) <= 80
    bare = meshwright("experts")
    assert bare.code == 2
    assert "show" in bare.err


def test_the_table_fits_folds_and_says_the_worst(meshwright, trace):
    result = meshwright("experts", "show", trace)
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "routing: 2,000 tokens, 30 MoE layers of 300 experts, top 4"
    assert "6 layers with less uneven load are not shown" in lines
    shown = [line.split() for line in lines[4:28]]
    assert [int(row[0]) for row in shown] == sorted(int(row[0]) for row in shown)
    document = json.loads(meshwright("experts", "show", trace, "--json").out)
    assert (document["kind"], document["num_tokens"]) == ("routing-statistics", 2000)
    worst = max(document["layers"], key=lambda row: row["max_over_mean"])
    assert f"{worst['max_over_mean']:.2f} times in layer {worst['layer']}" in result.out


def test_counts_have_dashes_where_tokens_would_be_needed(meshwright, tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"weight": [[90, 132, 40, 61], [20, 107, 104, 64]]}))
    result = meshwright("experts", "show", path)
    assert result.out.splitlines()[0] == "routing: counts, 2 MoE layers of 4 experts"
    row = result.out.splitlines()[4].split()
    assert row == ["0", "1.63", "0.43", "1.87", "0", "-", "-", "-", "-", "-", "-"]
    assert "Drift" not in result.out


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_of_each_kind_and_the_same_bytes_again(meshwright, trace, tmp_path, ending):
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths[: 1 if ending == "svg" else 2]:  # svg numbers its parts at random
        result = meshwright("experts", "show", trace, "--picture", path)
        assert (result.code, result.err) == (0, f"Saved the picture to: `{path}`\n")
    head = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert paths[0].read_bytes().startswith(head)
    assert ending == "svg" or paths[0].read_bytes() == paths[1].read_bytes()


def test_pictures_of_counts_alone(meshwright, tmp_path):
    for windows in (1, 3):
        path = tmp_path / "counts.npz"
        counts = np.random.default_rng(0).integers(0, 9, (windows, 5, 7))
        path.write_bytes(routing_bytes(RoutingCounts(windows=counts)))
        result = meshwright("experts", "show", path, "--picture", tmp_path / "c.png")
        assert result.code == 0


def test_import_joins_names_and_cuts(meshwright, tmp_path):
    a, b, raw = (drawn_ids(n, 32, 8, 2, seed=n) for n in (50, 40, 30))
    source, out = tmp_path / "plain.npz", tmp_path / "sub" / "trace.npz"
    np.savez(source, a=a, b=b, routing_raw=raw)
    result = meshwright(
        "experts", "import", source, "-o", out, "--keys", "a, b", "-m", "mixtral-8x7b"
    )
    assert result.code == 0
    assert result.err == f"Saved 90 tokens of 32 MoE layers of 8 experts to: `{out}`\n"
    assert result.out == ""
    back = read_routing(out)
    assert isinstance(back, RoutingTrace)
    assert (back.model, back.num_experts) == ("mixtral-8x7b", 8)
    assert np.array_equal(back.ids, np.concatenate([a, b]))
    document = json.loads(meshwright("experts", "import", source, "-o", out, "--json").out)
    assert (document["kind"], document["tokens"]) == ("routing-file", 120)


def test_import_from_a_step_on(meshwright, tmp_path):
    path, out = tmp_path / "t.npz", tmp_path / "late.npz"
    whole = RoutingTrace(
        ids=drawn_ids(10, 2, 4, 1), num_experts=4, step=np.array([0] * 3 + [5] * 7)
    )
    path.write_bytes(routing_bytes(whole))
    assert meshwright("experts", "import", path, "-o", out, "--first-step", 1).code == 0
    late = read_routing(out)
    assert isinstance(late, RoutingTrace)
    assert np.array_equal(late.ids, whole.ids[3:])
    refused = meshwright("experts", "import", path, "-o", out, "--first-step", 6)
    assert refused.err == f"error: {path}: it ends with step 5\n"
    path.write_bytes(routing_bytes(drawn_trace(4, 2, 4, 1)))
    refused = meshwright("experts", "import", path, "-o", out, "--first-step", 1)
    assert "does not say of which step" in refused.err


REFUSED = (
    (["show", "none.npz"], 1, "error: no such file: `none.npz`"),
    (["show", "trace.npz", "--picture", "a.gif"], 1, "error: cannot draw `a.gif`"),
    (["show", "trace.npz", "--keys", "a"], 1, "our own file has no keys"),
    (["show", "trace.npz", "--experts", "9"], 1, "is of 300 experts, not of 9"),
    (["show", "text.txt"], 1, "error: text.txt: this is no record of routing"),
    (["import", "trace.npz"], 2, "missing option '-o'"),
    (["import", "trace.npz", "-o", "b.npz", "-m", "mixtral-8x7b"], 1, "not of 8"),
    (["import", "trace.npz", "-o", "b.npz", "-m", "llama3-8b"], 1, "llama3-8b has no experts"),
    (["import", "small.npz", "-o", "b.npz", "-m", "mixtral-8x7b"], 5, "3 MoE layers"),
    (["import", "trace.npz", "-o", "text.txt/b.npz"], 1, "cannot write the file"),
    (["place-it", "--ep", 2], 1, "no such file: `place-it`"),
)


@pytest.mark.parametrize(("args", "code", "message"), REFUSED)
def test_what_is_refused(meshwright, trace, tmp_path, args, code, message):
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "small.npz").write_bytes(routing_bytes(drawn_trace(4, 3, 8, 2)))
    result = meshwright("experts", *args)
    assert result.code == code
    assert result.err.startswith("error: ")
    assert message in result.err
    assert result.out == ""
    assert not (tmp_path / "b.npz").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_first_word_that_is_no_command_is_the_trace_of_place(capsys):
    app = typer.Typer(cls=experts.app.info.cls, no_args_is_help=True)
    seen = []

    @app.command("place")
    def place(trace: str, ep: int = 1) -> None:
        seen.append((trace, ep))

    @app.command("show")
    def show(trace: str) -> None:
        seen.append(trace)

    command = typer.main.get_command(app)
    for args in (["t.npz", "--ep", "4"], ["--ep", "2", "t.npz"], ["place", "u"], ["show", "v"]):
        command(args=args, standalone_mode=False)
    assert seen == [("t.npz", 4), ("t.npz", 2), ("u", 1), "v"]
    command(args=["--help"], standalone_mode=False)
    assert "show" in capsys.readouterr().out
