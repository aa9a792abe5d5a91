"""The one exception that is the user's to mend.

Every reader and every decision raises `UserError` for what the user can put right; anything else
that escapes is a bug of ours. The terminal prints `error: PLACE: MESSAGE`, an empty line and `hint:
HINT`, and turns `kind` into the exit code.
"""

from typing import Literal

ErrorKind = Literal["invalid", "infeasible", "stale", "failed", "interrupted"]
"""invalid: bad input. infeasible: nothing fits. stale: made for something else. failed: a run
broke.
"""


def _one_line(text: str) -> str:
    """Control characters escaped: messages quote what users' files hold, down to the last byte."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def other_kind(found: object, wanted: str, place: str) -> "UserError":
    """The error for one of our files where another kind is wanted."""
    article = "an" if wanted[:1] in "aeiou" else "a"
    return UserError(
        f"this is a `{str(found)[:40]}` file, not {article} `{wanted}` file", place=place
    )


class UserError(Exception):
    """A failure with a message for the user, a place where there is one, and a way out.

    `message` is one lower-case sentence without a final period; `place` is `FILE`, or `FILE:LINE`.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        place: str | None = None,
        kind: ErrorKind = "invalid",
        details: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = _one_line(message)
        self.hint = _one_line(hint) if hint else hint
        self.place = _one_line(place) if place else place
        self.kind: ErrorKind = kind
        self.details = details

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message
