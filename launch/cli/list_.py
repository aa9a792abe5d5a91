"""`meshwright list`: what the catalogue holds."""

from typing import Annotated

import typer

from launch.cli.options import Json
from launch.cli.terminal import say
from profiler.errors import UserError

KINDS = ("models", "devices", "clusters")


def run(
    kind: Annotated[str, typer.Argument(help=", ".join(KINDS), show_default="all")] = "",
    as_json: Json = False,
) -> None:
    """List catalogued models, devices and clusters."""
    from profiler.catalog import list_clusters, list_devices, list_models

    listed = {"models": list_models, "devices": list_devices, "clusters": list_clusters}
    if kind and kind not in KINDS:
        raise UserError(f"nothing of kind `{kind}` is listed", hint=f"kinds: {', '.join(KINDS)}")
    found = {k: listed[k]() for k in KINDS if kind in ("", k)}
    if as_json:
        from profiler.codec import canonical

        items = {
            k: [{"name": i.name, "description": i.description} for i in v] for k, v in found.items()
        }
        typer.echo(canonical({"format_version": "1.0", "kind": "catalogue", **items}), nl=False)
        return
    for title, items_of in found.items():
        say(f"{title.capitalize()}")
        for item in items_of:
            say(f"  {item.name:<24}{item.description}"[:80].rstrip())
        say()
    if "devices" in found:
        say("A cluster can also be named by its size: h100-2x8 is 2 nodes of 8 h100")
