"""The README shows what the commands print, and its commands run."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_picture_is_what_plan_prints():
    golden = (ROOT / "tests" / "golden" / "plan.txt").read_text(encoding="utf-8")
    assert golden.rstrip() in README


def test_the_minute_without_a_gpu_runs(meshwright):
    section = README.split("## A minute without a GPU")[1].split("```")[1]
    lines = [line.split("#")[0].strip() for line in section.strip().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert line.startswith("meshwright ")
        result = meshwright(*shlex.split(line)[1:])
        assert result.code == 0, (line, result.err)


def test_the_cluster_file_is_read(meshwright, tmp_path):
    text = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "lab.yaml").write_text(text)
    assert meshwright("plan", "-m", "llama3-8b", "-c", "lab.yaml").code == 0


def test_every_command_named_exists(meshwright):
    for name in set(re.findall(r"^meshwright (\w+)", README, re.MULTILINE)):
        assert meshwright(name, "--help").code == 0
