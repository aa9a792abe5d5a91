"""Weights in Hugging Face's form: safetensors beside a `config.json`, read and written one tensor
at a time.

Names are those of `launch.runtime.hf_names`. The shapes and the sharding with its index are what
`save_pretrained` of the `transformers` library writes.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from launch.runtime.hf_names import hf_name
from profiler.codec import canonical, parse, read_text
from profiler.config_json import config_json, first_difference
from profiler.errors import UserError
from profiler.huggingface import FILE_NAME, read_model
from profiler.model import ModelSpec
from profiler.tensors import canonical_names

__all__ = ["HfWeights", "config_json", "hf_name", "write_hf"]

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
SHARD_BYTES = 5 * 2**30

_FLOATS = ("F64", "F32", "F16", "BF16")


class HfWeights:
    """Weights of a model in a folder, memory mapped: only what is asked for is read.

    A context manager; `close` lets go of the files.
    """

    def __init__(self, folder: Path, model: ModelSpec) -> None:
        """Open the folder and check every name, shape and type against `model`.

        Raises `UserError` that names the first tensor which is missing, has another shape or has no
        place in the model; or where the folder's `config.json` says what its shapes do not: that
        the model computes something else.
        """
        self.folder = folder
        self.model = model
        self._files: dict[str, Any] = {}
        try:
            self._where = self._names()
            self._check_tensors()
            self._check_config()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "HfWeights":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; tensors already given stay valid."""
        self._files.clear()

    def get(self, name: str) -> Tensor:
        """The tensor of a canonical name, in the type it is stored in, on the CPU.

        It is a view of the file, whose pages are read when they are touched.
        """
        on_disk = hf_name(self.model, name)
        tensor: Tensor = self._open(self._where[on_disk]).get_tensor(on_disk)
        return tensor

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.folder / file
            try:
                self._files[file] = safe_open(path, framework="pt", device="cpu")
            except FileNotFoundError:
                raise UserError(
                    f"the file `{file}` is missing",
                    hint=f"`{INDEX_NAME}` names it; copy the whole folder",
                    place=str(self.folder),
                ) from None
            except (SafetensorError, OSError) as e:
                raise UserError(
                    f"not a safetensors file: {str(e)[:200]}",
                    hint="the file may be cut off; copy it again",
                    place=str(path),
                ) from None
        return self._files[file]

    def _names(self) -> dict[str, str]:
        """Name on disk -> file that holds it."""
        index = self.folder / INDEX_NAME
        if (self.folder / WEIGHTS_NAME).is_file():
            return dict.fromkeys(self._open(WEIGHTS_NAME).keys(), WEIGHTS_NAME)
        if not index.is_file():
            raise UserError(
                f"the folder holds no `{WEIGHTS_NAME}` and no `{INDEX_NAME}`",
                hint="weights are read from safetensors files alone",
                place=str(self.folder),
            )
        tree, _ = parse(read_text(index), str(index))
        found = tree.get("weight_map") if isinstance(tree, dict) else None
        if not isinstance(found, dict) or not all(
            isinstance(file, str) and Path(file).name == file for file in found.values()
        ):
            raise UserError("`weight_map` is not a table of file names", place=str(index))
        return found

    def _check_tensors(self) -> None:
        model, place = self.model, str(self.folder)
        hint = f"is this the folder of `{model.name}` ({model.family}, {model.num_layers} layers)?"
        held = {file: set(self._open(file).keys()) for file in sorted(set(self._where.values()))}
        expected = set()
        for name, shape in canonical_names(model).items():
            on_disk = hf_name(model, name)
            expected.add(on_disk)
            file = self._where.get(on_disk)
            if file is None or on_disk not in held[file]:
                raise UserError(f"tensor `{on_disk}` is missing", hint=hint, place=place)
            part = self._open(file).get_slice(on_disk)
            if tuple(part.get_shape()) != shape:
                raise UserError(
                    f"tensor `{on_disk}` has shape {_shown(part.get_shape())}, not {_shown(shape)}",
                    hint=hint,
                    place=f"{place}/{file}",
                )
            if part.get_dtype() not in _FLOATS:
                raise UserError(
                    f"tensor `{on_disk}` is stored as {part.get_dtype()}, which is not read",
                    hint=f"types that are read: {', '.join(_FLOATS)}",
                    place=f"{place}/{file}",
                )
        extra = next((n for n in self._where if n not in expected and not self._idle(n)), None)
        if extra is not None:
            raise UserError(f"tensor `{extra}` has no place in the model", hint=hint, place=place)

    def _idle(self, name: str) -> bool:
        """Tensors that old files hold and `from_pretrained` passes over: the tied head's copy, and
        the rotary frequencies, which follow from the config."""
        tied = self.model.tie_embeddings and name == "lm_head.weight"
        return tied or name.endswith(".rotary_emb.inv_freq")

    def _check_config(self) -> None:
        path = self.folder / FILE_NAME
        if not path.is_file():
            return
        tree, _ = parse(read_text(path), str(path))
        for key in ("rope_scaling", "rope_parameters"):
            rope = tree.get(key)
            kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
            if kind not in (None, "default"):
                raise UserError(
                    f"`{key}` of type `{str(kind)[:40]}`: the runtime computes plain rotary "
                    f"positions, so the weights would not be this model",
                    hint="start from random weights, or from a model without scaled positions",
                    place=str(path),
                )
        found = read_model(path)
        field = first_difference(self.model, found)
        if field is not None:
            raise UserError(
                f"`{field}` is {getattr(found, field)} here and {getattr(self.model, field)} "
                f"in the model to be trained",
                hint="plan with this folder as the model",
                place=str(path),
            )


def _shown(shape: Iterable[int]) -> str:
    return f"[{', '.join(str(n) for n in shape)}]"


def write_hf(
    folder: Path,
    model: ModelSpec,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write all canonical tensors of a model, in any order, as a folder that `from_pretrained`
    reads.

    At most one file of `shard_bytes` is held in memory. The folder is built beside its place and
    renamed, so that it is whole or not there. The router of a sigmoid-scored model stays in fp32,
    as `transformers` keeps it. Raises `UserError` where the folder exists or cannot be written;
    `ValueError` where `tensors` are not those of the model.
    """
    config = config_json(model) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    if folder.exists():
        raise UserError(
            "the folder exists", hint="choose another, or remove it first", place=str(folder)
        )
    with _beside(folder) as temporary:
        shards = _Shards(temporary, shard_bytes)
        missing = canonical_names(model)
        for name, tensor in tensors:
            shape = missing.pop(name, None)
            if shape != tuple(tensor.shape):
                raise ValueError(f"{name}: {tuple(tensor.shape)} given, {shape} wanted")
            router = model.router_bias and ".ffn.router." in name
            kept = torch.float32 if router else dtype
            shards.add(hf_name(model, name), tensor.detach().to("cpu", kept).contiguous())
        if missing:
            raise ValueError(f"{len(missing)} tensors were not given, {next(iter(missing))} first")
        shards.finish()
        _write(temporary / FILE_NAME, canonical(config))


class _Shards:
    """Tensors gathered into files of a size."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._files: list[tuple[Path, list[str]]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        if self._held and self._held_bytes + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._held[name] = tensor
        self._held_bytes += tensor.nbytes
        self._total_bytes += tensor.nbytes

    def _flush(self) -> None:
        path = self._folder / f"part-{len(self._files)}"
        save_file(self._held, path, metadata={"format": "pt"})
        path.chmod(0o666 & ~_mask())  # safetensors makes files that their owner alone can read
        _sync(path)
        self._files.append((path, list(self._held)))
        self._held, self._held_bytes = {}, 0

    def finish(self) -> None:
        """Write what is held, name the files by their number, and write the index."""
        self._flush()
        if len(self._files) == 1:
            self._files[0][0].rename(self._folder / WEIGHTS_NAME)
            return
        where: dict[str, str] = {}
        for number, (path, names) in enumerate(self._files, 1):
            file = f"model-{number:05d}-of-{len(self._files):05d}.safetensors"
            path.rename(self._folder / file)
            where |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": where}
        _write(self._folder / INDEX_NAME, json.dumps(index, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the name `folder` where the block ends well."""
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        temporary.chmod(0o777 & ~_mask())
        yield temporary
        temporary.rename(folder)
    except (OSError, SafetensorError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise UserError(
            f"cannot write the folder: {reason[:200].lower()}", place=str(folder), kind="failed"
        ) from None
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _mask() -> int:
    """Permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
