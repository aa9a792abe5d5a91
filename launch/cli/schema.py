"""`meshwright schema`: JSON Schemas of what Meshwright reads and writes (draft 2020-12)."""

from typing import Annotated, Any

import typer

from launch.cli import complete
from launch.cli.terminal import say
from profiler.errors import UserError

KINDS = {
    "plan": "a plan, as `plan` saves it",
    "profile": "measured blocks and transfers, as `profile` saves them",
    "cluster": "a cluster, written by hand (`plan -c`)",
    "layout": "a layout, written by hand (`plan --layout`)",
    "recipe": "what to train with, written by hand (`launch --recipe`)",
    "observed": "what a run did, as `launch` saves it",
    "status": "the state of a run, as `launch` saves it",
    "run": "the state of a run, as `launch --status --json` prints it",
    "verdict": "prediction against run, as `verify --json` prints it",
    "replan": "what to run now, as `plan --from --json` prints it",
}


def run(
    kind: Annotated[
        str,
        typer.Argument(
            help=", ".join(KINDS), show_default="lists them", autocompletion=complete.among(KINDS)
        ),
    ] = "",
) -> None:
    """Print the JSON Schema of a kind of file."""
    if not kind:
        width = max(map(len, KINDS)) + 2
        for name, text in KINDS.items():
            say(f"  {name:<{width}}{text}")
        return
    from profiler.codec import canonical

    typer.echo(canonical(schema_of(kind)), nl=False)


def schema_of(kind: str) -> dict[str, Any]:
    """JSON Schema of a kind of file; `UserError` for one that there is none of."""
    from launch.observed import Observed
    from launch.progress import RunReport
    from launch.recipe import Recipe
    from launch.status import Status
    from launch.verify import Verdict
    from planner.given import LayoutFile
    from planner.plan import Plan
    from planner.replan import Replan
    from profiler.catalog.cluster_file import ClusterFile, NamedNodes, OwnNodes, TypedNodes
    from profiler.codec import json_schema
    from profiler.profile import Profile

    records = {
        "plan": Plan, "profile": Profile, "cluster": ClusterFile, "layout": LayoutFile,
        "recipe": Recipe, "observed": Observed, "status": Status, "run": RunReport,
        "verdict": Verdict, "replan": Replan,
    }  # fmt: skip
    if kind not in records:
        raise UserError(f"there is no schema of `{kind[:40]}`", hint=f"kinds: {', '.join(KINDS)}")
    schema = json_schema(records[kind])
    if kind == "cluster":
        # A node group is decoded by the kind of its device: its schema is of three forms.
        forms = [json_schema(form) for form in (NamedNodes, TypedNodes, OwnNodes)]
        schema["$defs"] = {k: v for form in forms for k, v in form.pop("$defs", {}).items()}
        schema["properties"]["nodes"]["items"] = {"anyOf": forms}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
