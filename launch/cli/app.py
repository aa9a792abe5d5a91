"""The `meshwright` command: registers the commands and turns every ending into its message and exit
code.

Commands import what they need when they run, so that `--help` loads no numpy, torch or solver.
"""

import json
import os
import sys
import tempfile
import textwrap
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.cli import (
    diff,
    experts,
    export,
    launch,
    list_,
    map_,
    plan,
    profile,
    schema,
    show,
    validate,
    verify,
    why,
)
from launch.cli.exit import OF_KIND, TEXT, Exit
from launch.cli.terminal import STATE
from profiler.errors import UserError

app = typer.Typer(
    name="meshwright",
    help="Measure a cluster, choose the parallel layout of a training run, run it, and check it.",
    epilog=TEXT,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"meshwright {version('meshwright')}")
        raise typer.Exit


@app.callback()
def _global(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Tracebacks of bugs.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="Plain text.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    STATE.quiet, STATE.verbose, STATE.no_color = quiet, verbose, no_color


app.command("profile")(profile.run)
app.command("plan")(plan.run)
app.command("show")(show.run)
app.command("why")(why.run)
app.command("diff")(diff.run)
app.command("launch")(launch.run)
app.command("verify")(verify.run)
app.command("validate")(validate.run)
app.command("map")(map_.run)
app.add_typer(experts.app, name="experts")
app.command("export")(export.run)
app.command("list")(list_.run)
app.command("schema")(schema.run)


def main() -> None:
    """Console entry: runs a command and exits with its code."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command line; returns the exit code and lets no exception out."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    as_json = "--json" in argv
    try:
        result = typer.main.get_command(app)(
            args=argv, prog_name="meshwright", standalone_mode=False
        )
        sys.stdout.flush()
        if result == Exit.INTERRUPTED:  # the parser turns Ctrl-C into a status
            raise KeyboardInterrupt
        return int(result) if isinstance(result, int) else Exit.OK
    except UserError as e:
        _report(e, as_json)
        return OF_KIND[e.kind]
    except (KeyboardInterrupt, typer.Abort):
        _report(UserError("interrupted", kind="interrupted"), as_json)
        return Exit.INTERRUPTED
    except (
        SystemExit
    ) as e:  # how the parser ends what a shell asks of completion, and a broken pipe
        if isinstance(e.__context__, BrokenPipeError):
            return _reader_left()
        return e.code if isinstance(e.code, int) else Exit.OK
    except BrokenPipeError:
        return _reader_left()
    except Exception as e:
        if hasattr(e, "format_message"):  # a usage error of the command line parser
            return _usage(e, as_json)
        _report(_bug(e), as_json, code="bug")
        return Exit.BUG


def _reader_left() -> int:
    """The reader of our output left (`| head`): nothing to say, and nowhere to say it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return Exit.OK


def _usage(e: Any, as_json: bool) -> int:
    message = str(e.format_message()).strip().rstrip(".")
    if type(e).__name__ == "NoArgsIsHelpError":  # bare `meshwright`: its message is the help
        print(e.format_message(), file=sys.stderr)
        return Exit.USAGE
    command = e.ctx.command_path if getattr(e, "ctx", None) else "meshwright"
    message = message[:1].lower() + message[1:]
    _report(
        UserError(message, hint=f"`{command} --help` lists what it takes"), as_json, code="usage"
    )
    return Exit.USAGE


def _bug(e: Exception) -> UserError:
    handle, name = tempfile.mkstemp(prefix="meshwright-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as f:
        traceback.print_exception(e, file=f)
    if STATE.verbose:
        sys.stderr.write(Path(name).read_text(encoding="utf-8"))
    return UserError(
        f"this is a bug in Meshwright: {type(e).__name__}: {str(e)[:200]}",
        hint=f"the traceback is in `{name}`; please report it",
    )


def _fitted(line: str, indent: int = 2) -> list[str]:
    """A line in lines of 80 columns, whole where it holds a long path; `error:` is never broken."""
    if len(line) <= 80 or any(len(word) > 60 for word in line.split()):
        return [line]
    start = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.strip(), 80, initial_indent=start, subsequent_indent=start + " " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _report(e: UserError, as_json: bool, code: str | None = None) -> None:
    place = f"{e.place}: " if e.place else ""
    lines = [f"error: {place}{e.message}"]
    lines += ["", *(part for line in e.details for part in _fitted(line))] if e.details else []
    lines += ["", *_fitted(f"hint: {e.hint}", indent=6)] if e.hint else []
    print("\n".join(lines), file=sys.stderr)
    if as_json:
        document = {
            "format_version": "1.0",
            "kind": "error",
            "code": code or e.kind,
            "message": e.message,
            "place": e.place,
            "details": list(e.details),
            "hint": e.hint,
        }
        print(json.dumps(document, sort_keys=True, indent=1))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
