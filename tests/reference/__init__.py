"""The pages of docs/reference, each made from what it describes.

    python -m tests.reference        writes them (`make docs`)

`tests/unit/test_reference.py` fails where a page is not what this makes.
"""

from pathlib import Path

from tests.reference import catalogue, commands, files, rules

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
_MARK = "Written by `make docs`; do not edit.\n"


def pages() -> dict[str, str]:
    """File name -> content of each page."""
    made = {
        "commands.md": commands.page(),
        "rules.md": rules.page(),
        "files.md": files.page(),
        "models.md": catalogue.models(),
        "devices.md": catalogue.devices(),
        "software.md": catalogue.software(),
    }
    return {name: _marked(lines) for name, lines in made.items()}


def _marked(lines: list[str]) -> str:
    """A page of lines, with a remark under its title."""
    title, *rest = lines
    return "\n".join([title, "", _MARK, *rest]).rstrip("\n") + "\n"


def write() -> None:
    """Write every page; a page that is no longer made is removed."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
