"""Every example gives what its folder says."""

import os
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("every-axis", "llama3-8b-h100", "tiny-llama")


@pytest.mark.parametrize("name", FOLDERS)
def test_the_plan_of_an_example(name, meshwright):
    folder = ROOT / "examples" / name
    line = re.search(r"^meshwright (plan .*)$", (folder / "README.md").read_text(), re.MULTILINE)[1]
    result = meshwright(*shlex.split(line.replace("examples/", f"{ROOT}/examples/")))
    assert result.code == 0
    expected = folder / "plan.txt"
    if "UPDATE_GOLDEN" in os.environ:
        expected.write_text(result.out, encoding="utf-8")
    assert result.out == expected.read_text(encoding="utf-8")


def test_no_example_is_left_out():
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/README.md")}
    assert folders == {*FOLDERS, "text"}
