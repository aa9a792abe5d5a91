"""Frozen records and their strict, place-naming JSON and YAML.

`@record` makes a frozen, slotted, keyword-only dataclass whose decoding refuses unknown keys, wrong
types and non-finite numbers (pydantic checks; strict mode, no coercion). `decode` reads text; its
errors name the file, the line and the nearest known key. `encode` gives canonical bytes: sorted
keys, shortest float form, one trailing newline, so that equal values are equal files.

YAML is read through its node tree instead of PyYAML's constructors: `450e9` is a number (PyYAML
reads a string), a key given twice is an error, and anchors and tags are refused.
"""

import dataclasses
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from profiler.errors import UserError, other_kind
from profiler.names import one_of
from profiler.yaml_nodes import Lines, json_lines, parse_yaml

if typing.TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
Path_ = tuple[str | int, ...]

MAX_BYTES = 256 * 2**20
_WRITERS = {"plan": "plan", "profile": "profile", "observed": "launch", "status": "launch"}
"""Kind of artifact -> the command that writes it."""
_HEADER = ("format_version", "kind")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Frozen, slotted, keyword-only dataclass with strict decoding; docstrings under fields
    describe them.
    """
    made = dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(cls)
    config = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }
    made.__pydantic_config__ = config  # type: ignore[attr-defined]
    return made


_adapters: dict[type[Any], "TypeAdapter[Any]"] = {}


def _adapter(cls: type[T]) -> "TypeAdapter[T]":
    if cls not in _adapters:
        from pydantic import TypeAdapter  # here, so that `--help` does not pay for it

        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def json_schema(cls: type[Any]) -> dict[str, Any]:
    """JSON Schema of a record."""
    return _adapter(cls).json_schema(mode="validation")


def to_plain(value: object) -> Any:
    """Record -> dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def canonical(plain: object) -> str:
    """Canonical JSON text of plain values: same values, same bytes."""
    return json.dumps(plain, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=True) + "\n"


replace = dataclasses.replace
"""A record with some fields changed."""


def encode(value: object) -> str:
    """Canonical JSON text of a record."""
    return canonical(to_plain(value))


def content_id(plain: object, prefix: str) -> str:
    """Short name of a content: `prefix-` and 12 hex digits of its SHA-256."""
    digest = hashlib.sha256(canonical(plain).encode()).hexdigest()
    return f"{prefix}-{digest[:12]}"


def read_text(path: Path) -> str:
    """Text of a user's file; `UserError` where it cannot be read as UTF-8."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"file is larger than {MAX_BYTES >> 20} MiB", place=str(path))
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no such file: `{path}`", hint="check the path") from None
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else "it is not UTF-8 text"
        raise UserError(f"cannot read the file: {reason.lower()}", place=str(path)) from None


def parse(text: str, name: str) -> tuple[Any, Lines]:
    """JSON (name ends in `.json`) or YAML text -> plain tree and the line of each path in it."""
    if name.endswith(".json"):
        return parse_json(text, name), {}
    return parse_yaml(text, name)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise UserError(f"key `{twice}` is given twice")
    return out


def _no_constant(word: str) -> Any:
    raise UserError(f"`{word}` is not a number that JSON knows")


def parse_json(text: str, name: str, *, constants: bool = False) -> Any:
    """JSON text -> tree; `constants`: NaN and Infinity, which Python writes though JSON does not
    know them, are numbers. `UserError` with the line."""
    constant = float if constants else _no_constant
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=constant)
    except UserError as e:
        raise UserError(e.message, place=name) from None
    except json.JSONDecodeError as e:
        if not text.strip():
            raise UserError("the file is empty", place=name) from None
        hint = "the file is cut off" if e.pos >= len(text.rstrip()) else None
        raise UserError(
            f"not JSON: {e.msg.lower()}", place=f"{name}:{e.lineno}", hint=hint
        ) from None
    except RecursionError:
        raise UserError("nested too deeply", place=name) from None
    except ValueError:
        raise UserError("a number is too long to read", place=name) from None


def decode(cls: type[T], text: str, name: str) -> T:
    """Text -> record. `name` is what errors call the file, and its ending chooses JSON or YAML."""
    tree, lines = parse(text, name)
    return build(cls, tree, name, lines=lines, text=text)


def build(
    cls: type[T], tree: object, name: str, *, lines: Lines | None = None, text: str | None = None
) -> T:
    """Plain tree -> record, checked; errors name `name`, the path and, where known, the line."""
    from pydantic import ValidationError

    try:
        value: T = _adapter(cls).validate_json(json.dumps(tree))
        return value
    except ValidationError as e:
        error = _explain(cls, e, name, lines or {}, text)
    except UserError as e:
        error = UserError(e.message, hint=e.hint, place=e.place or name, kind=e.kind)
    except RecursionError:
        error = UserError("nested too deeply", place=name)
    raise error


def place_of(path: Path_, name: str, lines: Lines, text: str | None) -> str:
    """`NAME:LINE` of a path or of its nearest known parent; `NAME` where no line is known.

    `text` gives the lines of a JSON file, which are sought only when an error needs them.
    """
    if not lines and text is not None and name.endswith(".json"):
        lines = json_lines(text)
    while path and path not in lines:
        path = path[:-1]
    return f"{name}:{lines[path]}" if path in lines else name


def _explain(
    cls: type[Any], e: "ValidationError", name: str, lines: Lines, text: str | None
) -> UserError:
    """The first thing wrong: one sentence, its place and, for a key, the nearest known one."""
    errors = e.errors(include_url=False, include_input=True)
    first = next((x for x in errors if x["type"] in _KEY_ERRORS), errors[0])
    loc: Path_ = tuple(first["loc"])
    place = place_of(loc, name, lines, text)
    if first["type"] in _KEY_ERRORS:
        key, known = str(loc[-1]), _fields_at(cls, loc[:-1])
        return UserError(f"unknown key `{key}`", hint=one_of(key, known, "known keys"), place=place)
    where = ".".join(str(p) for p in loc)
    if first["type"] == "missing":
        return UserError(f"key `{where}` is missing", place=place)
    message = first["msg"][0].lower() + first["msg"][1:].rstrip(".")
    at = f"`{where}`: " if where else ""
    return UserError(f"{at}{message}{_shown(first.get('input'))}", place=place)


_KEY_ERRORS = ("unexpected_keyword_argument", "extra_forbidden")


def _shown(value: object) -> str:
    if isinstance(value, str | int | float | bool) or value is None:
        text = json.dumps(value)
        return f", not `{text[:40]}{'...' if len(text) > 40 else ''}`"
    return ""


def _fields_at(cls: Any, loc: Path_) -> list[str]:
    """Known keys of the record at `loc`, by walking the type hints."""
    for step in loc:
        cls = _strip(cls)
        if isinstance(step, int):
            cls = typing.get_args(cls)[0] if typing.get_args(cls) else cls
        elif dataclasses.is_dataclass(cls):
            cls = typing.get_type_hints(cls).get(step, cls)
        elif typing.get_origin(cls) is dict:
            cls = typing.get_args(cls)[1]
    cls = _strip(cls)
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _strip(cls: Any) -> Any:
    """Without `Annotated` and `| None`."""
    while typing.get_origin(cls) in (typing.Annotated, typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(cls) if a is not type(None)]
        cls = rest[0]
    return cls


def decode_artifact(
    cls: type[T], text: str, name: str, *, kind: str, version: str
) -> tuple[T, str | None]:
    """One of our own JSON files -> (record, warning or None).

    The header (`kind`, `format_version`) is looked at first. Same major and newer minor: read, with
    keys this version does not know left out, and a warning. Newer major, or another kind:
    `UserError`.
    """
    name_for_parse = name if name.endswith(".json") else f"{name}.json"
    try:
        tree, _ = parse(text, name_for_parse)
    except UserError as e:
        place = (e.place or name).replace(name_for_parse, name, 1)
        raise UserError(e.message, hint=e.hint, place=place) from None
    made = f"`meshwright {_WRITERS[kind]}`"
    if not isinstance(tree, dict) or any(not isinstance(tree.get(k), str) for k in _HEADER):
        raise UserError(f"not a Meshwright {kind} file", hint=f"{made} writes one", place=name)
    if tree["kind"] != kind:
        raise other_kind(tree["kind"], kind, name)
    newer = _newer_minor(tree["format_version"], version, kind, name)
    if newer:
        tree = _without_unknown(cls, tree)
    value = build(cls, tree, name, text=text)
    warning = (
        f"{name} has format {tree['format_version']}, newer than {version}: what is new is left out"
    )
    return value, warning if newer else None


def _newer_minor(found: str, own: str, kind: str, name: str) -> bool:
    try:
        major, minor = (int(x) for x in found.split("."))
    except ValueError:
        raise UserError(f"`format_version` is not a version: `{found[:40]}`", place=name) from None
    own_major, own_minor = (int(x) for x in own.split("."))
    if major != own_major:
        raise UserError(
            f"{kind} format {found} is not one this version reads ({own})",
            hint="upgrade Meshwright" if major > own_major else f"make the {kind} again",
            place=name,
        )
    return minor > own_minor


def _without_unknown(cls: type[T], tree: dict[str, Any]) -> dict[str, Any]:
    """The tree less the keys that the record does not know, at any depth."""
    from pydantic import ValidationError

    try:
        _adapter(cls).validate_json(json.dumps(tree))
    except ValidationError as e:
        for error in e.errors(include_url=False):
            if error["type"] not in _KEY_ERRORS:
                continue
            node: Any = tree
            for step in error["loc"][:-1]:
                node = node[step]
            node.pop(error["loc"][-1], None)
    return tree
