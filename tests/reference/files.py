"""docs/reference/files.md: kinds of files and their fields, from the JSON Schemas."""

from collections.abc import Iterator
from typing import Any

from launch.cli.schema import KINDS, schema_of
from tests.reference.table import table

Schema = dict[str, Any]
_TITLE = """# Files
What Meshwright reads and writes. `meshwright schema KIND` prints the JSON Schema (draft 2020-12) of
each, for editors and programs. Files written by a command are JSON with `format_version` and
`kind`; a newer minor version is read with a warning, a newer major one refused. Files written by
hand are YAML or JSON; an unknown key is an error with its line. Bold fields must be there.
"""


def page() -> list[str]:
    """The lines of the page: each kind with its own fields, then the records that they share."""
    schemas = {kind: schema_of(kind) for kind in KINDS}
    records = _records(schemas)
    lines = [
        *_TITLE.split("\n"),
        *table(("kind", ""), ((f"[{kind}](#{kind})", text) for kind, text in KINDS.items())),
    ]
    for kind, schema in schemas.items():
        lines += [f"## {kind}", "", *_about(schema), *_fields(schema)]
    lines += ["## Records", "", "In the order of their names.", ""]
    for name in sorted(records, key=str.lower):
        lines += [f"### {name}", "", *_about(records[name]), *_fields(records[name])]
    return lines


def _records(schemas: dict[str, Schema]) -> dict[str, Schema]:
    """Every record of the schemas; the same name is the same record in all of them."""
    found: dict[str, Schema] = {}
    for schema in schemas.values():
        for name, own in (*schema.get("$defs", {}).items(), *_forms(schema)):
            if found.setdefault(name, own) != own:
                raise RuntimeError(f"two records are called {name}")
    return found


def _forms(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Records that stand where they are used, in `anyOf`."""
    for own in schema["properties"].values():
        for form in own.get("items", {}).get("anyOf", ()):
            if "properties" in form:
                yield form["title"], form


def _about(schema: Schema) -> list[str]:
    """Its description, if it is more than its name and fields."""
    text = " ".join(schema.get("description", "").split())
    return [text, ""] if text else []


def _fields(schema: Schema) -> list[str]:
    required = set(schema.get("required", ()))
    rows = [
        (
            f"**`{name}`**" if name in required else f"`{name}`",
            type_of(own),
            "" if name in required else _default(own),
            own.get("description", ""),
        )
        for name, own in schema.get("properties", {}).items()
    ]
    return table(("field", "type", "default", ""), rows) if rows else ["No fields.", ""]


def _default(own: Schema) -> str:
    value = own.get("default")
    if value is None or value in ([], {}, ""):
        return "" if "default" not in own and value is None else "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def type_of(own: Schema) -> str:
    """A schema in words: `list of [StageMemory](#stagememory)`, `integer > 0`, `a or b`."""
    if "$ref" in own:
        return _linked(own["$ref"].rsplit("/", 1)[1])
    if "anyOf" in own:
        forms = own["anyOf"]
        return " or ".join(_linked(f["title"]) if "properties" in f else type_of(f) for f in forms)
    if "const" in own:
        return f"`{own['const']}`"
    if "enum" in own:
        return ", ".join(f"`{value}`" for value in own["enum"])
    kind = own.get("type", "any")
    if kind == "array":
        return _array(own)
    if kind == "object":
        values = own.get("additionalProperties")
        return f"map of {type_of(values)}" if isinstance(values, dict) else "map"
    return f"{'none' if kind == 'null' else kind}{_range(own)}"


def _linked(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _array(own: Schema) -> str:
    if "prefixItems" in own:
        return f"({', '.join(type_of(item) for item in own['prefixItems'])})"
    return f"list of {type_of(own.get('items', {}))}"


def _range(own: Schema) -> str:
    """` > 0`, ` 0 to 1`; empty where any value will do."""
    least, most = own.get("minimum"), own.get("maximum")
    if least is not None and most is not None:
        return f" {least:g} to {most:g}"
    parts = [
        f"{sign} {own[key]:g}"
        for key, sign in (
            ("exclusiveMinimum", ">"), ("minimum", ">="), ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        if key in own
    ]  # fmt: skip
    return f" {', '.join(parts)}" if parts else ""
