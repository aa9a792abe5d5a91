"""Every example gives what its folder says."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("every-axis", "llama3-8b-h100", "tiny-llama", "tiny-moe", "unlike-hosts")


@pytest.mark.parametrize("name", FOLDERS)
def test_an_example_says_what_its_file_says(name, meshwright):
    folder = ROOT / "examples" / name
    text = (folder / "README.md").read_text()
    line, command = re.search(r"^meshwright ((plan|map) .*)$", text, re.MULTILINE).groups()
    result = meshwright(*shlex.split(line.replace("examples/", f"{ROOT}/examples/")))
    assert result.code == 0
    expected = folder / f"{command}.txt"
    if "UPDATE_GOLDEN" in os.environ:
        expected.write_text(result.out, encoding="utf-8")
    assert result.out == expected.read_text(encoding="utf-8")


def test_the_recorded_routing_is_what_its_readme_says(meshwright, tmp_path):
    folder = ROOT / "examples" / "tiny-moe"
    text = (folder / "README.md").read_text()
    line = re.search(r"^meshwright (experts show examples/.*)$", text, re.MULTILINE)[1]
    cut = re.search(r"^meshwright (experts import .*)$", text, re.MULTILINE)[1]
    trace = folder / "routing.npz"
    assert trace.stat().st_size < 500_000
    result = meshwright(*shlex.split(line.replace("examples/", f"{ROOT}/examples/")))
    expected = folder / "show.txt"
    if "UPDATE_GOLDEN" in os.environ:
        expected.write_text(result.out, encoding="utf-8")
    assert result.out == expected.read_text(encoding="utf-8")
    assert meshwright(*shlex.split(cut.replace("examples/", f"{ROOT}/examples/"))).code == 0
    drifts = [
        json.loads(meshwright("experts", "show", path, "--json").out)["layers"]
        for path in (trace, tmp_path / "settled.npz")
    ]
    learning, settled = (max(row["drift"] for row in layers) for layers in drifts)
    assert learning > 0.5
    assert settled < 0.07
    assert min(row["max_over_mean"] for row in drifts[0]) > 3


def test_no_example_is_left_out():
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/README.md")}
    assert folders == {*FOLDERS, "text"}
