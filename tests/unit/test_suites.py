"""The runs of the Makefile name folders and marks; every test is in one of them."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FILES = {path.relative_to(TESTS).as_posix(): path.read_text() for path in TESTS.rglob("test_*.py")}
ALONE = "lab/test_topology.py"
"""What needs no process with torch, of a folder whose other tests do."""


def marked(name: str) -> set[str]:
    """Files that have a mark."""
    pattern = re.compile(rf"pytest\.mark\.{name}\b")
    return {path for path, text in FILES.items() if pattern.search(text)}


def within(*folders: str) -> set[str]:
    """Files of folders."""
    return {path for path in FILES if path.split("/")[0] in folders}


def test_every_file_is_in_a_folder_that_is_run() -> None:
    assert within("unit", "cli", "parity", "frameworks", "lab") == set(FILES)


def test_all_of_a_folder_starts_processes_or_none_does() -> None:
    assert marked("distributed") == within("parity", "frameworks", "lab") - {ALONE}


def test_the_three_runs_of_real_processes_look_where_their_marks_are() -> None:
    assert marked("lab") <= within("lab")
    assert within("lab") - {ALONE} <= marked("lab")
    assert marked("started") | marked("timed") <= within("parity")
