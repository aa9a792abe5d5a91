"""Weights of a checkpoint in Hugging Face's form, read in one process, tensor by tensor."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from launch.runtime.huggingface import canonical_names, write_hf
from profiler.errors import UserError
from profiler.model import ModelSpec

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def _tensors(checkpoint: Path, model: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    saved = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    for name, shape in canonical_names(model).items():
        key = next((k for k in (f"weight/{name}", f"buffer/{name}") if k in saved), None)
        about = saved[key] if key else None
        if key is None or not isinstance(about, TensorStorageMetadata) or about.size != shape:
            raise UserError(
                f"the checkpoint has no `{name}` of shape {list(shape)}",
                hint="it is of another model than the plan's",
                place=str(checkpoint),
            )
        state = {key: torch.empty(shape, dtype=about.properties.dtype)}
        with warnings.catch_warnings():  # one process is what we want
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, checkpoint_id=checkpoint, no_dist=True)
        yield name, state[key]


def export(checkpoint: Path, model: ModelSpec, folder: Path, precision: str) -> None:
    """Write the model's weights in a checkpoint to a new `folder` that `from_pretrained` reads.

    Raises `UserError` where the checkpoint is of another model, or the folder exists.
    """
    write_hf(folder, model, _tensors(checkpoint, model), DTYPES[precision])
