"""docs/reference is what the code says: a stale page fails, `make docs` writes it anew."""

import re

import pytest

from tests.reference import FOLDER, pages
from tests.reference.files import type_of
from tests.reference.table import table


@pytest.fixture(scope="module")
def made():
    return pages()


def test_no_page_is_stale(made):
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    stale = {name for name in {*made, *there} if made.get(name) != there.get(name)}
    assert not stale, "run `make docs`"


def test_links_lead_somewhere(made):
    for name, text in made.items():
        titles = (line for line in text.splitlines() if line.startswith("#"))
        heads = {line.lstrip("# ").lower().replace(" ", "-") for line in titles}
        for file, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
            if file:
                assert file in made or (FOLDER / file).exists(), (name, file)
            else:
                assert anchor in heads, (name, anchor)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "integer > 0"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "number 0 to 1"),
        ({"type": "array", "items": {"$ref": "#/$defs/Timing"}}, "list of [Timing](#timing)"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or none"),
        ({"enum": ["ring", "ulysses"]}, "`ring`, `ulysses`"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "map of number"),
    ],
)
def test_types_in_words(schema, words):
    assert type_of(schema) == words


def test_a_cell_stays_in_its_row():
    assert table(("a",), [["x | y\nz"]])[2] == "| x \\| y z |"
