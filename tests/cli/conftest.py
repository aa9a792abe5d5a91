"""Run a command line in this process, or compare a text with its golden file."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.cli import app
from launch.cli.terminal import STATE

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@dataclass
class Result:
    """What a user sees."""

    code: int
    out: str
    err: str


@pytest.fixture
def meshwright(capsys, tmp_path, monkeypatch):
    """`meshwright("plan", "-m", ...)` in an empty folder of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")

    def run(*args: object) -> Result:
        STATE.quiet = STATE.verbose = STATE.no_color = False
        capsys.readouterr()
        code = app.run([str(a) for a in args])
        captured = capsys.readouterr()
        return Result(int(code), captured.out, captured.err)

    return run


@pytest.fixture
def golden():
    """Compare with tests/golden/NAME; `UPDATE_GOLDEN=1` writes it."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if "UPDATE_GOLDEN" in os.environ:
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return check
