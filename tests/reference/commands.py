"""docs/reference/commands.md: what `--help` prints of every command, and exit codes."""

import contextlib
import io
import os
from unittest import mock

import typer

from launch.cli import app
from launch.cli.exit import Exit
from tests.reference.table import table

_EXITS = {
    Exit.OK: "it worked",
    Exit.FAILED: "bad input, or something failed",
    Exit.USAGE: "the command line is wrong",
    Exit.NOTHING_FITS: "no layout fits, or none is possible",
    Exit.DIFFERS: "`verify`: beyond the tolerance; `diff --exit-code`: not equal; "
    "`plan --from`: restart with the new plan",
    Exit.STALE: "a plan or a profile is not of this machine or model",
    Exit.BUG: "a bug; the error names a file with the traceback",
    Exit.INTERRUPTED: "interrupted; what was begun can be read or resumed",
}

_TITLE = """# Commands
Every command takes `-h`. Results go to stdout, remarks and progress to stderr; `--json` puts
exactly one document on stdout, failures included (kind `error`). `meshwright --install-completion`
completes commands, options and catalogue names in your shell.
"""


def page() -> list[str]:
    """The lines of the page."""
    commands = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]
    names = [
        " ".join((name, *inner))
        for name, command in commands.items()
        for inner in ((), *((sub,) for sub in getattr(command, "commands", ())))
    ]
    lines = [
        *_TITLE.split("\n"),
        ", ".join(f"[{name}](#{name.replace(' ', '-')})" for name in names),
        "",
        "## Exit codes",
        "",
        *table(("code", "means"), ((int(code), text) for code, text in _EXITS.items())),
    ]
    lines += ["## meshwright", "", "```text", *help_of(), "```", ""]
    for name in names:
        lines += [f"## {name}", "", "```text", *help_of(*name.split()), "```", ""]
    return lines


def help_of(*command: str) -> list[str]:
    """The help of a command in 80 columns."""
    out = io.StringIO()
    terminal = {"COLUMNS": "80", "TERM": "dumb"}
    with mock.patch.dict(os.environ, terminal), contextlib.redirect_stdout(out):
        code = app.run([*command, "--help"])
    if code != Exit.OK:
        raise RuntimeError(f"`{' '.join(command)} --help` exits {code}")
    return out.getvalue().rstrip().splitlines()
