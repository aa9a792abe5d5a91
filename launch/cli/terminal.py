"""What all commands share of the terminal: global switches, styles, progress."""

import os
import sys
import time
from dataclasses import dataclass
from typing import TextIO


@dataclass(slots=True)
class State:
    """Global options of the command line."""

    quiet: bool = False
    verbose: bool = False
    no_color: bool = False


STATE = State()


def _styled(stream: TextIO) -> bool:
    return stream.isatty() and not STATE.no_color and "NO_COLOR" not in os.environ


def bold(text: str) -> str:
    """Bold where stdout is a terminal that shows it."""
    return f"\x1b[1m{text}\x1b[0m" if _styled(sys.stdout) else text


def say(text: str = "") -> None:
    """A line of the answer, on stdout."""
    print(text)


def note(text: str) -> None:
    """A line about the work, on stderr; none with `--quiet`."""
    if not STATE.quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A warning on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Progress:
    """`[12/57] label, about 40 s left` on stderr: one line rewritten on a terminal, some lines in a
    file.
    """

    def __init__(self, every_s: float = 5.0) -> None:
        self._begin = self._shown = time.monotonic()
        self._first_done: int | None = None
        self._every_s = every_s
        self._open_line = False
        self._text = ""

    def __call__(self, done: int, total: int, label: str) -> None:
        """Show that `done` of `total` pieces are finished and `label` is under way."""
        now = time.monotonic()
        if self._first_done is None:
            self._first_done, self._begin = done, now
        terminal = sys.stderr.isatty()
        if STATE.quiet or (not terminal and now - self._shown < self._every_s and done < total):
            return
        self._shown = now
        made = done - self._first_done
        left = (now - self._begin) / made * (total - done) if made else None
        time_left = f", about {left:.0f} s left" if left is not None and done < total else ""
        text = f"[{done}/{total}] {label}{time_left}".rstrip()
        if not terminal and text == self._text:  # the end is told once
            return
        self._text = text
        if terminal:
            sys.stderr.write(f"\r\x1b[K{text[:79]}")
            self._open_line = True
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self._open_line:
            sys.stderr.write("\n")
            self._open_line = False
