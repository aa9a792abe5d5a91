"""`meshwright list`: what the catalogue holds."""

import textwrap
from typing import Annotated

import typer

from launch.cli import complete
from launch.cli.options import Json
from launch.cli.terminal import say
from profiler.errors import UserError

TITLES = {
    "models": "Models",
    "devices": "Devices",
    "nodes": "Node types",
    "clusters": "Clusters",
    "software": "Training software",
}
KINDS = tuple(TITLES)
_INDENT = 2
_NAME = 24
_WIDTH = 80


def run(
    kind: Annotated[
        str,
        typer.Argument(
            help=", ".join(KINDS), show_default="all", autocompletion=complete.among(TITLES)
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """List catalogued models, devices, node types, clusters and training software."""
    from profiler.catalog import list_clusters, list_devices, list_models, list_nodes
    from profiler.catalog.constants import list_software

    listed = {
        "models": list_models,
        "devices": list_devices,
        "nodes": list_nodes,
        "clusters": list_clusters,
        "software": list_software,
    }
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
    for key, items_of in found.items():
        say(TITLES[key])
        for item in items_of:
            _say_item(item.name, item.description)
        say()
    if "devices" in found:
        say("A cluster can also be named by its size: h100-2x8 is 2 nodes of 8 h100")
    if "nodes" in found:
        say("Or by a node type and a number: aws-p5-16 is 16 nodes of aws-p5")


def _say_item(name: str, description: str) -> None:
    """Name and description in two columns; a long description goes on below itself."""
    lines = textwrap.wrap(description, _WIDTH - _INDENT - _NAME) or [""]
    say(f"{' ' * _INDENT}{name:<{_NAME}}{lines[0]}".rstrip())
    for line in lines[1:]:
        say(" " * (_INDENT + _NAME) + line)
