"""A JSON file of names and numbers, with the line of what is wrong in it.

`NaN` and `Infinity`, which Python writes though JSON does not know them, are read as numbers.
"""

import math
from typing import Any

from profiler.codec import parse_json, place_of
from profiler.errors import UserError
from profiler.link_files.table import Cell, Matrix, check_hosts
from profiler.yaml_nodes import json_lines

_SEEK_LINES = 200_000
"""Characters up to which the line of an error is sought: that takes long in a large matrix."""


def load(text: str, place: str) -> Any:
    """Text -> tree; `UserError` with the line."""
    return parse_json(text.removeprefix("\ufeff"), place, constants=True)


class JsonFile:
    """The object of a file."""

    def __init__(self, tree: dict[str, Any], text: str, place: str) -> None:
        self.tree, self.text, self.place = tree, text, place

    def at(self, *path: str | int) -> str:
        """FILE:LINE of a path, where the line can be found in short time."""
        if "\n" not in self.text.strip():
            return f"{self.place}:1"
        lines = json_lines(self.text) if len(self.text) <= _SEEK_LINES else {}
        return place_of(path, self.place, lines, None)

    def hosts(self, key: str) -> tuple[str, ...]:
        """Names of hosts."""
        names = self.list(key)
        for i, name in enumerate(names):
            if not isinstance(name, str):
                raise UserError(f"`{key}.{i}` is not a name", place=self.at(key, i))
        return check_hosts(names, self.at(key))

    def matrix(self, key: str, hosts: tuple[str, ...]) -> Matrix:
        """Rows of numbers, as many and as long as they are."""
        rows = []
        for i, row in enumerate(self.list(key)):
            if not isinstance(row, list):
                raise UserError(f"`{key}.{i}` is not a list of numbers", place=self.at(key, i))
            rows.append([self.number(value, key, i, j) for j, value in enumerate(row)])
        return Matrix(hosts=hosts, rows=rows, place=lambda i: self.at(key, i))

    def list(self, key: str) -> "list[Any]":
        """The list of a key."""
        if key not in self.tree:
            raise UserError(f"key `{key}` is missing", place=self.place)
        value = self.tree[key]
        if not isinstance(value, list):
            raise UserError(f"`{key}` is not a list", place=self.at(key))
        return value

    def number(self, value: object, *path: str | int) -> Cell:
        """The number at a path; None for null."""
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            where = ".".join(str(step) for step in path)
            raise UserError(f"`{where}` is not a number", place=self.at(*path))
        try:
            return float(value)
        except OverflowError:
            return math.inf
