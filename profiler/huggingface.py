"""Hugging Face `config.json` -> `ModelSpec`, for the model types of `profiler.model.Family`.

`profiler.hf_families` knows the families; this module finds the one of a file and says where a
fault is. A default is used only where leaving the key out is usual; sizes that a configuration
class would silently invent (`hidden_size` 4096, say) must be given. Keys of no consequence for the
shape are passed over. What would change the count of parameters or FLOPs and is not described by a
`ModelSpec` is refused. Of a model that also sees images (`llama4`, `gemma3`), the text part is
read.
"""

from pathlib import Path
from typing import Any, cast, get_args

from profiler.codec import build, parse, place_of, read_text
from profiler.errors import UserError
from profiler.hf_families import dense, gpt, llama, mla, moe
from profiler.hf_families.base import FaultyKeyError, Reader
from profiler.model import Family, ModelSpec
from profiler.names import did_you_mean
from profiler.yaml_nodes import Lines, json_lines

FILE_NAME = "config.json"
FAMILIES: tuple[Family, ...] = get_args(Family)
TEXT_PARTS: dict[str, Family] = {"llama4": "llama4_text", "gemma3": "gemma3_text"}
"""Model types that hold a text model in `text_config` -> its family."""

_READERS: dict[str, Reader] = {
    **llama.READERS,
    **gpt.READERS,
    **dense.READERS,
    **moe.READERS,
    **mla.READERS,
}


def known_keys(family: Family) -> frozenset[str]:
    """The keys of a `config.json` of that family that are read."""
    return _READERS[family].known


def read_model(path: Path) -> ModelSpec:
    """Read a `config.json`, or the folder that holds it; the folder's name becomes the model's.

    Raises `UserError` with file and line for anything wrong with the file.
    """
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise UserError(
                f"the folder holds no `{FILE_NAME}`",
                hint="give a Hugging Face model folder, or its config file",
                place=str(path),
            )
        path = path / FILE_NAME
    text = read_text(path)
    tree, lines = parse(text, str(path))
    name = path.resolve().parent.name if path.name == FILE_NAME else path.stem
    return model_from_config(tree, name or "model", str(path), lines=lines, text=text)


def model_from_config(
    tree: dict[str, Any],
    name: str,
    place: str,
    *,
    lines: Lines | None = None,
    text: str | None = None,
) -> ModelSpec:
    """Content of a `config.json` -> shape of the model, called `name`.

    `place` is what errors call the file; `lines` or its `text` let them name the line. Raises
    `UserError` for an unsupported model type, a missing key, a wrong type, or a feature that is
    not modelled.
    """
    if not isinstance(tree, dict):
        raise UserError("a model config is a JSON object", place=place)
    found = tree.get("model_type")
    if isinstance(found, str) and found in TEXT_PARTS:
        tree, lines = _text_part(tree, TEXT_PARTS[found], place, lines, text)
    family = _family(tree, place, lines, text)
    reader = _READERS[family]
    known = reader.keys_of(tree)
    config = build(reader.keys, known, place, lines=lines, text=text)
    try:
        return reader.spec(config, name, known)
    except FaultyKeyError as e:
        at = place_of((e.key,), place, lines or {}, text)
        raise UserError(e.message, hint=e.hint, place=at) from None
    except UserError as e:
        raise UserError(e.message, hint=e.hint, place=e.place or place) from None


def _text_part(
    tree: dict[str, Any], family: Family, place: str, lines: Lines | None, text: str | None
) -> tuple[dict[str, Any], Lines]:
    """The text model in a file, and the lines of its keys."""
    part = tree.get("text_config")
    if not isinstance(part, dict):
        raise UserError("key `text_config` is missing, or no JSON object", place=place)
    if not lines and text is not None and place.endswith(".json"):
        lines = json_lines(text)
    inner = {path[1:]: n for path, n in (lines or {}).items() if path[:1] == ("text_config",)}
    return {**part, "model_type": family}, inner


def _family(tree: dict[str, Any], place: str, lines: Lines | None, text: str | None) -> Family:
    if "model_type" not in tree:
        raise UserError("key `model_type` is missing", place=place)
    found = tree["model_type"]
    if found in FAMILIES and isinstance(found, str):
        return cast(Family, found)
    known = (*FAMILIES, *TEXT_PARTS)
    shown = str(found)[:40]
    asked = did_you_mean(shown, known)
    raise UserError(
        f"model type `{shown}` is not supported",
        hint=f"supported: {', '.join(known)}{f'; {asked}' if asked else ''}",
        place=place_of(("model_type",), place, lines or {}, text),
    )
