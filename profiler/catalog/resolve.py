"""What a user may write for a model or a cluster: a path, a catalogue name, or a sized name.

A path wins over a name, except that a folder without the expected file does not hide a name: a run
folder called `tiny-llama` leaves the catalogue's `tiny-llama` within reach.
"""

from pathlib import Path

from profiler.catalog.cluster_file import (
    FILE_NAME,
    cluster_from_name,
    load_cluster,
    read_cluster,
)
from profiler.catalog.load import MODEL_ALIASES, Kind, load_model, names, unknown
from profiler.catalog.node_types import is_node_name, split_node_name
from profiler.cluster import ClusterSpec, split_sized_name
from profiler.errors import UserError
from profiler.huggingface import FILE_NAME as CONFIG_NAME
from profiler.huggingface import read_model
from profiler.model import ModelSpec
from profiler.names import nearest

_ENDINGS = (".json", ".yaml", ".yml")


def resolve_model(text: str) -> ModelSpec:
    """Model that a path or a catalogue name stands for; `UserError` where it stands for none."""
    known = tuple(sorted((*names("model"), *MODEL_ALIASES)))
    if _is_path(text, CONFIG_NAME, text in known):
        return read_model(Path(text))
    if text in known:
        return load_model(text)
    _refuse_missing_path(text)
    raise _no_such("model", text, known, f"a folder with a `{CONFIG_NAME}`")


def resolve_cluster(text: str) -> ClusterSpec:
    """Cluster that a path, a catalogue name or a sized name stands for; else `UserError`.

    A sized name is a device and a size, `h100-2x8`, or a node type and a number, `aws-p5-16`.
    """
    known = names("cluster")
    sized = split_sized_name(text) is not None or is_node_name(text)
    if _is_path(text, FILE_NAME, sized or text in known):
        return read_cluster(Path(text))
    if text in known:
        return load_cluster(text)
    if sized:
        return cluster_from_name(text)
    _refuse_missing_path(text)
    if text in names("device"):
        raise UserError(
            f"`{text}` is a device, not a cluster",
            hint=f"say how many: `{text}-2x8` is two nodes with eight each",
        )
    if text in names("node"):
        raise UserError(
            f"`{text}` is a node type, not a cluster",
            hint=f"say how many: `{text}-2` is two nodes",
        )
    error = _no_such("cluster", text, known, "a cluster file, or a size such as `h100-2x8`")
    if near := _nearest_cluster(text):
        error.hint = f"did you mean `{near}`?"
    raise error


def _nearest_cluster(text: str) -> str | None:
    """The catalogued cluster, or the node type with as many nodes, whose name is most like it."""
    clusters, types = names("cluster"), names("node")
    parts = split_node_name(text.lower()[:100])
    if parts:
        return nearest(text, (*clusters, *(f"{name}-{parts[1]}" for name in types)))
    near = nearest(text, (*clusters, *types))
    return f"{near}-2" if near in types else near


def _is_path(text: str, file_name: str, is_name: bool) -> bool:
    if not text:
        return False
    path = Path(text)
    try:
        if not path.exists():
            return False
        return not (is_name and path.is_dir() and not (path / file_name).exists())
    except (OSError, ValueError):  # too long for a name, or not ours to look at
        return False


def _refuse_missing_path(text: str) -> None:
    if "/" in text or text.endswith(_ENDINGS):
        raise UserError(f"no such file: `{text[:200]}`", hint="check the path")


def _no_such(kind: Kind, text: str, known: tuple[str, ...], other: str) -> UserError:
    error = unknown(kind, text, known)
    if nearest(text, known) is None:
        error.hint = f"{error.hint}; or give {other}"
    return error
