"""The guides: their commands run, and they show what is printed; `UPDATE_GOLDEN=1` writes it."""

import os
import re
from pathlib import Path

import pytest

from tests.cli.guide_page import blocks_of, commands_of, figures_of, run_page, unknown_options

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "guide"
PAGES = sorted(path.name for path in FOLDER.glob("*.md"))
GUIDES = [name for name in PAGES if name != "index.md"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_shows_what_its_commands_print(name, meshwright, folder):
    text = (FOLDER / name).read_text(encoding="utf-8")
    shown, printed = run_page(text, meshwright, folder)
    if "UPDATE_GOLDEN" in os.environ:
        (FOLDER / name).write_text(shown, encoding="utf-8")
        text = shown
    assert text == shown
    stale = {figure for figure in figures_of(text) if figure not in printed}
    assert not stale, "sentences say what no command printed"


@pytest.mark.parametrize("name", GUIDES)
def test_commands_that_are_not_run_exist(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    for block in (b for b in blocks_of(text) if b.kind == "console"):
        for args, _ in commands_of(block):
            assert not unknown_options(args), args


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_short_and_their_links_lead_somewhere(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    shown = sum(block.body.count("\n") for block in blocks_of(text) if block.kind == "text")
    lines = text.splitlines()
    assert len(lines) - shown <= 90
    assert max(len(line) for line in lines if not line.startswith("|")) <= 100
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert links
    for link in links:
        assert (FOLDER / link).exists(), link


def test_the_index_names_every_guide():
    text = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert {name for name in GUIDES if f"({name})" in text} == set(GUIDES)


def test_every_guide_runs_something():
    for name in GUIDES:
        blocks = list(blocks_of((FOLDER / name).read_text(encoding="utf-8")))
        assert any(b.kind == "sh" for b in blocks), name
        assert any(b.kind == "text" for b in blocks), name
