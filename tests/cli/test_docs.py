"""What docs/runtime.md shows can be done; commands that any page names exist."""

import re
import shlex
from pathlib import Path

from launch.recipe import read_recipe
from tests.cli.guide_page import unknown_options

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"))
    if path.parent.name not in ("guide", "reference")
)
TEXT = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
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


def command_lines(text: str) -> list[str]:
    """Lines of blocks that begin with the command, and command lines in sentences."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\$ )?meshwright (.+)$", joined, re.MULTILINE)
    return lines + re.findall(r"`meshwright ([^`]+)`", joined)


def test_every_command_and_option_named_exists():
    found = 0
    for path in PAGES:
        for line in command_lines(path.read_text(encoding="utf-8")):
            words = re.split(r" [>|&<#]|\$\(", line)[0].split()
            if not words or not re.fullmatch(r"-{1,2}[a-z-]+|[a-z]+", words[0]):
                continue  # a sentence, or a placeholder
            assert not unknown_options(words), (path.name, line)
            found += 1
    assert found > 60
