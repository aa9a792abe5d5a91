"""`meshwright experts`: recorded routing, and where experts go because of it.

`experts TRACE ...` places them (`place`); the other uses are commands of their own.
"""

from typing import Any

import typer
from typer.core import TyperGroup

from launch.cli import experts_import, experts_place, experts_show

DEFAULT = "place"
"""What `experts TRACE` without a command means, where it is registered."""


class _Group(TyperGroup):
    """A first word that is neither a command nor an option is the trace of `DEFAULT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if DEFAULT in self.commands and args and args[0] not in self.commands:
            helps = args[0] in ctx.help_option_names
            args = args if helps else [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    help="Recorded routing: place experts by it (`experts TRACE --ep N`), show it, convert it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command(DEFAULT)(experts_place.run)
app.command("show")(experts_show.run)
app.command("import")(experts_import.run)
