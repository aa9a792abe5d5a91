"""YAML text -> plain tree with the line of every path, decoded strictly over `yaml.compose`.

YAML 1.2's core scalars: null, true/false, integers, floats (`450e9` included), strings. Refused:
keys given twice, keys that are no strings, anchors and aliases, explicit tags, more than one
document.
"""

import math
import re
from typing import Any

import yaml

from profiler.errors import UserError

Lines = dict[tuple[str | int, ...], int]
"""Line (from 1) at which the value of a path begins; for a key, the key's line."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(\d[\d_]*)?(\.\d+|\d\.?)([eE][-+]?\d+)?")
_WORDS: dict[str, bool | None] = {
    "null": None, "~": None, "": None, "true": True, "false": False,
    "Null": None, "NULL": None, "True": True, "False": False, "TRUE": True, "FALSE": False,
}  # fmt: skip
_PLAIN_TAGS = (
    "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:str",
    "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool",
    "tag:yaml.org,2002:null", "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge",
    "tag:yaml.org,2002:value",
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses anchors (a few lines of them grow without bound)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(
                "anchors and aliases are not read", place=str(event.start_mark.line + 1)
            )
        return super().compose_node(parent, index)


def _compose(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def parse_yaml(text: str, name: str) -> tuple[Any, Lines]:
    """Text -> (plain tree, lines). Raises `UserError` with file and line."""
    lines: Lines = {}
    try:
        root = _compose(text)
        return (None if root is None else _plain(root, (), lines)), lines
    except UserError as e:
        raise UserError(e.message, hint=e.hint, place=f"{name}:{e.place}") from None
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise UserError(f"not YAML: {e.problem or e.context}", place=place) from None
    except yaml.YAMLError:
        raise UserError(
            "not YAML: it holds characters that YAML does not allow", place=name
        ) from None
    except RecursionError:
        raise UserError("nested too deeply", place=name) from None
    except ValueError:
        raise UserError("a number or escape cannot be read", place=name) from None


def json_lines(text: str) -> Lines:
    """Lines of the paths of a JSON text (JSON is read as the YAML it almost always is); {} where
    not.
    """
    lines: Lines = {}
    try:
        root = _compose(text)
        if root is not None:
            _plain(root, (), lines)
    except (UserError, yaml.YAMLError, RecursionError, ValueError):
        return {}
    return lines


def _plain(node: Any, path: tuple[str | int, ...], lines: Lines) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if node.tag not in _PLAIN_TAGS:
        raise UserError(f"tag `{node.tag}` is not read", place=str(line))
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*path, i), lines) for i, child in enumerate(node.value)]
    out: dict[str, Any] = {}
    for key_node, value_node in node.value:
        at = str(key_node.start_mark.line + 1)
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError("a key is not a plain word", place=at)
        key = str(key_node.value)
        if key in out:
            raise UserError(f"key `{key}` is given twice", place=at)
        lines[(*path, key)] = int(at)
        out[key] = _plain(value_node, (*path, key), lines)
    return out


def _scalar(node: Any) -> Any:
    value: str = node.value
    if node.style is not None:
        return value
    if value in _WORDS:
        return _WORDS[value]
    if _INT.fullmatch(value):
        return int(value.replace("_", ""))
    if _FLOAT.fullmatch(value):
        number = float(value.replace("_", ""))
        if math.isinf(number):
            raise UserError(f"number `{value}` is too large", place=str(node.start_mark.line + 1))
        return number
    return value
