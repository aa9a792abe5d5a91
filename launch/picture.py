"""Pictures by matplotlib, which is optional: whether one can be drawn, and saving it whole."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.artifact import write_atomic
from profiler.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> None:
    """Whether a picture could be drawn there; asked before the work, not after it."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"cannot draw `{path}`", hint=f"the name ends in one of {', '.join(SUFFIXES)}"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            "drawing needs matplotlib, which is not installed",
            hint="pip install 'meshwright[plot]'",
        ) from None


def save_picture(figure: "Figure", path: Path) -> None:
    """Whole or not at all; without the date, so that equal figures give equal bytes."""
    kind = path.suffix.lower()
    dated: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind[1:], dpi=150, metadata=dated.get(kind, {"Software": None}))
    write_atomic(path, drawn.getvalue())
