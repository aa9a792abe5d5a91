"""What docs/runtime.md and docs/launching.md show can be done."""

import re
import shlex
from pathlib import Path

from launch.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
LAUNCHING = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
LAYOUT, RECIPE = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def test_the_layout_can_be_planned(meshwright, tmp_path):
    (tmp_path / "layout.yaml").write_text(LAYOUT)
    line = re.search(r"^meshwright (plan .*)$", TEXT, re.MULTILINE)[1]
    done = meshwright(*shlex.split(line.replace("examples/", f"{ROOT}/examples/")))
    assert (done.code, done.err.splitlines()[-1]) == (0, "Saved the plan to: `plan.json`")


def test_the_recipe_is_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert (recipe.lr_schedule, recipe.max_restarts) == ("cosine", 3)


def test_every_command_and_option_named_exists(meshwright):
    commands = set(re.findall(r"`?meshwright (\w+)", TEXT + LAUNCHING))
    helps = "".join(meshwright(name, "--help").out for name in sorted(commands))
    assert commands >= {"plan", "launch", "export"}
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT + LAUNCHING)) - {
        "--write",
        "--distribution",
    }:
        assert option in helps, option
