"""Every example gives what its folder says."""

import os
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("every-axis", "llama3-8b-h100", "tiny-llama", "unlike-hosts")


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


def test_no_example_is_left_out():
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/README.md")}
    assert folders == {*FOLDERS, "text"}
