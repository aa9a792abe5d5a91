"""A page of docs/guide: what its commands print when they run one after the other, and the page
with the outputs it should show.

Blocks of a page, by the word after the fence:

    sh        commands that are run, in one folder with the repository's `examples`; a line that
              ends in `# exit N` ends with that code, any other with 0
    text      what the last command before it printed: all of it, or the paragraphs whose first
              lines begin with the words that follow, separated by `|`
    yaml      a file; its first line is `# NAME`
    console   commands that need hosts, devices or minutes: not run
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from launch.cli.app import app
from launch.cli.experts import DEFAULT

_FENCE = re.compile(r"^```(\w*) *([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXIT = re.compile(r"# exit (\d+)$")
_FIGURE = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)? ?(?:%|GiB|s\b|times\b)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: the word after the fence, the words after it, the lines inside."""

    kind: str
    words: str
    body: str


def blocks_of(page: str) -> Iterator[Block]:
    """The blocks of a page in order."""
    for match in _FENCE.finditer(page):
        yield Block(kind=match[1], words=match[2], body=match[3])


def commands_of(block: Block) -> Iterator[tuple[list[str], int]]:
    """The arguments of each command of a block, and its exit code; other lines are left out."""
    for line in block.body.replace("\\\n", " ").splitlines():
        code = _EXIT.search(line)
        words = shlex.split(line, comments=True)
        if words[:1] == ["meshwright"]:
            yield words[1:], int(code[1]) if code else 0
        elif words and block.kind == "sh":
            raise AssertionError(f"not a command of meshwright: {line}")


def unknown_options(args: list[str]) -> set[str]:
    """Options of a command line that its command does not have; `AssertionError` for a command
    that there is none of."""
    group = typer.main.get_command(app)
    name = next((a for a in args if not a.startswith("-")), None)
    assert name is None or name in group.commands, f"no command `{name}`"
    params = [*group.params]
    if name:
        command = group.commands[name]
        params += command.params
        if inner := getattr(command, "commands", {}):  # `experts TRACE` is `experts place TRACE`
            following = args[args.index(name) + 1 :]
            params += inner[
                following[0] if following[:1] and following[0] in inner else DEFAULT
            ].params
    known = {text for p in params for text in (*p.opts, *p.secondary_opts)}
    return {a.split("=")[0] for a in args if a.startswith("-") and a != "-"} - known - {"--help"}


def run_page(page: str, run: Callable, folder: Path) -> tuple[str, str]:
    """Run a page in a folder: the page with the outputs as they are, and all that was printed.

    `run` is the fixture `meshwright`.
    """
    said, printed = "", []
    parts, end = [], 0
    for match in _FENCE.finditer(page):
        block = Block(kind=match[1], words=match[2], body=match[3])
        if block.kind == "yaml":
            name = block.body.splitlines()[0].removeprefix("# ")
            (folder / name).write_text(block.body, encoding="utf-8")
        elif block.kind == "sh":
            for args, code in commands_of(block):
                result = run(*args)
                assert result.code == code, (args, result.err)
                said = result.out or result.err
                printed.append(result.out + result.err)
        elif block.kind == "text":
            parts += [page[end : match.start(3)], excerpt(said, block.words)]
            end = match.end(3)
        else:
            assert block.kind == "console", f"a block of kind `{block.kind}`"
    return "".join([*parts, page[end:]]), "\n".join(printed)


def excerpt(said: str, words: str) -> str:
    """All of an output, or its paragraphs that begin with the words, in their order."""
    if not words:
        return f"{said.strip(chr(10))}\n"
    paragraphs = said.strip("\n").split("\n\n")
    found = []
    for start in (w.strip() for w in words.split("|")):
        own = [p for p in paragraphs if p.lstrip().startswith(start)]
        assert own, f"no paragraph begins with `{start}` in:\n{said}"
        found.append(own[0].strip("\n"))
    return "\n\n".join(found) + "\n"


def figures_of(page: str) -> set[str]:
    """Percentages, seconds, GiB and `times` in a page's sentences."""
    return set(_FIGURE.findall(_FENCE.sub("", page)))
