"""Weights of a checkpoint in Hugging Face's form, read in one process, tensor by tensor."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from launch.runtime.checkpoint import check_names
from launch.runtime.huggingface import write_hf
from launch.runtime.trainer import DTYPES
from profiler.model import ModelSpec
from profiler.tensors import canonical_names


class _Reader(FileSystemReader):
    """Reads the metadata once for all tensors."""

    _kept: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._kept is None:
            self._kept = super().read_metadata(*args, **kwargs)
        return self._kept


def _tensors(checkpoint: Path, model: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    reader = _Reader(checkpoint)
    saved = reader.read_metadata().state_dict_metadata
    for name, shape in canonical_names(model).items():
        key = f"weight/{name}" if f"weight/{name}" in saved else f"buffer/{name}"
        about = saved[key]
        assert isinstance(about, TensorStorageMetadata)
        state = {key: torch.empty(shape, dtype=about.properties.dtype)}
        with warnings.catch_warnings():  # one process is what we want
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, storage_reader=reader, no_dist=True)
        yield name, state[key]


def export(checkpoint: Path, model: ModelSpec, folder: Path, precision: str) -> None:
    """Write the model's weights in a checkpoint to a new `folder` that `from_pretrained` reads.

    Raises `UserError` where the checkpoint is of another model, or the folder exists.
    """
    check_names(checkpoint, model)
    write_hf(folder, model, _tensors(checkpoint, model), DTYPES[precision])
